"""What the demo does to the services, and the audit that reads both databases afterwards."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from uuid import UUID

import anyio
from sqlalchemy import Table, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase

from examples.streamtech import orders, warehouse
from sagapost.core.broker import Broker, Outgoing, Queue
from sagapost.core.event import Event

WITNESS = Queue("demo-witness", frozenset({"orders.order-placed.v1"}))
"""The demo's own queue: it keeps copies of events, to send some of them a second time."""

ITEMS: tuple[str, ...] = ("blue-train", "kind-of-blue", "a-love-supreme", "giant-steps")
STOCK_EACH = 60


@dataclass(frozen=True, slots=True)
class Placed:
    """What the demo placed."""

    orders: frozenset[UUID]
    rolled_back: frozenset[UUID]
    """Orders whose transaction failed on purpose, after the event was published into it."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What the databases of both services say in the end."""

    orders: int
    confirmed: int
    rejected: int
    published: int
    """Events that were committed: one for each order, and one for each answer."""
    handled: int
    """Events that took effect, by the dedup records of both services."""
    lost: int
    """Orders without an answer, or whose answer does not match the warehouse."""
    doubled: int
    """Units of stock taken more than once, and reservations nobody ordered."""
    pending: int
    """Events still in an outbox."""


async def create_tables(engine: AsyncEngine, base: type[DeclarativeBase]) -> None:
    """Create the service's own tables; sagapost's are there already (`sagapost db upgrade`, or `install_schema`)."""
    async with engine.begin() as connection:
        await connection.run_sync(base.metadata.create_all)


async def fill_shelves(engine: AsyncEngine) -> None:
    """Give the warehouse something to sell: enough for many orders, not for all."""
    async with async_sessionmaker(engine).begin() as session:
        session.add_all(warehouse.Stock(item=item, available=STOCK_EACH) for item in ITEMS)


async def place_orders(engine: AsyncEngine, count: int, rng: random.Random) -> AsyncIterator[tuple[UUID, bool]]:
    """Place orders one by one; every tenth transaction or so fails after publishing. Yields (order, committed)."""
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    committed = 0
    while committed < count:
        fails = rng.random() < 0.1
        order_id = await _place_one(sessions, rng, fails=fails)
        committed += not fails
        yield order_id, not fails


async def _place_one(sessions: async_sessionmaker[AsyncSession], rng: random.Random, *, fails: bool) -> UUID:
    async with sessions() as session:
        order = await orders.place_order(session, rng.choice(ITEMS), rng.randint(1, 3))
        if fails:
            await session.flush()
            await session.rollback()
        else:
            await session.commit()
        return order.id


async def until_answered(engine: AsyncEngine, count: int, advance: Callable[[str, int], None]) -> None:
    """Wait until every order has its answer."""
    answered = 0
    while answered < count:
        now = count - await unanswered(engine)
        advance("orders answered", now - answered)
        answered = now
        await anyio.sleep(0.05)


async def send_again(broker: Broker, count: int) -> None:
    """Publish events that were published before once more, under their ids, as a crashed relay would."""
    events: list[Event] = []
    async with broker.subscribe(WITNESS, prefetch=100) as copies:
        async for delivery in copies:
            if isinstance(delivery.content, Event):
                events.append(delivery.content)
            await copies.ack(delivery)
            if len(events) == count:
                break
    async with broker.publisher() as publisher:
        confirmation = await publisher.send([Outgoing(event, event.type) for event in events])
        await confirmation.wait()


async def unanswered(engine: AsyncEngine) -> int:
    """Return how many orders have no answer yet."""
    async with engine.connect() as connection:
        query = select(func.count()).select_from(orders.Order).where(orders.Order.status == orders.Status.PLACED)
        return (await connection.execute(query)).scalar_one()


async def audit(orders_engine: AsyncEngine, warehouse_engine: AsyncEngine, placed: Placed) -> Audit:
    """Compare what both services have, order by order."""
    async with async_sessionmaker(orders_engine)() as session:
        rows = (await session.execute(select(orders.Order.id, orders.Order.status))).all()
        status = {row.id: row.status for row in rows}
        handled = await _count(session, orders.inbox.tables.seen)
        pending = await _count(session, orders.outbox.tables.outbox)
    async with async_sessionmaker(warehouse_engine)() as session:
        reservations = {r.order_id: r for r in (await session.scalars(select(warehouse.Reservation))).all()}
        left = {s.item: s.available for s in (await session.scalars(select(warehouse.Stock))).all()}
        handled += await _count(session, warehouse.inbox.tables.seen)
        pending += await _count(session, warehouse.outbox.tables.outbox)
    confirmed = {id_ for id_, is_ in status.items() if is_ == orders.Status.CONFIRMED}
    rejected = {id_ for id_, is_ in status.items() if is_ == orders.Status.REJECTED}
    lost = len(placed.orders - confirmed - rejected) + len(confirmed ^ (reservations.keys() & placed.orders))
    taken: dict[str, int] = dict.fromkeys(ITEMS, 0)
    for reservation in reservations.values():
        taken[reservation.item] += reservation.quantity
    doubled = sum(abs(STOCK_EACH - left[item] - taken[item]) for item in ITEMS)
    return Audit(
        orders=len(placed.orders),
        confirmed=len(confirmed),
        rejected=len(rejected),
        published=len(status) + len(confirmed) + len(rejected),
        handled=handled,
        lost=lost,
        doubled=doubled + len(reservations.keys() - placed.orders),
        pending=pending,
    )


async def _count(session: AsyncSession, table: Table) -> int:
    return (await session.execute(select(func.count()).select_from(table))).scalar_one()
