"""Times as the database sees them: its own clock where it has a usable one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, DateTime, func, literal

from sagapost.core.clock import Clock

__all__ = ["Moments", "aware"]


def aware(moment: datetime) -> datetime:
    """Return a time from a column with its timezone: SQLite keeps none, and ours are in UTC."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


class Moments:
    """SQL expressions for now and later.

    PostgreSQL's clock is the one every replica shares. SQLite runs in this very process, and its own CURRENT_TIMESTAMP
    has whole seconds only: there the process's clock is bound.
    """

    def __init__(self, dialect: str, clock: Clock) -> None:
        self._shared = dialect == "postgresql"
        self._clock = clock

    def now(self) -> ColumnElement[datetime]:
        """The current time, not that of the transaction's begin."""
        if self._shared:
            return func.clock_timestamp(type_=DateTime(timezone=True))
        return literal(self._clock.now(), DateTime(timezone=True))

    def after(self, delay: timedelta) -> ColumnElement[datetime]:
        """The time `delay` from now; negative: ago."""
        if self._shared:
            return func.clock_timestamp(type_=DateTime(timezone=True)) + delay
        return literal(self._clock.now() + delay, DateTime(timezone=True))
