"""Whether what was seen is well: thresholds, and one sentence for each that is crossed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sagapost.ops.settings.units import format_duration

if TYPE_CHECKING:
    from sagapost.ops.status.seen import Seen

__all__ = ["Complaint", "Thresholds", "complaints", "rounded"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What still counts as well."""

    min_relays: int = 1
    max_age: timedelta = timedelta(minutes=1)
    """Of events that wait in the outbox, and of how long scheduled ones are overdue."""
    max_held: int = 0
    """Held events."""
    max_dead: int = 0
    """Dead letters of the outbox; likewise those of each inbox and each dead-letter queue of the broker."""
    max_parked_age: timedelta = timedelta(hours=1)
    """Of messages that an inbox tries again, and of rollbacks."""
    max_stuck: int = 0
    """Stuck sagas of a service or a tracker."""
    max_late: int = 0
    """Late sagas and tasks of a service or a tracker."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """One thing that is not well."""

    code: str
    """For programs; stays the same when the sentence changes."""
    text: str


def complaints(seen: Seen, allowed: Thresholds) -> list[Complaint]:
    """Return what is not well, the cause before what comes of it."""
    parts = (_relays, _broker, _outbox, _inboxes, _queues, _sagas, _tracker)
    return [Complaint(code, text) for part in parts for code, text in part(seen, allowed)]


def rounded(duration: timedelta) -> str:
    """Return a duration to the second, for people."""
    return format_duration(timedelta(seconds=round(duration.total_seconds())))


def _relays(seen: Seen, allowed: Thresholds) -> Iterator[tuple[str, str]]:
    if seen.living >= allowed.min_relays:
        return
    count = "no relay is" if not seen.living else f"only {seen.living} of {allowed.min_relays} relays are"
    silent = [each for each in map(seen.silent_for, (relay.expires_in for relay in seen.outbox.relays)) if each]
    last = f"; the last sign of life was {rounded(min(silent))} ago" if silent else ""
    yield "relays", f"{count} alive: start `sagapost relay`{last}"


def _broker(seen: Seen, _: Thresholds) -> Iterator[tuple[str, str]]:
    if seen.broker is not None and seen.broker.problem is not None:
        yield "broker", seen.broker.problem


def _outbox(seen: Seen, allowed: Thresholds) -> Iterator[tuple[str, str]]:
    outbox = seen.outbox
    for topic in outbox.topics:
        if topic.oldest > allowed.max_age:
            events = f"{topic.events} events that wait" if topic.events > 1 else "1 event that waits"
            yield "old-events", f"{topic.topic}: the oldest of {events} is {rounded(topic.oldest)} old"
    if outbox.held > allowed.max_held:
        first = outbox.held_events[0] if outbox.held_events else None
        why = f", as {first.type} {first.event_id}: {first.reason}" if first is not None else ""
        yield "held", f"{_many(outbox.held, 'event')} held back{why}"
    if seen.backlog.dead > allowed.max_dead:
        yield "dead", f"{_many(seen.backlog.dead, 'dead letter')} in the outbox; see `sagapost dead list`"
    if outbox.blocked > allowed.max_dead:
        yield "blocked", f"{_many(outbox.blocked, 'dead letter')} in the outbox: the later events of the key wait"
    if outbox.overdue_for is not None and outbox.overdue_for > allowed.max_age:
        late = rounded(outbox.overdue_for)
        yield "overdue", f"{_many(outbox.overdue, 'scheduled event')} overdue, the first by {late}"


def _many(count: int, what: str) -> str:
    return f"{count} {what} is" if count == 1 else f"{count} {what}s are"


def _inboxes(seen: Seen, allowed: Thresholds) -> Iterator[tuple[str, str]]:
    for name, inbox in seen.inboxes.items():
        dead = inbox.by_state.get("dead", 0)
        if dead > allowed.max_dead:
            first = next((each for each in inbox.examples if each.state == "dead"), None)
            why = "" if first is None else f", as {first.type or 'a message'}: {first.error.splitlines()[0][:200]}"
            yield "parked-dead", f"inbox {name}: {_many(dead, 'message')} dead{why}"
        if inbox.oldest_waiting is not None and inbox.oldest_waiting > allowed.max_parked_age:
            yield "parked-old", f"inbox {name}: a message has been parked for {rounded(inbox.oldest_waiting)}"


def _queues(seen: Seen, allowed: Thresholds) -> Iterator[tuple[str, str]]:
    for queue in seen.broker.queues if seen.broker is not None else ():
        if queue.dead_letters is not None and queue.dead_letters > allowed.max_dead:
            text = (
                f"{_many(queue.dead_letters, 'message')} in the broker's dead-letter queue {queue.dead_letter_queue}"
            )
            yield "dead-letter-queue", text
        if queue.messages and queue.consumers == 0:
            yield "not-consumed", f"nobody consumes the queue {queue.queue}, where {_many(queue.messages, 'message')}"


def _sagas(seen: Seen, allowed: Thresholds) -> Iterator[tuple[str, str]]:
    for service, sagas in seen.sagas.items():
        if sagas.stuck > allowed.max_stuck:
            yield "stuck", f"{service}: {_many(sagas.stuck, 'saga')} stuck; see `sagapost saga list --state stuck`"
        if sagas.failing:
            first = sagas.failing[0]
            error = (first.error or "").partition("\n")[0][:200]
            again = f"saga {first.saga}, after {first.attempts} attempts"
            yield "compensation", f"{service}: the compensation {first.name} fails ({again}): {error}"
        if sagas.oldest_rollback is not None and sagas.oldest_rollback > allowed.max_parked_age:
            yield "rollback", f"{service}: a saga has been rolling back for {rounded(sagas.oldest_rollback)}"
        if sagas.late_tasks > allowed.max_late:
            yield "late", f"{service}: {_many(sagas.late_tasks, 'task')} late; see `sagapost tasks list`"


def _tracker(seen: Seen, allowed: Thresholds) -> Iterator[tuple[str, str]]:
    if seen.tracker is None:
        return
    if seen.tracker.stuck > allowed.max_stuck:
        yield "stuck", f"tracker: {_many(seen.tracker.stuck, 'saga')} stuck; see `sagapost saga list --state stuck`"
    if seen.tracker.late > allowed.max_late:
        yield "late", f"tracker: {_many(seen.tracker.late, 'saga')} late; see `sagapost saga list --late`"
