"""Backoff: bounded, growing, jittered, and never an overflow."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagapost.core.backoff import Backoff


@given(
    base=st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(minutes=1)),
    extra=st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=30)),
    factor=st.floats(min_value=1, max_value=1e300),
    jitter=st.floats(min_value=0, max_value=1),
    attempt=st.integers(min_value=-5, max_value=10**9),
    seed=st.integers(),
)
def test_every_delay_is_within_its_bounds(
    base: timedelta, extra: timedelta, factor: float, jitter: float, attempt: int, seed: int
) -> None:
    """For any valid setting and any attempt number: at most the cap, at least the jittered base, no overflow."""
    backoff = Backoff(base=base, cap=base + extra, factor=factor, jitter=jitter, rng=random.Random(seed))
    delay = backoff.delay(attempt)
    rounding = timedelta(microseconds=1)
    assert base * (1 - jitter) - rounding <= delay <= backoff.cap + rounding


def test_without_jitter_the_delays_double_up_to_the_cap() -> None:
    """The documented series, written by hand."""
    backoff = Backoff(base=timedelta(seconds=1), cap=timedelta(seconds=10), factor=2, jitter=0)
    assert [backoff.seconds(attempt) for attempt in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_jitter_spreads_a_fleet() -> None:
    """A hundred that failed together do not return together, and all stay in the promised band."""
    fleet = [Backoff(base=timedelta(seconds=8), jitter=0.5, rng=random.Random(seed)) for seed in range(100)]
    delays = [each.seconds(1) for each in fleet]
    assert len(set(delays)) == 100
    assert all(4 <= delay <= 8 for delay in delays)
    assert max(delays) - min(delays) > 3


def test_a_seed_repeats_the_delays() -> None:
    """Tests can fix the randomness."""
    one, two = (Backoff(rng=random.Random(7)) for _ in range(2))
    assert [one.seconds(n) for n in range(10)] == [two.seconds(n) for n in range(10)]


@pytest.mark.parametrize(
    "settings",
    [
        {"base": timedelta(0)},
        {"base": timedelta(seconds=-1)},
        {"base": timedelta(minutes=6), "cap": timedelta(minutes=5)},
        {"factor": 0.5},
        {"factor": float("nan")},
        {"factor": float("inf")},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"jitter": float("nan")},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    """A backoff that would not wait, shrink or never end is refused when it is made."""
    with pytest.raises(ValueError, match="Backoff needs"):
        Backoff(**settings)  # type: ignore[arg-type] # wrong values on purpose
