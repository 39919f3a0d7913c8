"""What `sagapost status` finds not well, with how grave it is and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from sagapost.core.findings import Diagnosis, Severity

if TYPE_CHECKING:
    from sagapost.ops.status.verdict import Complaint

__all__ = ["diagnosis_of"]

_ERROR, _WARNING = Severity.ERROR, Severity.WARNING

_KNOWN: Final[Mapping[str, tuple[Severity, str]]] = {
    "relays": (_ERROR, "sagapost relay"),
    "broker": (_ERROR, "mend what it says; `sagapost config` shows SAGAPOST_BROKER_URL"),
    "old-events": (_WARNING, "sagapost status: is a relay alive, is the broker reachable, are events held?"),
    "held": (
        _WARNING,
        "mend what the reason says (bind a queue: sagapost declare MODULE:SERVICE); the relay tries again",
    ),
    "dead": (_WARNING, "sagapost dead list, then sagapost dead redrive or sagapost dead discard"),
    "blocked": (_ERROR, "sagapost dead redrive --where key=KEY --reason ..., or sagapost dead discard"),
    "overdue": (_WARNING, "sagapost relay: it moves what is due"),
    "parked-dead": (_WARNING, "sagapost parked redrive {subject} --where state=dead --reason ..."),
    "parked-old": (_WARNING, "sagapost parked list {subject} --where state=waiting"),
    "dead-letter-queue": (_WARNING, "look into {subject}; move its messages back to the queue when the cause is gone"),
    "not-consumed": (_ERROR, "sagapost consume MODULE:SERVICE of {subject}"),
    "stuck": (_ERROR, "sagapost saga show SAGA, then sagapost saga retry SAGA or settle the compensation by hand"),
    "compensation": (_WARNING, "sagapost saga show SAGA; it is tried again until it is stuck"),
    "rollback": (_WARNING, "sagapost consume MODULE:SERVICE of {subject}: its compensator does the work"),
    "late": (_WARNING, "sagapost saga list --late, sagapost tasks list"),
}


def diagnosis_of(complaint: Complaint) -> Diagnosis:
    """Return what is to be said about a complaint."""
    severity, remedy = _KNOWN[complaint.code]
    return Diagnosis(
        severity=severity,
        code=complaint.code,
        subject=complaint.subject,
        evidence=complaint.text,
        remedy=remedy.replace("{subject}", complaint.subject),
        since=complaint.since,
    )
