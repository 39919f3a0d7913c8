"""Time as a port, so that hours of outage or a week of retention pass in a test within milliseconds."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

import anyio

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Where the process gets its time and its waiting from.

    Leases, schedules, and retention windows are decided by the *database's* clock, never by this one: this clock
    only stamps events and paces local loops, so skew between hosts costs nothing.
    """

    def now(self) -> datetime:
        """Return the wall-clock time, timezone-aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds from an arbitrary origin; never goes backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait `seconds`; cancellable."""
        ...


class SystemClock:
    """The real clock."""

    def now(self) -> datetime:
        """Return the host's wall-clock time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return the host's monotonic time in seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait `seconds` on the running event loop."""
        await anyio.sleep(seconds)
