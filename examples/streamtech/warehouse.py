"""Warehouse: puts stock aside for an order, packs what is paid for, and hands it to the courier."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from uuid import UUID

import msgspec
from sqlalchemy import CheckConstraint, Enum, String
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost import (
    BusinessFailure,
    CompensationContext,
    Retry,
    RetryPolicy,
    RetryStep,
    RollBack,
    Schedule,
    Service,
    StepContext,
    event,
)


class Base(DeclarativeBase):
    """The service's own models; sagapost's tables join the same MetaData."""


class Stock(Base):
    """An item: how many the books can still promise, and how many are really on the shelf."""

    __tablename__ = "stock"
    __table_args__ = (
        CheckConstraint("available >= 0", name="stock_is_never_negative"),
        CheckConstraint("on_shelf >= 0", name="shelves_are_never_negative"),
    )

    item: Mapped[str] = mapped_column(String(50), primary_key=True)
    available: Mapped[int]
    on_shelf: Mapped[int]


class State(StrEnum):
    """Where the goods of an order are."""

    RESERVED = "reserved"
    PACKED = "packed"
    DISPATCHED = "dispatched"


class Reservation(Base):
    """Stock put aside for an order."""

    __tablename__ = "reservations"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(String(50))
    quantity: Mapped[int]
    state: Mapped[State] = mapped_column(Enum(State, native_enum=False), default=State.RESERVED)


class Courier(Base):
    """How many parcels the courier still takes today."""

    __tablename__ = "courier"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    room: Mapped[int]


# --- what the service handles, and what it publishes ---


@event("orders.order-placed.v1")
class OrderPlaced(msgspec.Struct):
    """A customer wants goods."""

    order_id: UUID
    item: str
    quantity: int


@event("payment.payment-taken.v1")
class PaymentTaken(msgspec.Struct):
    """The order is paid for."""

    order_id: UUID


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


@event("warehouse.order-packed.v1")
class OrderPacked(msgspec.Struct):
    """The parcel is ready."""

    order_id: UUID


@event("warehouse.item-missing.v1")
class ItemMissing(msgspec.Struct):
    """The goods that were put aside are not there."""

    order_id: UUID
    item: str


@event("warehouse.order-dispatched.v1")
class OrderDispatched(msgspec.Struct):
    """The courier has the parcel."""

    order_id: UUID


@event("warehouse.stock-released.v1")
class StockReleased(msgspec.Struct):
    """The goods can be promised to others again."""

    order_id: UUID


service = Service("warehouse", source="https://warehouse.streamtech.example", metadata=Base.metadata, announce=True)


# --- put aside ---


@service.compensation(emits=[StockReleased])
async def release_stock(ctx: CompensationContext, *, order_id: UUID) -> None:
    """Let others have the goods."""
    reservation = await ctx.session.get_one(Reservation, order_id, with_for_update=True)
    stock = await _locked(ctx.session, reservation.item)
    stock.available += reservation.quantity
    await ctx.session.delete(reservation)
    await ctx.publish(StockReleased(order_id), key=str(order_id))


@service.on(OrderPlaced, emits=[StockReserved], fails_with=[InsufficientStock], compensation=release_stock)
async def reserve(order: OrderPlaced, ctx: StepContext) -> None:
    """Take the goods out of what can be promised: one transaction with the reservation and the answer."""
    stock = await ctx.session.get(Stock, order.item, with_for_update=True)
    available = stock.available if stock is not None else 0
    if stock is None or available < order.quantity:
        # Not an error to retry but an answer: whatever was done here is undone, and this event says so.
        raise BusinessFailure(InsufficientStock(order.order_id, order.item, order.quantity, available))
    stock.available -= order.quantity
    ctx.session.add(Reservation(order_id=order.order_id, item=order.item, quantity=order.quantity))
    await ctx.on_rollback(release_stock, order_id=order.order_id)
    await ctx.publish(StockReserved(order.order_id, order.item, order.quantity), key=str(order.order_id))


# --- pack: until here a failure goes back ---


@service.compensation()
async def unpack(ctx: CompensationContext, *, order_id: UUID) -> None:
    """Put the goods back on the shelf."""
    reservation = await ctx.session.get_one(Reservation, order_id, with_for_update=True)
    stock = await _locked(ctx.session, reservation.item)
    stock.on_shelf += reservation.quantity
    reservation.state = State.RESERVED


@service.on(PaymentTaken, emits=[OrderPacked], fails_with=[ItemMissing], compensation=unpack)
async def pack(paid: PaymentTaken, ctx: StepContext) -> None:
    """Take the goods from the shelf; what the books promise may not be there."""
    reservation = await ctx.session.get(Reservation, paid.order_id, with_for_update=True)
    if reservation is None:
        return  # released meanwhile: the saga is rolled back, and there is nothing to pack
    stock = await _locked(ctx.session, reservation.item)
    if stock.on_shelf < reservation.quantity:
        raise BusinessFailure(ItemMissing(paid.order_id, reservation.item))
    stock.on_shelf -= reservation.quantity
    reservation.state = State.PACKED
    await ctx.on_rollback(unpack, order_id=paid.order_id)
    await ctx.publish(OrderPacked(paid.order_id), key=str(paid.order_id))


service.rolls_back_on("payment.payment-declined.v1", ItemMissing, "orders.order-given-up.v1")


# --- dispatch: from here on a failure goes forward ---

COURIER = RetryPolicy(quick=0, schedule=Schedule(timedelta(days=1), repeat_last=6))
"""Tomorrow again, and every day for a week."""

no_courier = service.escalation(
    "no-courier",
    title="No courier has taken the parcel for a week",
    outcomes={"retry": RetryStep(), "give-up": RollBack()},
    details=lambda packed: {"order": str(packed.order_id)},
)


@service.on(
    OrderPacked,
    emits=[OrderDispatched],
    changes_nothing=True,  # that could be undone: it is past the pivot
    retry=COURIER,
    on_exhausted=no_courier,
)
async def dispatch(packed: OrderPacked, ctx: StepContext) -> None:
    """Give the parcel to the courier. Nothing is undone because the van is full: there is another one tomorrow."""
    if not await ctx.pivot("the courier has the parcel"):
        return  # the saga is being rolled back: keep the parcel here
    courier = await ctx.session.get(Courier, "van", with_for_update=True)
    if courier is None or courier.room == 0:
        raise Retry(reason="the courier takes nothing more today")
    courier.room -= 1
    reservation = await ctx.session.get_one(Reservation, packed.order_id)
    reservation.state = State.DISPATCHED
    await ctx.publish(OrderDispatched(packed.order_id), key=str(packed.order_id))


service.completes_on("orders.order-completed.v1")


async def _locked(session: AsyncSession, item: str) -> Stock:
    return await session.get_one(Stock, item, with_for_update=True)
