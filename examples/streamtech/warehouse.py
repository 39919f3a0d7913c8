"""Warehouse: puts stock aside for an order, or says that there is not enough."""

from __future__ import annotations

from uuid import UUID

import msgspec
from sqlalchemy import CheckConstraint, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost.core import event
from sagapost.inbox import BusinessFailure, Context, Inbox, InboxTables
from sagapost.outbox import Outbox, OutboxTables


class Base(DeclarativeBase):
    """The service's own models; sagapost's tables join the same MetaData."""


class Stock(Base):
    """How many of an item can still be promised."""

    __tablename__ = "stock"
    __table_args__ = (CheckConstraint("available >= 0", name="stock_is_never_negative"),)

    item: Mapped[str] = mapped_column(String(50), primary_key=True)
    available: Mapped[int]


class Reservation(Base):
    """Stock put aside for an order."""

    __tablename__ = "reservations"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(String(50))
    quantity: Mapped[int]


# --- what the service hears, and what it says ---


@event("orders.order-placed.v1")
class OrderPlaced(msgspec.Struct):
    """A customer wants goods."""

    order_id: UUID
    item: str
    quantity: int


@event("warehouse.stock-reserved.v1")
class StockReserved(msgspec.Struct):
    """The goods are put aside."""

    order_id: UUID
    item: str
    quantity: int


@event("warehouse.insufficient-stock.v1")
class InsufficientStock(msgspec.Struct):
    """There are not enough of them."""

    order_id: UUID
    item: str
    wanted: int
    available: int


outbox = Outbox(source="https://warehouse.streamtech.example", tables=OutboxTables(Base.metadata))
inbox = Inbox("warehouse", outbox=outbox, tables=InboxTables(Base.metadata))


@inbox.on(OrderPlaced, emits=[StockReserved, InsufficientStock])
async def reserve(order: OrderPlaced, ctx: Context) -> None:
    """Take the goods out of what can be promised: one transaction with the reservation and the answer."""
    stock = await ctx.session.get(Stock, order.item, with_for_update=True)
    available = stock.available if stock is not None else 0
    if stock is None or available < order.quantity:
        # Not an error to retry but an answer: whatever was done here is undone, and this event says so.
        raise BusinessFailure(InsufficientStock(order.order_id, order.item, order.quantity, available))
    stock.available -= order.quantity
    ctx.session.add(Reservation(order_id=order.order_id, item=order.item, quantity=order.quantity))
    await ctx.publish(StockReserved(order.order_id, order.item, order.quantity), key=str(order.order_id))
