"""What the inbox tests share: a small service with its tables, an observer to wait on, and ways to put messages in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import anyio
import msgspec
from sqlalchemy import Column, Integer, MetaData, String, Table, Text, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core import Backoff, Event, Observation, event, new_id
from sagapost.core.audit import DECISIONS, AuditEntry
from sagapost.core.broker import Broker, Confirmed, Outgoing
from sagapost.core.codec import encode_data
from sagapost.core.databases import kit_of
from sagapost.core.life import Server, ServerLost, Signal
from sagapost.core.naming import event_type_of
from sagapost.core.schema import install_schema
from sagapost.inbox import Consumer, ConsumerSettings, Inbox, InboxTables, RetryPolicy
from sagapost.inbox.running.counters import ConsumerStatistics
from sagapost.outbox import Outbox, OutboxTables

__all__ = [
    "FAST",
    "NEVER",
    "OrderPlaced",
    "Recorder",
    "Service",
    "StockReserved",
    "StockShort",
    "an_event",
    "running",
    "send",
]

BOUND = 60.0
"""Seconds after which a wait is a failure."""

PRODUCER = "https://orders.example"

E = TypeVar("E", bound=Observation)


@event("orders.order-placed.v1")
class OrderPlaced(msgspec.Struct):
    """What arrives."""

    order_id: str
    note: str = ""


@event("warehouse.stock-reserved.v1")
class StockReserved(msgspec.Struct):
    """What a handler publishes."""

    order_id: str


@event("warehouse.stock-short.v1")
class StockShort(msgspec.Struct):
    """The business failure."""

    order_id: str


NEVER = RetryPolicy(quick=0, attempts=1)
"""No retries at all."""

FAST = RetryPolicy(
    quick=0, attempts=100, backoff=Backoff(base=timedelta(milliseconds=1), cap=timedelta(milliseconds=2))
)
"""Rounds from the parked messages as fast as they come."""


def quick_settings(**changes: Any) -> ConsumerSettings:
    """Settings that keep a test short."""
    values: dict[str, Any] = {
        "retry": NEVER,
        "poll_interval": timedelta(milliseconds=20),
        "reconnect": Backoff(base=timedelta(milliseconds=20), cap=timedelta(milliseconds=100)),
        "drain_timeout": timedelta(seconds=5),
    }
    return ConsumerSettings(**{**values, **changes})


class Service:
    """A service with an inbox, an outbox, and a table of the effects its handlers had."""

    def __init__(self, name: str = "warehouse", *, schema: str | None = None, **inbox: Any) -> None:
        self.metadata = MetaData()
        self.outbox = Outbox(
            source="https://warehouse.example", tables=OutboxTables(self.metadata, schema=schema, prefix="")
        )
        self.tables = InboxTables(self.metadata, schema=schema)
        self.effects = Table(
            "effects",
            self.metadata,
            Column("id", Integer, primary_key=True),
            Column("order_id", String(64), nullable=False),
            Column("note", Text, nullable=False, default=""),
            schema=schema,
        )
        self.inbox = Inbox(name, outbox=self.outbox, tables=self.tables, **inbox)

    async def install(self, engine: AsyncEngine) -> None:
        """Create the tables."""
        parts = [self.outbox.tables.part, self.tables.part]
        async with engine.begin() as connection:
            await connection.run_sync(lambda sync: install_schema(sync, self.tables.versions, parts))
            await connection.run_sync(lambda sync: self.effects.create(sync, checkfirst=True))

    def write(self, order_id: str, note: str = "") -> Any:
        """Return the INSERT of an effect."""
        return self.effects.insert().values(order_id=order_id, note=note)

    async def rows(self, engine: AsyncEngine, table: Table) -> Sequence[Any]:
        """Return all rows of a table, by primary key."""
        async with engine.connect() as connection:
            return (await connection.execute(select(table).order_by(*table.primary_key))).all()

    async def decisions(self, engine: AsyncEngine) -> list[AuditEntry]:
        """Return what operators decided, latest first."""
        async with engine.connect() as connection:
            rows = (
                await connection.execute(self.tables.audit.select(DECISIONS.select(), kit_of(engine), limit=1_000))
            ).all()
        return self.tables.audit.entries(rows)

    async def written(self, engine: AsyncEngine) -> list[str]:
        """Return the orders that had an effect, in the order of the effects."""
        return [row.order_id for row in await self.rows(engine, self.effects)]

    async def published(self, engine: AsyncEngine) -> list[str]:
        """Return the types of the events in the outbox, in order."""
        return [row.type for row in await self.rows(engine, self.outbox.tables.outbox)]

    async def parked(self, engine: AsyncEngine) -> Sequence[Any]:
        """Return the parked messages."""
        return await self.rows(engine, self.tables.parked)

    async def count(self, engine: AsyncEngine, table: Table) -> int:
        """Return how many rows a table has."""
        async with engine.connect() as connection:
            return (await connection.execute(select(func.count()).select_from(table))).scalar_one()


class Recorder:
    """Keeps every observation and lets a test wait for them."""

    def __init__(self) -> None:
        self.events: list[Observation] = []
        self._changed = Signal()

    def notify(self, event: Observation, /) -> None:
        """Keep it."""
        self.events.append(event)
        self._changed.set()

    def of(self, kind: type[E], where: Callable[[E], bool] = lambda _: True) -> list[E]:
        """Return what was seen of a kind."""
        return [event for event in self.events if isinstance(event, kind) and where(event)]

    async def until(self, kind: type[E], count: int = 1, where: Callable[[E], bool] = lambda _: True) -> list[E]:
        """Wait until so many were seen; return them."""
        await self.until_true(lambda: len(self.of(kind, where)) >= count, f"{count} {kind.__name__}")
        return self.of(kind, where)

    async def until_lost(self, server: Server, count: int = 1) -> list[ServerLost]:
        """Wait until a server was reported lost so many times; return the reports."""
        return await self.until(ServerLost, count, lambda event: event.server == server)

    async def until_true(self, condition: Callable[[], bool], what: str = "a condition") -> None:
        """Wait until a condition holds, looking after every observation."""
        try:
            with anyio.fail_after(BOUND):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            seen = "\n  ".join(map(repr, self.events[-40:]))
            raise AssertionError(f"waited for {what}, saw\n  {seen}") from None


class Running:
    """A consumer at work."""

    def __init__(self, consumer: Consumer, seen: Recorder) -> None:
        self.consumer = consumer
        self.seen = seen

    @property
    def statistics(self) -> ConsumerStatistics:
        """The consumer's figures."""
        return self.consumer.statistics

    async def settled(self, messages: int) -> None:
        """Wait until so many messages were acknowledged."""
        await self.seen.until_true(lambda: self.statistics.acknowledged >= messages)


@asynccontextmanager
async def running(
    service: Service, engine: AsyncEngine, broker: Broker, *, seen: Recorder | None = None, **settings: Any
) -> AsyncGenerator[Running]:
    """Run a consumer in the block, and stop it in order after it."""
    seen = seen if seen is not None else Recorder()
    consumer = Consumer(
        service.inbox, engine=engine, broker=broker, settings=quick_settings(**settings), observer=seen
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        try:
            yield Running(consumer, seen)
            consumer.stop()
        except BaseException:
            tasks.cancel_scope.cancel()
            raise


def an_event(payload: object, *, key: str | None = None, id: str | None = None, **attributes: Any) -> Event:  # noqa: A002 the attribute's name
    """Return an event as a producer's outbox makes it."""
    event_type = attributes.pop("type", None) or event_type_of(type(payload))
    data, media_type = encode_data(payload, event_type=event_type)
    values: dict[str, Any] = {"source": PRODUCER, "time": datetime.now(UTC), "datacontenttype": media_type}
    return Event(id=id or new_id(), type=event_type, data=data, partitionkey=key, **{**values, **attributes})


async def send(broker: MemoryBroker, service: Service, *events: Event, topic: str | None = None) -> None:
    """Publish events to the service's queue."""
    await broker.declare(service.inbox.queue)
    async with broker.publisher() as publisher:
        confirmation = await publisher.send([Outgoing(event, topic or event.type) for event in events])
        assert all(isinstance(result, Confirmed) for result in await confirmation.wait())
