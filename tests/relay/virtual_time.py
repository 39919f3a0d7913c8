"""An event loop on which hours pass in milliseconds: whenever nothing can run, its clock jumps to the next timer.

    @pytest.fixture
    def anyio_backend() -> tuple[str, dict[str, object]]:
        return VIRTUAL_TIME

For code that waits only on timers and on other tasks: a reply from a thread or a server takes no virtual time, so the
clock would run away while it is on its way.
"""

from __future__ import annotations

import asyncio
import selectors
from datetime import UTC, datetime, timedelta

import anyio

__all__ = ["VIRTUAL_TIME", "LoopClock", "VirtualTimeLoop"]


class _JumpingSelector(selectors.DefaultSelector):
    """Polls, and turns what the loop would have waited into a jump of its clock."""

    elapsed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready now; if that is nothing, the time has passed."""
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise AssertionError("every task waits and no timer is set: nothing would ever happen again")
        self.elapsed += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose `time` is virtual."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return virtual seconds."""
        return self._jumping.elapsed


VIRTUAL_TIME: tuple[str, dict[str, object]] = ("asyncio", {"loop_factory": VirtualTimeLoop})
"""For a module's fixture `anyio_backend`."""


class LoopClock:
    """A `Clock` on the running loop's time."""

    def now(self) -> datetime:
        """Return the time of day, starting at a fixed moment."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        """Return the loop's time."""
        return anyio.current_time()

    async def sleep(self, seconds: float) -> None:
        """Wait on the loop."""
        await anyio.sleep(seconds)
