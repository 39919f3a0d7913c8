"""A clock that stands still until the test moves it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import anyio

__all__ = ["VirtualClock"]


class VirtualClock:
    """Virtual wall-clock time. Waiting and `monotonic` stay real: they pace loops and decide nothing.

    :param start: the time it shows at first; default: the real time.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._now = (start if start is not None else datetime.now(UTC)).astimezone(UTC)

    def now(self) -> datetime:
        """Return the virtual time, in UTC."""
        return self._now

    def advance(self, by: timedelta) -> None:
        """Move the time.

        :raises ValueError: if `by` is negative: databases and people rely on time going forward.
        """
        if by < timedelta(0):
            raise ValueError(f"Time goes forward, not by {by}.")
        self._now += by

    def monotonic(self) -> float:
        """Return the real monotonic time in seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait in real time."""
        await anyio.sleep(seconds)
