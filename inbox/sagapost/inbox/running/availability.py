"""Waiting for the database: one task asks, everybody else waits for its answer."""

from __future__ import annotations

from datetime import timedelta

import anyio

from sagapost.core.backoff import Backoff
from sagapost.core.clock import Clock
from sagapost.core.errors import StoreUnavailableError
from sagapost.core.observer import Observer
from sagapost.inbox.declared.observations import StoreLost, StoreReady
from sagapost.inbox.kept.database import Database

__all__ = ["Availability"]


class Availability:
    """Whether the database serves. While it does not, nothing is acknowledged and no attempt is counted."""

    def __init__(
        self,
        database: Database,
        backoff: Backoff,
        observer: Observer,
        clock: Clock,
        *,
        consumer: str,
        stop: anyio.Event,
    ) -> None:
        self._database = database
        self._backoff = backoff
        self._observer = observer
        self._clock = clock
        self._consumer = consumer
        self._stop = stop
        self._lock = anyio.Lock()
        self._recoveries = 0
        # Of attempts since something last worked: a database that answers and still fails our statements (a table
        # that was altered) must not be asked again at full speed.
        self._attempt = 0
        self._lost_at: float | None = None
        self._lost = anyio.Event()

    def worked(self) -> None:
        """Take note that something was committed."""
        self._attempt = 0

    async def lost_for(self, limit: timedelta) -> bool:
        """Wait for an outage; return whether it lasted this long (and lasts)."""
        await self._lost.wait()
        began = self._lost_at
        if began is not None:
            await self._clock.sleep(max(0.0, began + limit.total_seconds() - self._clock.monotonic()))
        return began is not None and self._lost_at == began

    async def restored(self, error: StoreUnavailableError) -> bool:
        """Wait until the database answers; False if the consumer is to stop and it does not.

        One that is to stop, and whose database answers, has what is left of its drain budget to try again.
        """
        seen = self._recoveries
        async with self._lock:
            if self._recoveries > seen:
                # Somebody else waited for the same outage while this task waited for the lock.
                return True
            self._lost_at = self._clock.monotonic()
            self._lost.set()
            while True:
                self._attempt += 1
                delay = self._backoff.seconds(self._attempt)
                self._observer.notify(
                    StoreLost(self._consumer, self._database.address, str(error), self._attempt, delay)
                )
                with anyio.move_on_after(delay):
                    await self._stop.wait()
                try:
                    await self._database.ping()
                except StoreUnavailableError as still:
                    error = still
                    if self._stop.is_set():
                        return False
                    continue
                self._recoveries += 1
                self._lost_at = None
                self._lost = anyio.Event()
                self._observer.notify(StoreReady(self._consumer, self._database.address))
                if self._stop.is_set():
                    # It was a statement of ours that failed: not again at full speed.
                    await anyio.sleep(delay)
                return True
