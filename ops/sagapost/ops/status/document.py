"""What was seen, as `sagapost status --json` writes it. Names stay; new ones may come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from sagapost.ops.status.seen import Seen
    from sagapost.ops.status.verdict import Complaint

__all__ = ["document_of", "plain"]


def document_of(seen: Seen, complaints: Sequence[Complaint]) -> dict[str, Any]:
    """Return the document. Times are ISO 8601, durations seconds in names that end with `_seconds`."""
    backlog, outbox = seen.backlog, seen.outbox
    return {
        "well": not complaints,
        "complaints": plain(complaints),
        "relays": {
            "alive": seen.living,
            "known": [plain(relay) | {"silent": bool(seen.silent_for(relay.expires_in))} for relay in outbox.relays],
            "partitions": outbox.partitions,
            "owned": outbox.owned,
        },
        "broker": None if seen.broker is None else plain(seen.broker) | {"reachable": seen.broker.problem is None},
        "outbox": {
            "pending": backlog.pending,
            "oldest_seconds": None if backlog.oldest_age is None else _seconds(backlog.oldest_age),
            "held": backlog.held,
            "dead": backlog.dead,
            "scheduled": backlog.scheduled,
            "overdue": outbox.overdue,
            "overdue_for_seconds": None if outbox.overdue_for is None else _seconds(outbox.overdue_for),
            "topics": plain(outbox.topics),
            "held_events": plain(outbox.held_events),
            "blocked": outbox.blocked,
            "blocked_keys": plain(outbox.blocked_keys),
        },
        "inboxes": {
            name: {
                "parked": dict(inbox.by_state),
                "reasons": dict(inbox.by_reason),
                "oldest": plain(inbox.oldest),
                "oldest_waiting_seconds": plain(inbox.oldest_waiting),
                "examples": plain(inbox.examples),
            }
            for name, inbox in seen.inboxes.items()
        },
        "sagas": plain(seen.sagas),
        "tracker": plain(seen.tracker),
    }


def plain(value: Any) -> Any:
    """Return a value of dataclasses, times and ids as JSON has them."""
    if isinstance(value, timedelta):
        return _seconds(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return dict(_fields(value))
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each) for each in value]
    return value


def _fields(value: Any) -> Sequence[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for each in fields(value):
        member = getattr(value, each.name)
        # Also where there is none now: a document has the same names always.
        duration = "timedelta" in str(each.type)
        found.append((f"{each.name}_seconds" if duration else each.name, plain(member)))
    return found


def _seconds(duration: timedelta) -> float:
    return round(duration.total_seconds(), 3)
