"""The consumers of a process: one for each inbox, and a compensator for each whose handlers are steps of sagas."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anyio
from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.core.adapters import EngineOptions
from sagapost.core.broker import Broker
from sagapost.core.errors import ConfigurationError
from sagapost.core.observer import Observation, Observer, Observers
from sagapost.core.schema import SchemaPart
from sagapost.inbox.declared.inbox import Inbox
from sagapost.inbox.declared.observations import ConsumerStopped
from sagapost.inbox.declared.settings import ConsumerSettings
from sagapost.inbox.handling.faults import kind_of
from sagapost.inbox.kept.database import HOUSEKEEPING
from sagapost.inbox.running.consumer import Consumer
from sagapost.ops import database
from sagapost.ops.composition import Composition
from sagapost.ops.daemon import Requirement, Worker
from sagapost.ops.settings import LoadedSettings
from sagapost.ops.tables import tables_of
from sagapost.sagas import Compensator, CompensatorSettings, Sagas
from sagapost.sagas.choreography import Severity
from sagapost.sagas.inflight import check_in_flight
from sagapost.sagas.manifests import sagas_of
from sagapost.sagas.observations import InFlightNotKnown

_log = logging.getLogger("sagapost.sagas")

_LONGEST_LOOK = 30
"""Seconds that a look at what is in flight may take at start."""

__all__ = ["LookAtStart", "consumers", "inboxes_there", "make_consumer_engine", "parts_of", "require_one_outbox"]


def inboxes_there(composition: Composition, inboxes: Sequence[Inbox]) -> Requirement:
    """The database answers and holds this release's tables for each inbox and what it publishes through."""
    needed = parts_of(inboxes)

    async def check() -> None:
        async with database.connect(composition.loaded) as connection:
            for versions, parts in needed.items():
                await database.check(connection, versions, parts)

    return Requirement("database", check)


def parts_of(inboxes: Sequence[Inbox]) -> dict[Table, list[SchemaPart]]:
    """Return what inboxes need of a database: the parts, by the table that says of which version they are."""
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
    return needed


def require_one_outbox(composition: Composition, inboxes: Sequence[Inbox]) -> None:
    """Make sure that a relay with these settings reads what the inboxes publish.

    :raises ConfigurationError: if an inbox publishes into other tables.
    """
    read = tables_of(composition.loaded.settings).outbox.outbox.fullname
    for inbox in inboxes:
        written = inbox.outbox.tables.outbox.fullname if inbox.outbox is not None else read
        if written != read:
            raise ConfigurationError(
                f"The inbox {inbox.name!r} publishes into the table {written!r}, and the relay would read "
                f"{read!r}. Set SAGAPOST_DATABASE_SCHEMA and SAGAPOST_TABLE_PREFIX to what its OutboxTables has."
            )


def consumers(composition: Composition, inboxes: Sequence[Inbox]) -> list[Worker]:
    """A consumer for each inbox, on one engine whose pool has room for all of them, and their compensators."""
    settings = composition.loaded.settings.consumer
    engine = composition.owns(make_consumer_engine(composition.loaded, inboxes=len(inboxes)))
    observer = composition.observer("sagapost.inbox")

    def worker(inbox: Inbox) -> Worker:
        def make() -> ConsumerService:
            return ConsumerService(inbox, engine, composition.broker, settings, observer)

        return Worker(f"inbox {inbox.name}", make, settings.drain_timeout)

    return [worker(inbox) for inbox in inboxes] + _compensators(composition, inboxes, engine)


def _compensators(composition: Composition, inboxes: Sequence[Inbox], engine: AsyncEngine) -> list[Worker]:
    observer = composition.log_observer("sagapost.sagas")
    drain = composition.loaded.settings.consumer.drain_timeout
    look = LookAtStart(inboxes, engine, observer)

    def worker(sagas: Sagas) -> Worker:
        def make() -> CompensatorService:
            return CompensatorService(sagas, engine, observer, look)

        return Worker(f"compensator {sagas.service}", make, drain)

    found = (sagas_of(inbox) for inbox in inboxes)
    return [worker(sagas) for sagas in found if sagas is not None]


def make_consumer_engine(loaded: LoadedSettings, *, inboxes: int) -> AsyncEngine:
    """Return the engine whose transactions the handlers of `inboxes` inboxes run in; nothing is opened yet."""
    settings = loaded.settings
    # As many as can be in use at once: waiting for the pool would look like a database that does not answer.
    # An inbox may have a compensator beside it.
    room = inboxes * (settings.consumer.concurrency + HOUSEKEEPING + CompensatorSettings().concurrency)
    options = EngineOptions(
        connect_timeout=settings.connections.database_connect_timeout,
        pool_size=room,
        turn_timeout=settings.consumer.database_timeout,
        name="sagapost-consumer",
    )
    return database.make_engine(loaded.database_url, options)


class _LeftInFlight:
    """Remembers what a consumer says when it ends."""

    def __init__(self) -> None:
        self.count = 0

    def notify(self, event: Observation, /) -> None:
        if isinstance(event, ConsumerStopped):
            self.count = event.unfinished


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
        """See `Supervised.run`."""
        await self._consumer.run()
        return self._left.count

    def stop(self) -> None:
        """See `Supervised.stop`."""
        self._consumer.stop()


class LookAtStart:
    """Names what is in flight and has no name in this code: help for whoever reads the log, and nothing else.

    Once in a process, however many services it runs: a look reads what all of them have in flight.
    """

    def __init__(self, inboxes: Sequence[Inbox], engine: AsyncEngine, observer: Observer) -> None:
        self._inboxes = inboxes
        self._engine = engine
        self._observer = observer
        self._begun = False

    async def once(self) -> None:
        """Look, unless somebody has."""
        if self._begun:
            return
        self._begun = True
        try:
            with anyio.fail_after(_LONGEST_LOOK):
                async with self._engine.connect() as connection:
                    report = await connection.run_sync(lambda sync: check_in_flight(sync, self._inboxes, deep=False))
        except Exception as error:
            _log.info("what is in flight could not be compared with the code at start: %s", kind_of(error))
            return
        services = {sagas.service for sagas in map(sagas_of, self._inboxes) if sagas is not None}
        for found in report.findings:
            if found.service in services and found.severity is Severity.ERROR:
                saga = found.sagas[0] if found.sagas else None
                self._observer.notify(
                    InFlightNotKnown(
                        found.service, found.kind, found.subject, found.count, saga, found.message, found.remedy
                    )
                )


class CompensatorService:
    """One service's compensator, for one run."""

    def __init__(self, sagas: Sagas, engine: AsyncEngine, observer: Observer, look: LookAtStart) -> None:
        self._look = look
        self._compensator = Compensator(sagas, engine, observer=observer)

    async def run(self) -> int:
        """See `Supervised.run`. A compensation that is cut off is undone by the database, so nothing is left."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look.once)
            await self._compensator.run()
            tasks.cancel_scope.cancel()
        return 0

    def stop(self) -> None:
        """See `Supervised.stop`."""
        self._compensator.stop()
