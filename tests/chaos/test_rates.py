"""The meter that tells how long a fault took to get over."""

from __future__ import annotations

import pytest

from tests.chaos.rates import Arrivals


def arrivals(*stretches: tuple[float, float, float]) -> Arrivals:
    """Events at (from, to, rate)."""
    made = Arrivals()
    for start, end, rate in stretches:
        for number in range(int((end - start) * rate)):
            made.add(start + number / rate)
    return made


def test_a_fault_that_nobody_notices_takes_no_time() -> None:
    """The rate never fell."""
    assert arrivals((0, 20, 100)).recovery("x", at=5.0, rate=90).seconds == 0


def test_a_gap_is_measured_to_its_end() -> None:
    """To the beginning of the first second that is as good as before."""
    seconds = arrivals((0, 5, 100), (9, 20, 100)).recovery("x", at=5.0, rate=90).seconds
    assert seconds == pytest.approx(3.9, abs=0.2)


def test_a_rate_that_stays_low_is_no_recovery() -> None:
    """Half is not nine tenths."""
    assert arrivals((0, 5, 100), (5, 30, 50)).recovery("x", at=5.0, rate=90).seconds is None
    assert arrivals((0, 5, 100)).recovery("x", at=5.0, rate=90).seconds is None


def test_time_without_a_server_does_not_count() -> None:
    """Killed two seconds before the broker was restarted, back three seconds after that."""
    made = arrivals((0, 5, 100), (20, 30, 100))
    made.downtimes.append((7.0, 17.0))
    assert made.recovery("x", at=5.0, rate=90).seconds == pytest.approx(4.9, abs=0.2)
