"""The processes of `benchmarks.two_phase_commit`: an order in one database takes an item of stock in another.

Kinds: `coordinator`, two-phase commit written with asyncpg, both databases asked at the same time; `in_doubt`, a
coordinator that goes no further than PREPARE; `orders`, which writes the order and its event and runs a relay;
`stock`, the consumer. All insert the order, take one of the item and insert the reservation.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

import anyio
import anyio.to_thread
import asyncpg
import msgspec
from sqlalchemy import BigInteger, event, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.processes import say
from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core import Observation, new_id
from sagapost.core import event as event_class
from sagapost.core.schema import install_schema
from sagapost.inbox import Consumer, ConsumerSettings, Context, Inbox, InboxTables
from sagapost.inbox.declared.observations import Acknowledged
from sagapost.outbox import Outbox, OutboxTables
from sagapost.outbox.relay import Relay
from sagapost.outbox.relay.observations import LeasesChanged

__all__ = ["ITEMS", "Kind", "Order", "OrderPlaced", "Plan", "inbox", "install", "outbox", "url"]

Kind: TypeAlias = Literal["coordinator", "in_doubt", "orders", "stock"]

ITEMS = 100
_PLENTY = 10**9


class OrdersBase(DeclarativeBase):
    """Models of Orders."""


class StockBase(DeclarativeBase):
    """Models of Stock."""


class Order(OrdersBase):
    """An order."""

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]


class Stock(StockBase):
    """How many there are of an item: the row that everybody wants."""

    __tablename__ = "stock"

    item: Mapped[str] = mapped_column(primary_key=True)
    available: Mapped[int] = mapped_column(BigInteger)


class Reservation(StockBase):
    """One of an item, kept for an order."""

    __tablename__ = "reservations"

    order_id: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]


@event_class("orders.order-placed.v1")
class OrderPlaced(msgspec.Struct):
    """An order is there; stock is to be taken."""

    order_id: str
    item: str


class Plan(msgspec.Struct):
    """What a process does; comes on standard input, since it holds passwords."""

    kind: Kind
    orders: str
    """For asyncpg, as `stock`."""
    stock: str
    amqp: str = ""
    steps: int = 0
    concurrency: int = 8
    batch: int = 1
    name: str = "0"
    """Part of the names of prepared transactions."""


outbox = Outbox(source="https://orders.example", tables=OutboxTables(OrdersBase.metadata))
_tables = InboxTables(StockBase.metadata)
inbox = Inbox("stock", tables=_tables)
held: list[float] = []
"""Milliseconds from the moment a stock row was locked to the end of its transaction."""


@inbox.on(OrderPlaced)
async def take(placed: OrderPlaced, ctx: Context) -> None:
    """Take one of the item."""
    await ctx.session.execute(
        update(Stock).where(Stock.item == placed.item, Stock.available > 0).values(available=Stock.available - 1)
    )
    locked = time.perf_counter()
    ctx.session.add(Reservation(order_id=placed.order_id, item=placed.item))

    def committed(_session: object) -> None:
        held.append((time.perf_counter() - locked) * 1e3)

    event.listen(ctx.session.sync_session, "after_commit", committed, once=True)


def url(dsn: str) -> str:
    """Return an asyncpg address in SQLAlchemy's form."""
    return dsn.replace("postgresql://", "postgresql+asyncpg://", 1)


async def install(orders: str, stock: str) -> None:
    """Create all tables in two fresh databases."""
    for dsn, base, part in (
        (orders, OrdersBase, outbox.tables.part),
        (stock, StockBase, _tables.part),
    ):
        versions = outbox.tables.versions if base is OrdersBase else _tables.versions
        engine = create_async_engine(url(dsn))
        async with engine.begin() as connection:
            await connection.run_sync(install_schema, versions, [part])
            await connection.run_sync(base.metadata.create_all)
        if base is StockBase:
            async with AsyncSession(engine) as session, session.begin():
                session.add_all(Stock(item=f"item-{number}", available=_PLENTY) for number in range(ITEMS))
        await engine.dispose()


async def word() -> None:
    """Wait for the parent's word."""
    await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


# --- two-phase commit ---


async def prepare(orders: Any, stock: Any, name: str, number: int) -> float:
    """Do the step and prepare both sides; return when the stock row was locked.

    The databases share a server, and so the names of prepared transactions.
    """
    order_id, item = new_id(), f"item-{number % ITEMS}"

    async def place() -> None:
        await orders.execute("BEGIN")
        await orders.execute("INSERT INTO orders (id, item) VALUES ($1, $2)", order_id, item)
        await orders.execute(f"PREPARE TRANSACTION '{name}-orders'")

    async def reserve() -> float:
        await stock.execute("BEGIN")
        await stock.execute("UPDATE stock SET available = available - 1 WHERE item = $1 AND available > 0", item)
        locked = time.perf_counter()
        await stock.execute("INSERT INTO reservations (order_id, item) VALUES ($1, $2)", order_id, item)
        await stock.execute(f"PREPARE TRANSACTION '{name}-stock'")
        return locked

    _, locked = await asyncio.gather(place(), reserve())
    return locked


async def coordinate(plan: Plan) -> None:
    """Commit every step in both databases; a real coordinator would also write its decision down in between."""
    numbers = iter(range(plan.steps))
    pairs = [(await asyncpg.connect(plan.orders), await asyncpg.connect(plan.stock)) for _ in range(plan.concurrency)]

    async def client(orders: Any, stock: Any) -> None:
        for number in numbers:
            name = f"step-{plan.name}-{number}"
            locked = await prepare(orders, stock, name, number)
            await asyncio.gather(
                orders.execute(f"COMMIT PREPARED '{name}-orders'"), stock.execute(f"COMMIT PREPARED '{name}-stock'")
            )
            held.append((time.perf_counter() - locked) * 1e3)

    say({})
    await word()
    began = time.monotonic()
    await asyncio.gather(*(client(*pair) for pair in pairs))
    say({"began": began, "ended": time.monotonic(), "held": held})


async def leave_in_doubt(plan: Plan) -> None:
    """Prepare and go no further; the parent kills this process."""
    orders, stock = await asyncpg.connect(plan.orders), await asyncpg.connect(plan.stock)
    await prepare(orders, stock, "in-doubt", 0)
    say({})
    await word()


# --- outbox and inbox ---


class _Meter:
    """Notes when the relay can begin, and when the last message is acknowledged."""

    def __init__(self, messages: int) -> None:
        self._left = messages
        self.owned = anyio.Event()

    def notify(self, observation: Observation, /) -> None:
        """Take note."""
        match observation:
            case LeasesChanged(owned=owned) if len(owned) == 32:
                self.owned.set()
            case Acknowledged(messages=messages):
                self._left -= messages
                if self._left == 0:
                    say({"at": time.monotonic(), "held": held})
            case _:
                pass


async def write(plan: Plan) -> None:
    """Place the orders."""
    engine = create_async_engine(url(plan.orders), pool_size=plan.concurrency)

    async def client(numbers: Iterator[int]) -> None:
        for number in numbers:
            placed = OrderPlaced(new_id(), f"item-{number % ITEMS}")
            async with AsyncSession(engine) as session, session.begin():
                session.add(Order(id=placed.order_id, item=placed.item))
                await outbox.publish(session, placed, key=placed.order_id)

    numbers = iter(range(plan.steps))
    say({"at": time.monotonic()})
    async with anyio.create_task_group() as tasks:
        for _ in range(plan.concurrency):
            tasks.start_soon(client, numbers)
    await engine.dispose()


async def serve(plan: Plan) -> None:
    """Be one of the two services until SIGTERM."""
    meter = _Meter(plan.steps)
    broker = RabbitMQBroker(plan.amqp)
    async with anyio.create_task_group() as tasks:
        if plan.kind == "orders":
            tasks.start_soon(Relay(PostgreSQLOutboxStore(plan.orders), broker, observer=meter).run)
            await meter.owned.wait()
        else:
            engine = create_async_engine(url(plan.stock), pool_size=plan.concurrency + 3)
            settings = ConsumerSettings(concurrency=plan.concurrency, batch=plan.batch)
            tasks.start_soon(Consumer(inbox, engine=engine, broker=broker, settings=settings, observer=meter).run)
        with anyio.open_signal_receiver(signal.SIGTERM) as received:
            say({})
            if plan.kind == "orders" and plan.steps:
                await word()
                await write(plan)
            async for _ in received:
                break
        tasks.cancel_scope.cancel()


async def main(plan: Plan) -> None:
    """Be what the plan says."""
    runs = {"coordinator": coordinate, "in_doubt": leave_in_doubt, "orders": serve, "stock": serve}
    await runs[plan.kind](plan)


if __name__ == "__main__":
    anyio.run(
        main,
        msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan),
        backend_options={"use_uvloop": find_spec("uvloop") is not None},
    )
