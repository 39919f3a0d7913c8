"""What a look at a system finds: how grave it is, what was seen, since when, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

__all__ = ["Diagnosis", "Patience", "Severity"]


class Severity(Enum):
    """How sure it is that something is wrong."""

    ERROR = "error"
    """Some event is lost or stops, some saga will stop, never end, or not be undone."""
    WARNING = "warning"
    """It works until something else fails, and then nobody notices; or it works slowly."""
    ADVICE = "advice"
    """It works; there is a way that needs less."""

    @property
    def rank(self) -> int:
        """0 for the gravest."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One thing that is wrong with the servers or what lies on them."""

    severity: Severity
    code: str
    """What kind of thing, for programs; stays the same when the words change."""
    subject: str
    """The table, queue, setting or process it is about."""
    evidence: str
    """What was seen."""
    remedy: str
    """What to do, as a command or a statement where there is one."""
    since: datetime | None = None
    """Since when it is so; None: nobody recorded it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """What of a database server is still taken for normal."""

    transaction: timedelta = timedelta(minutes=5)
    """Age of a transaction, prepared ones included."""
    lock: timedelta = timedelta(seconds=5)
    """How long somebody waits for a lock on one of the tables."""
    notify_queue: float = 0.1
    """Share of the queue of notifications that is in use."""
    connections: float = 0.9
    """Share of the server's connections that are in use."""
    dead_rows: int = 100_000
    """Of one table, where they are also more than twice the living."""
    empty_bytes: int = 2**28
    """Size of a table's file, where more than nine tenths of it hold nothing."""
