"""The house's counts do not grow: each is at its aim, or no further from it than it was."""

from __future__ import annotations

import pytest

from tests.house.counts import COUNTS, Count
from tests.house.source import House

NOT_THERE_YET = {
    "hand-written reconnect loops": 3,
    "wake-up flags re-armed by hand": 4,
}
"""The counts that are above their aim, and what they were last. A smaller figure is written down here."""


@pytest.fixture(scope="module")
def house() -> House:
    """The library as it is."""
    return House()


@pytest.mark.parametrize("count", COUNTS, ids=lambda count: count.name)
def test_a_count_does_not_grow(count: Count, house: House) -> None:
    """What is counted is named, one line each."""
    found = count.find(house)
    assert len(found) <= NOT_THERE_YET.get(count.name, count.aim), "\n".join(found)
