"""Waiting for the database: one task asks, everybody else waits for its answer."""

from __future__ import annotations

import anyio

from sagapost.core.backoff import Backoff
from sagapost.core.clock import Clock
from sagapost.core.errors import StoreUnavailableError
from sagapost.core.observer import Observer
from sagapost.inbox.database import Database
from sagapost.inbox.observations import StoreLost, StoreReady

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
        self.lost_at: float | None = None
        """When it was found to be down, by the clock's monotonic time; None: it serves, as far as is known."""

    async def restored(self, error: StoreUnavailableError) -> bool:
        """Wait until the database answers; False if the consumer is to stop before."""
        seen = self._recoveries
        async with self._lock:
            if self._recoveries > seen:
                # Somebody else waited for the same outage while this task waited for the lock.
                return not self._stop.is_set()
            attempt = 0
            self.lost_at = self._clock.monotonic()
            while not self._stop.is_set():
                attempt += 1
                delay = self._backoff.seconds(attempt)
                self._observer.notify(StoreLost(self._consumer, self._database.address, str(error), attempt, delay))
                with anyio.move_on_after(delay):
                    await self._stop.wait()
                try:
                    await self._database.ping()
                except StoreUnavailableError as still:
                    error = still
                else:
                    self._recoveries += 1
                    self.lost_at = None
                    self._observer.notify(StoreReady(self._consumer, self._database.address))
                    break
        return not self._stop.is_set()
