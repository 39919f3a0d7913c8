"""A small service with an inbox, an outbox and a ledger, for the tests of recovery, tasks and islands."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.adapters.sqlite import SQLiteOutboxStore
from sagapost.core import Backoff, Event, Observation, event, new_id
from sagapost.core.broker import Broker, Outgoing
from sagapost.core.codec import encode_data
from sagapost.core.naming import event_type_of
from sagapost.core.outbox_store import OutboxStore
from sagapost.core.schema import install_schema
from sagapost.inbox import Consumer, ConsumerSettings, Inbox, InboxTables, RetryPolicy
from sagapost.outbox import Outbox, OutboxTables
from sagapost.outbox.relay import Relay, RelaySettings
from sagapost.sagas import Sagas, SagaTables, TaskDesk
from tests.inbox.harness import Recorder
from tests.sagas.virtual_time import VirtualTime

__all__ = ["SAGA", "OrderPacked", "OrderShipped", "ShippingFailed", "Warehouse", "an_event", "made"]

SAGA = "order-4711"


@event("warehouse.order-packed.v1")
class OrderPacked(msgspec.Struct):
    """What the step under test handles."""

    order_id: str


@event("warehouse.order-shipped.v1")
class OrderShipped(msgspec.Struct):
    """The step's result."""

    order_id: str
    courier: str = ""


@event("warehouse.shipping-failed.v1")
class ShippingFailed(msgspec.Struct):
    """The step's declared failure."""

    order_id: str


class Warehouse:
    """A service; its handlers are declared by each test."""

    def __init__(self, engine: AsyncEngine, clock: VirtualTime, **inbox: Any) -> None:
        self.engine = engine
        self.clock = clock
        self.metadata = MetaData()
        self.outbox = Outbox(source="https://warehouse.example", tables=OutboxTables(self.metadata), clock=clock)
        self.tables = InboxTables(self.metadata)
        self.saga_tables = SagaTables(self.metadata)
        self.sagas = Sagas("warehouse", outbox=self.outbox, tables=self.saga_tables, clock=clock)
        self.inbox = Inbox("warehouse", outbox=self.outbox, tables=self.tables, context=self.sagas.context, **inbox)
        self.effects = Table(
            "effects",
            self.metadata,
            Column("id", Integer, primary_key=True),
            Column("what", String(64), nullable=False),
        )
        self.desk = TaskDesk(engine, sagas=self.saga_tables, outbox=self.outbox.tables, inbox=self.tables, clock=clock)
        self.sessions = async_sessionmaker(engine, expire_on_commit=False)
        self.broker: Broker = MemoryBroker()
        self.seen = Recorder()

    async def install(self) -> None:
        """Create the tables."""
        parts = [self.outbox.tables.part, self.tables.part, self.saga_tables.part]
        async with self.engine.begin() as connection:
            await connection.run_sync(lambda sync: install_schema(sync, self.tables.versions, parts))
            await connection.run_sync(lambda sync: self.effects.create(sync))

    async def write(self, session: AsyncSession, what: str) -> None:
        """Have an effect."""
        await session.execute(self.effects.insert().values(what=what))

    async def effects_had(self) -> list[str]:
        """Return the effects, in order."""
        return [row.what for row in await self.rows(self.effects)]

    async def published(self) -> list[str]:
        """Return the types of the events in the outbox, in order."""
        return [row.type for row in await self.rows(self.outbox.tables.outbox)]

    async def rows(self, table: Table) -> Sequence[Any]:
        """Return all rows of a table, by primary key."""
        async with self.engine.connect() as connection:
            return (await connection.execute(select(table).order_by(*table.primary_key))).all()

    async def saga_state(self) -> str | None:
        """Return the state of this service's part of the saga."""
        rows = await self.rows(self.saga_tables.states)
        return rows[0].state if rows else None

    async def send(self, *events: Event, topic: str | None = None) -> None:
        """Put events into the queue."""
        await self.broker.declare(self.inbox.queue)
        async with self.broker.publisher() as publisher:
            confirmation = await publisher.send([Outgoing(event, topic or event.type) for event in events])
            await confirmation.wait()

    @asynccontextmanager
    async def consuming(self, *, broker: Broker | None = None, **settings: Any) -> AsyncGenerator[Recorder, None]:
        """Run a consumer in the block."""
        values: dict[str, Any] = {
            "retry": RetryPolicy(quick=0, attempts=1),
            "poll_interval": timedelta(milliseconds=10),
            "prune_interval": timedelta(days=1),
            "reconnect": Backoff(base=timedelta(milliseconds=20), cap=timedelta(milliseconds=100)),
        }
        consumer = Consumer(
            self.inbox,
            engine=self.engine,
            broker=broker if broker is not None else self.broker,
            settings=ConsumerSettings(**{**values, **settings}),
            observer=self.seen,
            clock=self.clock,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            try:
                yield self.seen
                consumer.stop()
            except BaseException:
                tasks.cancel_scope.cancel()
                raise

    @asynccontextmanager
    async def relaying(self) -> AsyncGenerator[None, None]:
        """Run a relay from this service's outbox to its broker in the block."""
        await self.broker.declare(self.inbox.queue)
        relay = Relay(
            self.store(),
            self.broker,
            settings=RelaySettings(poll_interval=timedelta(milliseconds=20)),
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay.run)
            try:
                yield
                relay.stop()
            except BaseException:
                tasks.cancel_scope.cancel()
                raise

    def store(self) -> OutboxStore:
        """Return a relay's access to the outbox."""
        url = self.engine.url.render_as_string(hide_password=False)
        if self.engine.dialect.name == "sqlite":
            return SQLiteOutboxStore(url, tables=self.outbox.tables)
        return PostgreSQLOutboxStore(url, tables=self.outbox.tables)


def an_event(payload: object, *, saga: str | None = SAGA, key: str | None = None, **attributes: Any) -> Event:
    """Return an event as a producer's outbox makes it."""
    event_type = attributes.pop("event_type", None) or event_type_of(type(payload))
    data, media_type = encode_data(payload, event_type=event_type)
    values: dict[str, Any] = {
        "source": "https://packing.example",
        "time": datetime.now(UTC),
        "datacontenttype": media_type,
        "correlationid": saga,
    }
    return Event(
        id=attributes.pop("id", None) or new_id(),
        type=event_type,
        data=data,
        partitionkey=key,
        **{**values, **attributes},
    )


@asynccontextmanager
async def made(request: pytest.FixtureRequest, tmp_path: Path, **inbox: Any) -> AsyncGenerator[Warehouse, None]:
    """Make a service on the database named by the fixture's parameter, under virtual time."""
    clock = VirtualTime()
    if getattr(request, "param", "postgresql") == "sqlite":
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'warehouse.db'}")
    else:
        url = request.getfixturevalue("postgresql_url")
        await clock.install(url)
        engine = create_async_engine(url, pool_size=20)
    service = Warehouse(engine, clock, **inbox)
    await service.install()
    try:
        yield service
    finally:
        await engine.dispose()
        await clock.aclose()


def of_reason(reason: str) -> Callable[[Any], bool]:
    """Select the observations of parking for a reason."""
    return lambda seen: isinstance(seen, Observation) and getattr(seen, "reason", None) == reason
