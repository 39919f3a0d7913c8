"""Wait for a process outside: the one place that polls.

A server tells nobody when it is ready or gone, so someone has to ask. Everything else in the tests waits on signals.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["poll"]

T = TypeVar("T")


def poll(check: Callable[[], T | None], *, seconds: float, every: float = 0.02) -> T | None:
    """Ask `check` until it returns something other than None; None when `seconds` have passed without.

    Whatever `check` raises ends the waiting.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found is not None:
            return found
        if time.monotonic() >= deadline:
            return None
        time.sleep(every)
