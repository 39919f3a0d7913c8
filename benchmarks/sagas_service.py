"""The four services of `benchmarks.sagas`. Run as a module, it is one of them: its relay and its consumer.

Each has a database of its own. An order is placed, its item reserved, its price taken, its parcel sent: four
transactions, each with its undo intent in the ledger where there is something to undo, and with the next event in the
outbox. Orders and `DBOS` (`benchmarks.sagas_dbos_worker`) write the same rows.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, TypeAlias

import anyio
import msgspec
from sqlalchemy import BigInteger, delete, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.processes import say
from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core import Observation, event, new_id
from sagapost.core.schema import install_schema
from sagapost.inbox import Consumer, ConsumerSettings, Inbox, InboxTables
from sagapost.inbox.declared.observations import Acknowledged
from sagapost.outbox import Outbox, OutboxTables
from sagapost.outbox.relay import Relay
from sagapost.outbox.relay.observations import LeasesChanged
from sagapost.sagas import CompensationContext, Sagas, SagaTables, StepContext, start

__all__ = ["ITEMS", "SERVICES", "Name", "Plan", "Service", "install"]

Name: TypeAlias = Literal["orders", "stock", "payment", "shipping"]

ITEMS = 100
"""Rows of stock, which sagas of the same item take in turn."""
_PLENTY = 10**9


class OrdersBase(DeclarativeBase):
    """Models of Orders."""


class StockBase(DeclarativeBase):
    """Models of Stock."""


class PaymentBase(DeclarativeBase):
    """Models of Payment."""


class ShippingBase(DeclarativeBase):
    """Models of Shipping."""


class Order(OrdersBase):
    """An order."""

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]
    cents: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str]


class Stock(StockBase):
    """How many there are of an item."""

    __tablename__ = "stock"

    item: Mapped[str] = mapped_column(primary_key=True)
    available: Mapped[int] = mapped_column(BigInteger)


class Reservation(StockBase):
    """One of an item, kept for an order."""

    __tablename__ = "reservations"

    order_id: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]


class Payment(PaymentBase):
    """Money taken for an order."""

    __tablename__ = "payments"

    order_id: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int] = mapped_column(BigInteger)


class Parcel(ShippingBase):
    """What was sent."""

    __tablename__ = "parcels"

    order_id: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]


@event("orders.order-placed.v1")
class OrderPlaced(msgspec.Struct):
    """The first step is done."""

    order_id: str
    item: str
    cents: int


@event("stock.item-reserved.v1")
class ItemReserved(msgspec.Struct):
    """The second step is done."""

    order_id: str
    item: str
    cents: int


@event("payment.payment-taken.v1")
class PaymentTaken(msgspec.Struct):
    """The third step is done."""

    order_id: str
    item: str


@dataclass(frozen=True, slots=True)
class Service:
    """One of the four."""

    base: type[DeclarativeBase]
    outbox: Outbox
    sagas: Sagas
    inbox: Inbox


def _service(name: Name, base: type[DeclarativeBase]) -> Service:
    outbox = Outbox(source=f"https://{name}.example", tables=OutboxTables(base.metadata))
    sagas = Sagas(name, outbox=outbox, tables=SagaTables(base.metadata))
    inbox = Inbox(name, outbox=outbox, tables=InboxTables(base.metadata), context=sagas.context)
    return Service(base, outbox, sagas, inbox)


SERVICES: dict[Name, Service] = {
    "orders": _service("orders", OrdersBase),
    "stock": _service("stock", StockBase),
    "payment": _service("payment", PaymentBase),
    "shipping": _service("shipping", ShippingBase),
}


@SERVICES["stock"].sagas.compensation()
async def put_back(ctx: CompensationContext, *, order_id: str, item: str) -> None:
    """Undo `reserve`; recorded with each, and never needed here."""
    await ctx.session.execute(delete(Reservation).where(Reservation.order_id == order_id))
    await ctx.session.execute(update(Stock).where(Stock.item == item).values(available=Stock.available + 1))


@SERVICES["payment"].sagas.compensation()
async def refund(ctx: CompensationContext, *, order_id: str) -> None:
    """Undo `take_payment`; recorded with each, and never needed here."""
    await ctx.session.execute(delete(Payment).where(Payment.order_id == order_id))


async def place_order(session: AsyncSession, number: int) -> None:
    """Begin a saga."""
    placed = OrderPlaced(new_id(), f"item-{number % ITEMS}", 1_000 + number)
    with start():
        session.add(Order(id=placed.order_id, item=placed.item, cents=placed.cents, status="placed"))
        await SERVICES["orders"].outbox.publish(session, placed, key=placed.order_id)


@SERVICES["stock"].inbox.on(OrderPlaced)
async def reserve(placed: OrderPlaced, ctx: StepContext) -> None:
    """Take one of the item."""
    await ctx.session.execute(
        update(Stock).where(Stock.item == placed.item, Stock.available > 0).values(available=Stock.available - 1)
    )
    ctx.session.add(Reservation(order_id=placed.order_id, item=placed.item))
    await ctx.on_rollback(put_back, order_id=placed.order_id, item=placed.item)
    await ctx.publish(ItemReserved(placed.order_id, placed.item, placed.cents), key=placed.order_id)


@SERVICES["payment"].inbox.on(ItemReserved)
async def take_payment(reserved: ItemReserved, ctx: StepContext) -> None:
    """Take the money."""
    ctx.session.add(Payment(order_id=reserved.order_id, cents=reserved.cents))
    await ctx.on_rollback(refund, order_id=reserved.order_id)
    await ctx.publish(PaymentTaken(reserved.order_id, reserved.item), key=reserved.order_id)


@SERVICES["shipping"].inbox.on(PaymentTaken)
async def ship(taken: PaymentTaken, ctx: StepContext) -> None:
    """Send the parcel: the end of the saga."""
    ctx.session.add(Parcel(order_id=taken.order_id, item=taken.item))


class Plan(msgspec.Struct):
    """What a process does; comes on standard input, since it holds passwords."""

    name: Name
    database: str
    """For SQLAlchemy."""
    dsn: str
    broker: str
    sagas: int
    concurrency: int
    batch: int


async def install(url: str, name: Name) -> None:
    """Create all tables of one of the services in a fresh database."""
    service = SERVICES[name]
    parts = [service.outbox.tables.part, service.inbox.tables.part, service.sagas.tables.part]
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: install_schema(sync, service.outbox.tables.versions, parts))
        await connection.run_sync(service.base.metadata.create_all)
    if name == "stock":
        async with AsyncSession(engine) as session, session.begin():
            session.add_all(Stock(item=f"item-{number}", available=_PLENTY) for number in range(ITEMS))
    await engine.dispose()


class _Meter:
    """Notes when this process can begin, and when it has acknowledged the last message."""

    def __init__(self, messages: int) -> None:
        self._left = messages
        self.owned = anyio.Event()
        self.done = anyio.Event()
        self.first = anyio.Event()

    def notify(self, event: Observation, /) -> None:
        """Take note."""
        match event:
            case LeasesChanged(owned=owned) if len(owned) == 32:
                self.owned.set()
            case Acknowledged(messages=messages):
                self.first.set()
                self._left -= messages
                if self._left <= 0 and not self.done.is_set():
                    say({"at": time.monotonic()})
                    self.done.set()
            case _:
                pass


async def _place(engine: AsyncEngine, plan: Plan) -> None:
    """Place one order to warm everybody up, and the others at the parent's word."""
    async with AsyncSession(engine) as session, session.begin():
        await place_order(session, 0)
    await anyio.to_thread.run_sync(sys.stdin.readline)
    say({"at": time.monotonic()})
    numbers = iter(range(plan.sagas))

    async def customer(numbers: Iterator[int]) -> None:
        for number in numbers:
            async with AsyncSession(engine) as session, session.begin():
                await place_order(session, number)

    async with anyio.create_task_group() as tasks:
        for _ in range(plan.concurrency):
            tasks.start_soon(customer, numbers)


async def main(plan: Plan) -> None:
    """Be the service until SIGTERM."""
    service = SERVICES[plan.name]
    engine = create_async_engine(plan.database, pool_size=plan.concurrency + 3)
    meter = _Meter(plan.sagas + 1)
    async with anyio.create_task_group() as tasks:
        if plan.name != "shipping":
            relay = Relay(PostgreSQLOutboxStore(plan.dsn), RabbitMQBroker(plan.broker), observer=meter)
            tasks.start_soon(relay.run)
            await meter.owned.wait()
        if plan.name != "orders":
            settings = ConsumerSettings(concurrency=plan.concurrency if plan.batch == 1 else 2, batch=plan.batch)
            broker = RabbitMQBroker(plan.broker)
            tasks.start_soon(
                Consumer(service.inbox, engine=engine, broker=broker, settings=settings, observer=meter).run
            )
        say({"ready": True})
        with anyio.open_signal_receiver(signal.SIGTERM) as received:
            if plan.name == "orders":
                tasks.start_soon(_place, engine, plan)
            elif plan.name == "shipping":
                await meter.first.wait()
                say({"warm": True})
            async for _ in received:
                break
        tasks.cancel_scope.cancel()
    await engine.dispose()


if __name__ == "__main__":
    anyio.run(
        main,
        msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan),
        backend_options={"use_uvloop": find_spec("uvloop") is not None},
    )
