"""Retry schedules for people and business hours: now, in an hour, tomorrow at eight, and then no more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

from sagapost.core.errors import ConfigurationError

__all__ = ["At", "Schedule"]

_LONGEST = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class At:
    """A time of day.

    :param time: with a timezone: ``time(8, tzinfo=ZoneInfo("Europe/Berlin"))``.
    :param days: 0: the next time the clock shows it. 1: tomorrow at that time, and so on; up to 366.
    :raises ConfigurationError: if the time has no timezone, or the days are out of range.
    """

    time: time
    days: int = 0

    def __post_init__(self) -> None:
        if self.time.tzinfo is None:
            raise ConfigurationError(
                f"At({self.time}) has no timezone. Say whose clock is meant: time(8, tzinfo=ZoneInfo('Europe/Rome'))."
            )
        if not 0 <= self.days <= 366:
            raise ConfigurationError(f"At(days={self.days}) is out of range; use 0 to 366.")

    def after(self, now: datetime) -> datetime:
        """Return the moment meant, in UTC; always later than `now`.

        A time that the change to summer time leaves out is taken as if the clocks had not been changed (PEP 495).
        """
        today = now.astimezone(self.time.tzinfo).date()
        moment = datetime.combine(today + timedelta(days=self.days), self.time).astimezone(UTC)
        if moment <= now:
            moment = datetime.combine(today + timedelta(days=self.days + 1), self.time).astimezone(UTC)
        return moment


@dataclass(frozen=True, slots=True, init=False)
class Schedule:
    """When a failed message is tried again: one entry for each further round.

    ::

        RetryPolicy(schedule=Schedule(timedelta(0), timedelta(hours=1), At(time(8, tzinfo=berlin), days=1)))

    :param waits: times to wait, or times of day.
    :param repeat_last: further rounds after the last entry, each as that says.
    :raises ConfigurationError: if there is no entry, or one is negative or over a year.
    """

    waits: tuple[timedelta | At, ...]
    repeat_last: int

    def __init__(self, *waits: timedelta | At, repeat_last: int = 0) -> None:
        object.__setattr__(self, "waits", waits)
        object.__setattr__(self, "repeat_last", repeat_last)
        if not waits:
            raise ConfigurationError("Schedule() has no entry. Give the waits: Schedule(timedelta(hours=1)).")
        for wait in waits:
            if isinstance(wait, timedelta) and not timedelta(0) <= wait <= _LONGEST:
                raise ConfigurationError(f"Schedule() has the entry {wait}; use 0 to 366 days.")
        if not 0 <= repeat_last <= 10_000:
            raise ConfigurationError(f"Schedule(repeat_last={repeat_last}) is out of range; use 0 to 10,000.")

    @property
    def rounds(self) -> int:
        """Rounds in all, the first one included."""
        return 1 + len(self.waits) + self.repeat_last

    def delay(self, round_: int, now: datetime) -> timedelta:
        """Return the wait after failed round number `round_` (1 for the first)."""
        wait = self.waits[min(max(round_, 1), len(self.waits)) - 1]
        return wait.after(now) - now if isinstance(wait, At) else wait
