"""Retry schedules by themselves: entries, times of day in their own timezone, the change of clocks, limits."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from sagapost.core.errors import ConfigurationError
from sagapost.inbox import At, RetryPolicy, Schedule, Snooze

BERLIN = ZoneInfo("Europe/Berlin")
EIGHT = time(8, tzinfo=BERLIN)


def test_a_schedule_says_when_each_round_is_and_how_many_there_are() -> None:
    """One entry for each further round, the last one repeated as often as said, then none."""
    policy = RetryPolicy(schedule=Schedule(timedelta(0), timedelta(hours=1), At(EIGHT, days=1), repeat_last=2))
    now = datetime(2026, 11, 23, 15, tzinfo=UTC)
    assert policy.rounds == 6
    eight = timedelta(hours=16)  # 16:00 in Berlin to 8:00
    assert [policy.delay(n, now) for n in range(1, 6)] == [timedelta(0), timedelta(hours=1), eight, eight, eight]


def test_a_policy_without_a_schedule_is_as_it_was() -> None:
    """Attempts and backoff decide."""
    policy = RetryPolicy(attempts=3)
    assert policy.rounds == 3
    assert timedelta(0) < policy.delay(1, datetime.now(UTC)) <= timedelta(seconds=10)


@pytest.mark.parametrize(
    ("at", "now", "expected"),
    [
        # Earlier that day, later that day, exactly then.
        (At(EIGHT), datetime(2026, 11, 23, 5, 0, tzinfo=UTC), datetime(2026, 11, 23, 7, 0, tzinfo=UTC)),
        (At(EIGHT), datetime(2026, 11, 23, 7, 1, tzinfo=UTC), datetime(2026, 11, 24, 7, 0, tzinfo=UTC)),
        (At(EIGHT), datetime(2026, 11, 23, 7, 0, tzinfo=UTC), datetime(2026, 11, 24, 7, 0, tzinfo=UTC)),
        # Tomorrow is tomorrow over there: 23:30 UTC is the next day in Berlin already.
        (At(EIGHT, days=1), datetime(2026, 11, 23, 5, 0, tzinfo=UTC), datetime(2026, 11, 24, 7, 0, tzinfo=UTC)),
        (At(EIGHT, days=1), datetime(2026, 11, 23, 23, 30, tzinfo=UTC), datetime(2026, 11, 25, 7, 0, tzinfo=UTC)),
        # The night in which summer time ends has 25 hours; eight o'clock is eight o'clock.
        (At(EIGHT), datetime(2026, 10, 24, 12, 0, tzinfo=UTC), datetime(2026, 10, 25, 7, 0, tzinfo=UTC)),
        (At(EIGHT), datetime(2026, 10, 23, 12, 0, tzinfo=UTC), datetime(2026, 10, 24, 6, 0, tzinfo=UTC)),
        # 2:30 does not exist in the night in which it begins.
        (
            At(time(2, 30, tzinfo=BERLIN)),
            datetime(2027, 3, 27, 12, 0, tzinfo=UTC),
            datetime(2027, 3, 28, 1, 30, tzinfo=UTC),
        ),
    ],
)
def test_a_time_of_day_is_that_of_its_timezone(at: At, now: datetime, expected: datetime) -> None:
    """The next such time, always later than now, whatever the clocks do in between."""
    assert at.after(now) == expected
    assert Schedule(at).delay(1, now) == expected - now


def test_what_makes_no_sense_is_refused() -> None:
    """No entry, negative or endless waits, times without a timezone; Snooze wants one time and an aware one."""
    for wrong in (
        lambda: Schedule(),
        lambda: Schedule(timedelta(seconds=-1)),
        lambda: Schedule(timedelta(days=400)),
        lambda: Schedule(timedelta(0), repeat_last=-1),
        lambda: At(time(8)),
        lambda: At(EIGHT, days=-1),
        lambda: Snooze(),
        lambda: Snooze(until=datetime.now(UTC), after=timedelta(1)),
        lambda: Snooze(until=datetime(2026, 1, 1)),
        lambda: Snooze(after=timedelta(seconds=-1)),
    ):
        with pytest.raises(ConfigurationError):
            wrong()
