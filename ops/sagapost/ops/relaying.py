"""The relay of a process, and what measures how far behind its outbox is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import anyio

from sagapost.core.broker import Broker
from sagapost.core.life import Runtime
from sagapost.core.observer import Observation, Observer, Observers
from sagapost.core.outbox_store import OutboxBacklog, OutboxStore
from sagapost.ops.adapters import make_store
from sagapost.ops.composition import Composition
from sagapost.ops.daemon import Requirement, Worker
from sagapost.outbox.relay import Relay, RelaySettings
from sagapost.outbox.relay.observations import RelayStopped

__all__ = ["BacklogService", "RelayService", "outbox_there", "relays"]


def outbox_there(composition: Composition) -> Requirement:
    """The database answers and holds this release's outbox."""

    async def check() -> None:
        store = make_store(composition.loaded)
        try:
            await store.check_schema()
        finally:
            await store.aclose()

    return Requirement("database", check)


def relays(composition: Composition) -> list[Worker]:
    """A relay on the settings' outbox and, where there are metrics, what measures how far behind it is."""
    loaded = composition.loaded
    settings = loaded.settings.relay
    observer = composition.observer("sagapost.relay")

    def make() -> RelayService:
        return RelayService(make_store(loaded), composition.broker, settings, observer)

    workers = [Worker("relay", make, settings.drain_timeout)]
    metrics = composition.metrics
    if metrics is not None:
        report = metrics.backlog

        def make_backlog() -> BacklogService:
            return BacklogService(make_store(loaded), report, observer)

        workers.append(Worker("backlog", make_backlog, timedelta(seconds=1)))
    return workers


class _LeftInFlight:
    """Remembers what a relay says when it ends."""

    def __init__(self) -> None:
        self.count = 0

    def notify(self, event: Observation, /) -> None:
        if isinstance(event, RelayStopped):
            self.count = event.left_in_flight


class RelayService:
    """One relay, for one run."""

    def __init__(self, store: OutboxStore, broker: Broker, settings: RelaySettings, observer: Observer) -> None:
        self._left = _LeftInFlight()
        self._relay = Relay(store, broker, settings=settings, observer=Observers([observer, self._left]))

    async def run(self) -> int:
        """See `Supervised.run`."""
        await self._relay.run()
        return self._left.count

    def stop(self) -> None:
        """See `Supervised.stop`."""
        self._relay.stop()


class BacklogService:
    """Looks now and then how far behind the outbox is, and reports it."""

    def __init__(
        self, store: OutboxStore, report: Callable[[OutboxBacklog], None], observer: Observer, *, every: float = 15.0
    ) -> None:
        self._store = store
        self._report = report
        self._every = timedelta(seconds=every)
        self._runtime = Runtime("backlog", observer=observer)

    async def run(self) -> int:
        """See `Supervised.run`. A database that is away is waited for; there is nothing to leave behind."""
        try:
            await self._runtime.every(self._every, self._measure)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await self._store.aclose()
        return 0

    async def _measure(self) -> None:
        self._report(await self._store.backlog.measure())

    def stop(self) -> None:
        """See `Supervised.stop`."""
        self._runtime.stop.set()
