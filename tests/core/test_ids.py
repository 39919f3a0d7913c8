"""Identifiers are UUIDv7: unique, and ordered by time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import RFC_4122, UUID

import pytest

from sagapost.core.ids import new_id, new_uuid

FORKING = """
import os
from sagapost.core.ids import new_id

new_id()  # what a preloaded service did before it forked its workers
for _ in range(20):
    workers = []
    for _ in range(4):
        read, write = os.pipe()
        if not os.fork():
            os.write(write, "".join(f"{new_id()}\\n" for _ in range(500)).encode())
            os._exit(0)
        os.close(write)
        workers.append(read)
    for worker in workers:
        with open(worker) as drawn:
            print(drawn.read(), end="")
"""


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_pitfall_49_ids_are_unique_across_forked_workers() -> None:
    """Workers forked from a process that has drawn an id (gunicorn --preload, Celery) never draw the same one.

    In a process of its own: one with threads should not fork.
    """
    ran = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=60, check=True)
    drawn = ran.stdout.splitlines()
    assert len(set(drawn)) == len(drawn) == 40_000


def test_the_text_form_is_canonical() -> None:
    """The text form parses back to itself: database, wire and log show one spelling."""
    text = new_id()
    assert str(UUID(text)) == text
    assert len(text) == 36
