"""Orders: a customer places an order; it is confirmed once stock is reserved, and rejected if there is none."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import Enum, String
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost.core import event
from sagapost.inbox import Context, Inbox, InboxTables
from sagapost.outbox import Outbox, OutboxTables


class Base(DeclarativeBase):
    """The service's own models; sagapost's tables join the same MetaData."""


class Status(StrEnum):
    """Where an order stands."""

    PLACED = "placed"
    CONFIRMED = "confirmed"
    REJECTED = "rejected"


class Order(Base):
    """What a customer asked for."""

    __tablename__ = "orders"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    item: Mapped[str] = mapped_column(String(50))
    quantity: Mapped[int]
    status: Mapped[Status] = mapped_column(Enum(Status, native_enum=False), default=Status.PLACED)
    reason: Mapped[str | None] = mapped_column(String(200))


# --- what the service says ---


@event("orders.order-placed.v1")
class OrderPlaced(msgspec.Struct):
    """An order was accepted."""

    order_id: UUID
    item: str
    quantity: int


# --- what it hears: only the fields it needs ---


@event("warehouse.stock-reserved.v1")
class StockReserved(msgspec.Struct):
    """The warehouse has put the goods aside."""

    order_id: UUID


@event("warehouse.insufficient-stock.v1")
class InsufficientStock(msgspec.Struct):
    """The warehouse does not have the goods."""

    order_id: UUID
    item: str


outbox = Outbox(source="https://orders.streamtech.example", tables=OutboxTables(Base.metadata))
inbox = Inbox("orders", outbox=outbox, tables=InboxTables(Base.metadata))


async def place_order(session: AsyncSession, item: str, quantity: int) -> Order:
    """Write the order and its event in the caller's transaction: both exist, or neither."""
    order = Order(id=uuid4(), item=item, quantity=quantity)
    session.add(order)
    # The order's id is the key: events of one order arrive in order. It also names the saga.
    await outbox.publish(
        session, OrderPlaced(order.id, item, quantity), key=str(order.id), correlationid=str(order.id)
    )
    return order


@inbox.on(StockReserved)
async def confirm(reserved: StockReserved, ctx: Context) -> None:
    """The goods are there: the order stands."""
    order = await ctx.session.get_one(Order, reserved.order_id)
    order.status = Status.CONFIRMED


@inbox.on(InsufficientStock)
async def reject(shortage: InsufficientStock, ctx: Context) -> None:
    """The goods are not there: the order ends here, and says why."""
    order = await ctx.session.get_one(Order, shortage.order_id)
    order.status = Status.REJECTED
    order.reason = f"{shortage.item} is out of stock"
