"""What is an outage for one part is one for every part: relay, consumer, compensator and tracker wait for its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import anyio
import asyncpg
import msgspec
import pytest
from sqlalchemy import MetaData, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.core import event
from sagapost.core.backoff import Backoff
from sagapost.core.life import Runnable, ServerLost
from sagapost.core.observer import Observation
from sagapost.core.schema import install_schema
from sagapost.inbox import Consumer, ConsumerSettings, Inbox, InboxTables
from sagapost.outbox import Outbox, OutboxTables
from sagapost.outbox.relay import Relay, RelaySettings
from sagapost.sagas import CompensationContext, Compensator, CompensatorSettings, Sagas, SagaTables, StepContext
from sagapost.sagas.tracker import Tracker, TrackerConsumer, TrackerConsumerSettings
from sagapost.sagas.tracker.tables import TrackerTables

_SOON = Backoff(base=timedelta(milliseconds=20), cap=timedelta(milliseconds=100))
_POLL = timedelta(milliseconds=50)


@event("shop.order-placed.v1")
class OrderPlaced(msgspec.Struct):
    """Begins a saga."""

    order: str


@dataclass
class Watch:
    """Counts outages by who reported them."""

    lost: set[str] = field(default_factory=set[str])
    changed: anyio.Event = field(default_factory=anyio.Event)

    def of(self, part: str) -> _Observer:
        """Return an observer for one part."""
        return _Observer(self, part)

    async def until(self, parts: set[str]) -> None:
        """Wait until each of the parts has reported an outage."""
        with anyio.fail_after(60):
            while not parts <= self.lost:
                self.changed = anyio.Event()
                await self.changed.wait()


@dataclass
class _Observer:
    watch: Watch
    part: str

    def notify(self, observation: Observation, /) -> None:
        """See `Observer`."""
        if isinstance(observation, ServerLost):
            self.watch.lost.add(self.part)
            self.watch.changed.set()


class Shop:
    """A service with all that runs of it, in a database whose role is no superuser."""

    def __init__(self, url: URL) -> None:
        self.metadata = MetaData()
        outbox, inbox, sagas = OutboxTables(self.metadata), InboxTables(self.metadata), SagaTables(self.metadata)
        self.tables, self.tracking = (outbox, inbox, sagas), TrackerTables(self.metadata)
        self.url = url
        self.outbox = Outbox(source="urn:shop", tables=outbox)
        self.sagas = Sagas("shop", outbox=self.outbox, tables=sagas)
        self.inbox = Inbox("shop", outbox=self.outbox, tables=inbox, context=self.sagas.context)
        self.undone: list[str] = []

        @self.sagas.compensation()
        async def release(ctx: CompensationContext, *, order: str) -> None:
            self.undone.append(order)

        @self.inbox.on(OrderPlaced)
        @self.sagas.step(compensation=release)
        async def reserve(placed: OrderPlaced, ctx: StepContext) -> None:
            await ctx.on_rollback(release, order=placed.order)

    async def install(self, engine: AsyncEngine) -> None:
        """Create the tables."""
        parts = [*(tables.part for tables in self.tables), self.tracking.part]
        async with engine.begin() as connection:
            await connection.run_sync(install_schema, self.tables[0].versions, parts)

    @asynccontextmanager
    async def running(self, engine: AsyncEngine, watch: Watch) -> AsyncGenerator[None, None]:
        """Run all of it; an error that ends a part fails the test."""
        broker = MemoryBroker()
        tracker = Tracker(engine, tables=self.tracking)
        tracking = TrackerConsumer(
            tracker, broker, settings=TrackerConsumerSettings(reconnect=_SOON), observer=watch.of("tracker")
        )
        await broker.declare(self.inbox.queue, tracking.queue)
        parts: list[Runnable] = [
            Relay(
                PostgreSQLOutboxStore(self.url, tables=self.tables[0]),
                broker,
                settings=RelaySettings(reconnect=_SOON, poll_interval=_POLL, lease_ttl=timedelta(seconds=2)),
                observer=watch.of("relay"),
            ),
            Consumer(
                self.inbox,
                engine=engine,
                broker=broker,
                settings=ConsumerSettings(reconnect=_SOON, poll_interval=_POLL),
                observer=watch.of("consumer"),
            ),
            Compensator(
                self.sagas,
                engine,
                settings=CompensatorSettings(poll_interval=_POLL, reconnect=_SOON),
                observer=watch.of("compensator"),
            ),
            tracking,
        ]
        async with anyio.create_task_group() as tasks:
            for part in parts:
                tasks.start_soon(part.run)
            yield
            for part in parts:
                part.stop()

    async def place_and_undo(self, engine: AsyncEngine, order: str) -> None:
        """Bring one saga through all parts: published, handled, recorded, rolled back."""
        async with AsyncSession(engine) as session, session.begin():
            await self.outbox.publish(session, OrderPlaced(order), correlationid=order, key=order)
        await _until(engine, "SELECT count(*) FROM saga_compensations WHERE saga = :order", order)
        async with AsyncSession(engine) as session, session.begin():
            await self.sagas.begin_rollback(session, order, reason="test", cause=None)
        await _until(engine, "SELECT count(*) FROM saga_states WHERE saga = :order AND state = 'rolled_back'", order)
        await _until(engine, "SELECT count(*) FROM tracker_sagas WHERE saga = :order", order)


async def _until(engine: AsyncEngine, query: str, order: str) -> None:
    with anyio.fail_after(60):
        while True:
            async with engine.connect() as connection:
                if (await connection.execute(text(query), {"order": order})).scalar_one():
                    return
            await anyio.sleep(0.02)


_CUT = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = $1"
_OUTAGES: dict[str, tuple[str, str]] = {
    # No connection left for this role.
    "too many connections": ("ALTER ROLE {role} CONNECTION LIMIT 0", "ALTER ROLE {role} CONNECTION LIMIT -1"),
    # The server of a fail-over: it answers, and takes no writes.
    "read-only": (
        "ALTER ROLE {role} SET default_transaction_read_only = on",
        "ALTER ROLE {role} RESET default_transaction_read_only",
    ),
}


@pytest.mark.parametrize("outage", list(_OUTAGES))
async def test_every_part_waits_for_the_end_of_the_same_outages(outage: str, postgresql_url: str) -> None:
    """Those at work report it, none ends, and afterwards a saga goes through all of them.

    The connections that were opened meanwhile are not cut: to a server without writes each part gives up its own.
    """
    url = make_url(postgresql_url)
    role = f"shop_{url.database}"
    admin: asyncpg.Connection = await asyncpg.connect(
        url.set(drivername="postgresql").render_as_string(hide_password=False)
    )
    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'shop'")
    await admin.execute(f"GRANT ALL ON SCHEMA public TO {role}")
    shop = Shop(url.set(username=role, password="shop"))
    engine, watch = create_async_engine(shop.url, pool_size=30), Watch()
    begin, end = (statement.format(role=role) for statement in _OUTAGES[outage])
    other = create_async_engine(postgresql_url)
    try:
        await shop.install(engine)
        async with shop.running(engine, watch):
            await shop.place_and_undo(other, "before")
            await admin.execute(begin)
            await admin.execute(_CUT, role)
            # Something for the tracker and the consumer to write: by hand, since nobody of the shop's can.
            async with admin.transaction():
                await shop.outbox.publish(admin, OrderPlaced("during"), correlationid="during", key="during")
            await watch.until({"relay", "compensator"})
            await admin.execute(end)
            await shop.place_and_undo(other, "after")
            await _until(other, "SELECT count(*) FROM saga_compensations WHERE saga = :order", "during")
        assert sorted(shop.undone) == ["after", "before"]
    finally:
        await engine.dispose()
        await other.dispose()
        await admin.execute(f"DROP OWNED BY {role}")
        await admin.execute(f"DROP ROLE {role}")
        await admin.close()
