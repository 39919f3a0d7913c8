"""The composition root: which adapter serves which URL, and how settings become relays and consumers.

Adapters are imported where they are chosen, so a process needs the extras of what it uses and no others.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.core.broker import Broker
from sagapost.core.errors import ConfigurationError
from sagapost.core.observer import Observer, Observers
from sagapost.core.outbox_store import OutboxStore
from sagapost.core.schema import SchemaPart
from sagapost.inbox.inbox import Inbox
from sagapost.ops import database
from sagapost.ops.daemon import Requirement, Worker
from sagapost.ops.log_observer import LogObserver
from sagapost.ops.services import (
    BacklogService,
    CompensatorService,
    ConsumerService,
    RelayService,
)
from sagapost.ops.settings import LoadedSettings
from sagapost.ops.tracker import TrackerService, WatchService
from sagapost.outbox import Outbox
from sagapost.sagas import Sagas
from sagapost.sagas.choreography import Choreography
from sagapost.sagas.declaration import sagas_of
from sagapost.sagas.tracker import Rule, Tracker, TrackerConsumerSettings, TrackerSettings, Watch

if TYPE_CHECKING:
    from sagapost.ops.telemetry import OpenTelemetryMetrics

__all__ = ["Composition", "make_broker", "make_metrics", "make_store"]


def make_broker(loaded: LoadedSettings) -> Broker:
    """Return the broker adapter for the settings' URL; it opens nothing yet.

    :raises MissingExtraError: if its driver is not installed.
    """
    from sagapost.adapters.cloudevents import StrangerPolicy

    settings, url = loaded.settings, loaded.broker_url
    strangers = StrangerPolicy(without_id=settings.strangers_without_id)
    if url.scheme == "memory":
        from sagapost.adapters.memory import MemoryBroker

        return MemoryBroker(max_message_bytes=settings.broker_max_message_bytes, stranger_policy=strangers)
    from sagapost.adapters.rabbitmq import RabbitMQBroker

    return RabbitMQBroker(
        url.reveal(),
        exchange=settings.exchange,
        queue_type=settings.queue_type,
        heartbeat=settings.broker_heartbeat,
        connect_timeout=settings.broker_connect_timeout,
        confirm_timeout=settings.broker_confirm_timeout,
        max_message_bytes=settings.broker_max_message_bytes,
        delivery_limit=settings.broker_delivery_limit,
        max_buffered_bytes=settings.broker_max_buffered_bytes,
        stranger_policy=strangers,
    )


def make_store(loaded: LoadedSettings) -> OutboxStore:
    """Return the outbox adapter for the settings' URL; it opens nothing yet.

    :raises MissingExtraError: if its driver is not installed.
    """
    settings, url = loaded.settings, loaded.database_url
    tables = database.tables_of(settings).outbox
    if url.scheme.startswith("sqlite"):
        from sagapost.adapters.sqlite import SQLiteOutboxStore

        return SQLiteOutboxStore(url.reveal(), tables=tables)
    from sagapost.adapters.postgresql import PostgreSQLOutboxStore

    direct = settings.database_direct_url
    return PostgreSQLOutboxStore(
        url.reveal(),
        tables=tables,
        direct_url=direct.reveal() if direct is not None else None,
        call_timeout=settings.database_call_timeout.total_seconds(),
        connect_timeout=settings.database_connect_timeout.total_seconds(),
    )


def make_metrics(loaded: LoadedSettings) -> OpenTelemetryMetrics | None:
    """Return where figures go, if anywhere.

    :raises MissingExtraError: if OpenTelemetry is asked for and not installed.
    """
    if loaded.settings.metrics == "none":
        return None
    from sagapost.ops.telemetry import OpenTelemetryMetrics

    return OpenTelemetryMetrics(system="memory" if loaded.broker_url.scheme == "memory" else "rabbitmq")


class Composition:
    """What one process is put together from; entered once, inside its event loop.

    One broker (the memory broker only connects those who share the object) and one engine serve all its workers.
    """

    def __init__(self, loaded: LoadedSettings) -> None:
        self._loaded = loaded
        self._broker = make_broker(loaded)
        self._engines: list[AsyncEngine] = []
        self._metrics = make_metrics(loaded)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            for engine in self._engines:
                await engine.dispose()

    @property
    def crosses_processes(self) -> bool:
        """Whether other processes can hear what is published."""
        return self._broker.capabilities.crosses_processes

    # --- what must be there first ---

    def outbox_there(self) -> Requirement:
        """The database answers and holds this release's outbox."""

        async def check() -> None:
            store = make_store(self._loaded)
            try:
                await store.check_schema()
            finally:
                await store.aclose()

        return Requirement("database", check)

    def inboxes_there(self, inboxes: Sequence[Inbox]) -> Requirement:
        """The database answers and holds this release's tables for each inbox and what it publishes through."""
        needed: dict[Table, list[SchemaPart]] = {}
        for inbox in inboxes:
            sagas = sagas_of(inbox)
            for tables in (
                inbox.tables,
                inbox.outbox.tables if inbox.outbox is not None else None,
                sagas.tables if sagas is not None else None,
            ):
                if tables is not None and tables.part not in needed.setdefault(tables.versions, []):
                    needed[tables.versions].append(tables.part)

        async def check() -> None:
            async with database.connect(self._loaded) as connection:
                for versions, parts in needed.items():
                    await database.check(connection, versions, parts)

        return Requirement("database", check)

    def broker_there(self, inboxes: Sequence[Inbox] = ()) -> Requirement:
        """The broker answers, takes the credentials, and has or lets us make the exchange and the inboxes' queues.

        All queues exist before anything runs: an event counts as routed once *one* queue has it, so a relay in
        the same process would publish past an inbox that is slower to subscribe.
        """

        async def check() -> None:
            await self._broker.declare(*(inbox.queue for inbox in inboxes))

        return Requirement("broker", check)

    def require_one_outbox(self, inboxes: Sequence[Inbox]) -> None:
        """Make sure that a relay with these settings reads what the inboxes publish.

        :raises ConfigurationError: if an inbox publishes into other tables.
        """
        read = database.tables_of(self._loaded.settings).outbox.outbox.fullname
        for inbox in inboxes:
            written = inbox.outbox.tables.outbox.fullname if inbox.outbox is not None else read
            if written != read:
                raise ConfigurationError(
                    f"The inbox {inbox.name!r} publishes into the table {written!r}, and the relay would read "
                    f"{read!r}. Set SAGAPOST_DATABASE_SCHEMA and SAGAPOST_TABLE_PREFIX to what its OutboxTables has."
                )

    # --- what runs ---

    def _observer(self, logger: str) -> Observer:
        log = LogObserver(logging.getLogger(logger))
        return log if self._metrics is None else Observers([log, self._metrics])

    def watchers(self) -> list[Worker]:
        """What measures how far behind the outbox is, where there are metrics."""
        metrics = self._metrics
        if metrics is None:
            return []
        observer = self._observer("sagapost.relay")

        def make() -> BacklogService:
            return BacklogService(make_store(self._loaded), metrics.backlog, observer)

        return [Worker("backlog", make, timedelta(seconds=1))]

    def relay(self) -> Worker:
        """A relay on the settings' outbox."""
        settings = self._loaded.settings.relay_settings()
        observer = self._observer("sagapost.relay")

        def make() -> RelayService:
            return RelayService(make_store(self._loaded), self._broker, settings, observer)

        return Worker("relay", make, settings.drain_timeout)

    def consumers(self, inboxes: Sequence[Inbox]) -> list[Worker]:
        """A consumer for each inbox, on one engine whose pool has room for all of them."""
        settings = self._loaded.settings.consumer_settings()
        engine = database.make_consumer_engine(self._loaded, inboxes=len(inboxes))
        self._engines.append(engine)

        def worker(inbox: Inbox) -> Worker:
            observer = self._observer("sagapost.inbox")

            def make() -> ConsumerService:
                return ConsumerService(inbox, engine, self._broker, settings, observer)

            return Worker(f"inbox {inbox.name}", make, settings.drain_timeout)

        return [worker(inbox) for inbox in inboxes] + self._compensators(inboxes, engine)

    def _compensators(self, inboxes: Sequence[Inbox], engine: AsyncEngine) -> list[Worker]:
        """A compensator for each inbox whose handlers are steps of sagas."""
        observer = LogObserver(logging.getLogger("sagapost.sagas"))
        drain = self._loaded.settings.consumer_settings().drain_timeout

        def worker(sagas: Sagas) -> Worker:
            def make() -> CompensatorService:
                return CompensatorService(sagas, engine, observer)

            return Worker(f"compensator {sagas.service}", make, drain)

        found = (sagas_of(inbox) for inbox in inboxes)
        return [worker(sagas) for sagas in found if sagas is not None]

    def tracker(
        self,
        choreography: Choreography | None,
        *,
        keys: Sequence[str],
        ends: Sequence[str],
        rules: Sequence[Rule],
        queue: str,
    ) -> tuple[list[Requirement], list[Worker]]:
        """A tracker on the settings' database, and what must be there first."""
        engine = database.make_consumer_engine(self._loaded, inboxes=1)
        self._engines.append(engine)
        tables = database.tables_of(self._loaded.settings)
        tracker = Tracker(
            engine,
            choreography,
            tables=tables.tracker,
            settings=TrackerSettings(keys=tuple(keys), ends=tuple(ends)),
        )
        observer = LogObserver(logging.getLogger("sagapost.tracker"))
        drain = self._loaded.settings.consumer_settings().drain_timeout
        consumer = TrackerConsumerSettings(queue=queue)

        def make() -> TrackerService:
            return TrackerService(tracker, self._broker, consumer, observer)

        workers = [Worker("tracker", make, drain)]
        if rules:
            outbox = Outbox(source="urn:sagapost:tracker", tables=tables.outbox)

            def make_watch() -> WatchService:
                return WatchService(Watch(tracker, rules, outbox=outbox, observer=observer))

            workers.append(Worker("watch", make_watch, drain))
        return [Requirement("database", tracker.check)], workers
