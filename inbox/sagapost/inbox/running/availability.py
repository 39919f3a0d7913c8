"""Waiting for the database: one task asks, everybody else waits for its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import anyio

from sagapost.core.errors import StoreUnavailableError
from sagapost.core.life import Attempts, Runtime, Signal
from sagapost.inbox.kept.database import Database

__all__ = ["Availability"]

T = TypeVar("T")


class Availability:
    """Whether the database serves. While it does not, nothing is acknowledged and no attempt is counted."""

    def __init__(self, database: Database, runtime: Runtime) -> None:
        self._database = database
        self._runtime = runtime
        self._lock = anyio.Lock()
        self._recoveries = 0
        # Counted since something last worked: a database that answers and still fails our statements (a table that
        # was altered) must not be asked again at full speed.
        self._attempts = Attempts(runtime)
        self._lost_at: float | None = None
        self._lost = Signal()

    def worked(self) -> None:
        """Take note that something was committed."""
        self._attempts.begin_anew()

    async def lost_for(self, limit: timedelta) -> bool:
        """Wait for an outage; return whether it lasted this long (and lasts). For one task at a time."""
        while (began := self._lost_at) is None:
            await self._lost.wait()
        clock = self._runtime.clock
        await clock.sleep(max(0.0, began + limit.total_seconds() - clock.monotonic()))
        return self._lost_at == began

    async def restored(self, error: StoreUnavailableError) -> bool:
        """Wait until the database answers; False if the consumer is to stop and it does not.

        One that is to stop, and whose database answers, has what is left of its drain budget to try again.
        """
        seen = self._recoveries
        async with self._lock:
            if self._recoveries > seen:
                # Somebody else waited for the same outage while this task waited for the lock.
                return True
            self._lost_at = self._runtime.clock.monotonic()
            self._lost.set()
            if not await self._attempts.outlast(error, self._database.ping):
                return False
            self._recoveries += 1
            self._lost_at = None
            return True

    async def until_available(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Repeat a call while the database cannot be reached; return its result, or None if stopped before."""
        while not self._runtime.stop.is_set():
            try:
                return await call()
            except StoreUnavailableError as error:
                await self.restored(error)
        return None
