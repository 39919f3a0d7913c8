"""Identifiers are UUIDv7: unique, and ordered by time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import RFC_4122, UUID

from sagapost.core.ids import new_id, new_uuid


def milliseconds(identifier: UUID) -> int:
    """Return the timestamp in the first 48 bits (RFC 9562, section 5.7)."""
    return identifier.int >> 80


def test_ids_are_uuid7_of_now() -> None:
    """Version, variant and timestamp are those RFC 9562 prescribes."""
    before = time.time_ns() // 1_000_000
    identifier = new_uuid()
    after = time.time_ns() // 1_000_000
    assert (identifier.version, identifier.variant) == (7, RFC_4122)
    assert before <= milliseconds(identifier) <= after


def test_ids_grow_with_time() -> None:
    """A later id never carries an earlier time, so index pages fill in order."""
    times = [milliseconds(new_uuid()) for _ in range(20_000)]
    assert times == sorted(times)


def test_ids_are_unique_across_threads() -> None:
    """Four threads drawing at the same time never draw the same id."""

    def draw(count: int) -> list[str]:
        return [new_id() for _ in range(count)]

    with ThreadPoolExecutor(4) as pool:
        drawn = [each for batch in pool.map(draw, [20_000] * 4) for each in batch]
    assert len(set(drawn)) == len(drawn) == 80_000


def test_the_text_form_is_canonical() -> None:
    """The text form parses back to itself: database, wire and log show one spelling."""
    text = new_id()
    assert str(UUID(text)) == text
    assert len(text) == 36
