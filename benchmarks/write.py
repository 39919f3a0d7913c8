"""What an event adds to the transaction that publishes it.

Four transactions through an AsyncSession on a private, durable PostgreSQL, one domain row each: with `publish`, with a
hand-written Core INSERT of the same event row, with a mapped class of the outbox row, and with the domain row alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry

from benchmarks.harness import Bench, Figure
from sagapost.core import event
from sagapost.core.ids import new_uuid
from sagapost.outbox import Outbox, OutboxTables
from sagapost.outbox.tables import ENVELOPE_COLUMNS
from tests.servers.postgresql import private_postgresql

FIGURES = ("write.vs_core_insert", "write.vs_domain_only", "write.vs_mapped_row")

SOURCE = "https://orders.example"
EVENT_TYPE = "orders.order-placed.v1"


class Base(DeclarativeBase):
    """The service's models."""


tables = OutboxTables(Base.metadata)
outbox = Outbox(source=SOURCE, tables=tables)


class Order(Base):
    """The domain row."""

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    amount: Mapped[int]


@event(EVENT_TYPE)
class OrderPlaced(msgspec.Struct):
    """An event of about 500 bytes."""

    order_id: str
    customer: str
    amount: int
    note: str


def placed(order: Order) -> OrderPlaced:
    """Return the event of an order."""
    return OrderPlaced(order_id=order.id, customer=order.customer, amount=order.amount, note="n" * 400)


async def domain_only(_session: AsyncSession, _order: Order) -> None:
    """Add nothing."""


async def published(session: AsyncSession, order: Order) -> None:
    """Publish."""
    await outbox.publish(session, placed(order), key=order.id)


def row_of(order: Order) -> dict[str, Any]:
    """Return the event row as one would write it without a library: same encoding, no checks."""
    return {
        "event_id": new_uuid(),
        "topic": EVENT_TYPE,
        "type": EVENT_TYPE,
        "source": SOURCE,
        "time": datetime.now(UTC),
        "datacontenttype": "application/json",
        "partitionkey": order.id,
        "data": msgspec.json.encode(placed(order)),
    }


_core_insert = insert(tables.outbox).inline()


async def core_insert(session: AsyncSession, order: Order) -> None:
    """Write the event row by a Core INSERT."""
    await session.flush()
    await session.execute(_core_insert, row_of(order))


class EventRow:
    """The event row as a mapped class; its key is known beforehand, so that nothing is returned."""


registry().map_imperatively(
    EventRow, tables.outbox, primary_key=[tables.outbox.c.event_id], include_properties=[*ENVELOPE_COLUMNS]
)


async def mapped_row(session: AsyncSession, order: Order) -> None:
    """Add the event row to the session."""
    row = EventRow()
    for name, value in row_of(order).items():
        setattr(row, name, value)
    session.add(row)


Body = Callable[[AsyncSession, Order], Awaitable[None]]

BODIES: dict[str, Body] = {
    "publish": published,
    "core": core_insert,
    "mapped": mapped_row,
    "domain": domain_only,
}


async def transaction(sessions: async_sessionmaker[AsyncSession], body: Body) -> float:
    """Run one transaction; return its duration in microseconds."""
    order = Order(id=str(uuid4()), customer="customer", amount=100)
    start = time.perf_counter()
    async with sessions.begin() as session:
        session.add(order)
        await body(session, order)
    return (time.perf_counter() - start) * 1e6


async def run(sessions: async_sessionmaker[AsyncSession], count: int) -> dict[str, float]:
    """Run `count` transactions of each kind, one of each in turn; return their medians in microseconds.

    In turn, since the time of a commit drifts on a shared disk by more than the kinds differ.
    """
    times: dict[str, list[float]] = {name: [] for name in BODIES}
    for _ in range(count):
        for name, body in BODIES.items():
            times[name].append(await transaction(sessions, body))
    return {name: statistics.median(values) for name, values in times.items()}


async def measure(bench: Bench) -> list[Figure]:
    """Measure the wanted figures."""
    count, runs = bench.pick(300, 1_000), bench.pick(5, 9)
    medians: list[dict[str, float]] = []
    with private_postgresql(durable=True) as server:
        engine = create_async_engine(server.url())
        try:
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            sessions = async_sessionmaker(engine)
            await run(sessions, 50)  # statement caches, connection, files
            with bench.progress("write", runs) as advance:
                for _ in range(runs):
                    medians.append(await run(sessions, count))
                    advance(1)
        finally:
            await engine.dispose()
    ours = [median["publish"] for median in medians]
    baselines = {"write.vs_core_insert": "core", "write.vs_domain_only": "domain", "write.vs_mapped_row": "mapped"}
    return [
        Figure.of(name, "us/transaction", ours, [median[baseline] for median in medians])
        for name, baseline in baselines.items()
    ]
