"""The house's counts are at their aims, and stay there."""

from __future__ import annotations

import pytest

from tests.house.counts import COUNTS, Count
from tests.house.source import House


@pytest.fixture(scope="module")
def house() -> House:
    """The library as it is."""
    return House()


@pytest.mark.parametrize("count", COUNTS, ids=lambda count: count.name)
def test_a_count_is_at_its_aim(count: Count, house: House) -> None:
    """All are at their aim; what is counted is named, one line each."""
    found = count.find(house)
    assert len(found) <= count.aim, "\n".join(found)
