"""Relays and consumers as services of the daemon: what they left in flight, taken from what they report."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.core.broker import Broker
from sagapost.core.errors import StoreUnavailableError
from sagapost.core.observer import Observation, Observer, Observers
from sagapost.core.outbox_store import OutboxBacklog, OutboxStore
from sagapost.inbox.consumer import Consumer
from sagapost.inbox.inbox import Inbox
from sagapost.inbox.observations import ConsumerStopped
from sagapost.inbox.settings import ConsumerSettings
from sagapost.outbox.relay import Relay, RelaySettings
from sagapost.outbox.relay.observations import RelayStopped, StoreLost
from sagapost.sagas import Compensator, Sagas

__all__ = ["BacklogService", "CompensatorService", "ConsumerService", "RelayService"]


class _LeftInFlight:
    """Remembers what a relay or consumer says when it ends."""

    def __init__(self) -> None:
        self.count = 0

    def notify(self, event: Observation, /) -> None:
        if isinstance(event, RelayStopped):
            self.count = event.left_in_flight
        elif isinstance(event, ConsumerStopped):
            self.count = event.unfinished


class RelayService:
    """One relay, for one run."""

    def __init__(self, store: OutboxStore, broker: Broker, settings: RelaySettings, observer: Observer) -> None:
        self._left = _LeftInFlight()
        self._relay = Relay(store, broker, settings=settings, observer=Observers([observer, self._left]))

    async def run(self) -> int:
        """See `Service.run`."""
        await self._relay.run()
        return self._left.count

    def stop(self) -> None:
        """See `Service.stop`."""
        self._relay.stop()


class BacklogService:
    """Looks now and then how far behind the outbox is, and reports it."""

    def __init__(
        self, store: OutboxStore, report: Callable[[OutboxBacklog], None], observer: Observer, *, every: float = 15.0
    ) -> None:
        self._store = store
        self._report = report
        self._observer = observer
        self._every = every
        self._stopped = anyio.Event()

    async def run(self) -> int:
        """See `Service.run`. A database that is away is waited for; there is nothing to leave behind."""
        try:
            while not self._stopped.is_set():
                try:
                    self._report(await self._store.backlog())
                except StoreUnavailableError as error:
                    self._observer.notify(StoreLost(self._store.address, str(error), 0, self._every))
                with anyio.move_on_after(self._every):
                    await self._stopped.wait()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await self._store.aclose()
        return 0

    def stop(self) -> None:
        """See `Service.stop`."""
        self._stopped.set()


class ConsumerService:
    """One inbox's consumer, for one run."""

    def __init__(
        self, inbox: Inbox, engine: AsyncEngine, broker: Broker, settings: ConsumerSettings, observer: Observer
    ) -> None:
        self._left = _LeftInFlight()
        self._consumer = Consumer(
            inbox, engine=engine, broker=broker, settings=settings, observer=Observers([observer, self._left])
        )

    async def run(self) -> int:
        """See `Service.run`."""
        await self._consumer.run()
        return self._left.count

    def stop(self) -> None:
        """See `Service.stop`."""
        self._consumer.stop()


class CompensatorService:
    """One service's compensator, for one run."""

    def __init__(self, sagas: Sagas, engine: AsyncEngine, observer: Observer) -> None:
        self._compensator = Compensator(sagas, engine, observer=observer)

    async def run(self) -> int:
        """See `Service.run`. A compensation that is cut off is undone by the database, so nothing is left."""
        await self._compensator.run()
        return 0

    def stop(self) -> None:
        """See `Service.stop`."""
        self._compensator.stop()
