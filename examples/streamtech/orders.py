"""Orders: a customer places an order; it is completed once the goods are on their way, and cancelled if that fails."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import Enum, String
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost import Close, CompensationContext, Deadline, RollBack, Service, StepContext, event


class Base(DeclarativeBase):
    """The service's own models; sagapost's tables join the same MetaData."""


class Status(StrEnum):
    """Where an order stands."""

    PLACED = "placed"
    CONFIRMED = "confirmed"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class Order(Base):
    """What a customer asked for."""

    __tablename__ = "orders"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    customer: Mapped[str] = mapped_column(String(50))
    item: Mapped[str] = mapped_column(String(50))
    quantity: Mapped[int]
    cents: Mapped[int]
    status: Mapped[Status] = mapped_column(Enum(Status, native_enum=False), default=Status.PLACED)
    reason: Mapped[str | None] = mapped_column(String(200))
    points: Mapped[int] = mapped_column(default=0)
    overdue: Mapped[bool] = mapped_column(default=False)


class Record(Base):
    """What was undone for an order: kept for whoever asks, years later."""

    __tablename__ = "order_records"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[UUID] = mapped_column(index=True)
    what: Mapped[str] = mapped_column(String(200))


# --- what the service publishes ---


@event("orders.order-placed.v1")
class OrderPlaced(msgspec.Struct):
    """An order was accepted."""

    order_id: UUID
    customer: str
    item: str
    quantity: int
    cents: int


@event("orders.order-completed.v1")
class OrderCompleted(msgspec.Struct):
    """The goods are on their way: the saga ends well."""

    order_id: UUID
    customer: str
    cents: int


@event("orders.order-cancelled.v1")
class OrderCancelled(msgspec.Struct):
    """There will be no delivery: the saga ends here."""

    order_id: UUID
    reason: str


@event("orders.order-overdue.v1")
class OrderOverdue(msgspec.Struct):
    """The deadline of an order has passed."""

    order_id: UUID


@event("orders.order-given-up.v1")
class OrderGivenUp(msgspec.Struct):
    """A person has decided that the order has waited long enough."""

    order_id: UUID


# --- what it handles: only the fields it needs ---


@event("warehouse.stock-reserved.v1")
class StockReserved(msgspec.Struct):
    """The warehouse has put the goods aside."""

    order_id: UUID


@event("warehouse.order-dispatched.v1")
class OrderDispatched(msgspec.Struct):
    """The courier has the parcel."""

    order_id: UUID


@event("loyalty.points-awarded.v1")
class PointsAwarded(msgspec.Struct):
    """The customer was given points."""

    order_id: UUID
    points: int


@event("warehouse.insufficient-stock.v1")
class InsufficientStock(msgspec.Struct):
    """The warehouse does not have the goods."""

    order_id: UUID
    item: str


@event("payment.payment-declined.v1")
class PaymentDeclined(msgspec.Struct):
    """The customer cannot pay."""

    order_id: UUID
    reason: str


@event("warehouse.item-missing.v1")
class ItemMissing(msgspec.Struct):
    """The shelf is empty, whatever the books say."""

    order_id: UUID
    item: str


@event("warehouse.stock-released.v1")
class StockReleased(msgspec.Struct):
    """The goods can be promised to others again."""

    order_id: UUID


@event("payment.payment-refunded.v1")
class PaymentRefunded(msgspec.Struct):
    """The customer has the money back."""

    order_id: UUID
    cents: int


@event("loyalty.points-revoked.v1")
class PointsRevoked(msgspec.Struct):
    """The points were taken back."""

    order_id: UUID
    points: int


IN_TIME = Deadline("fulfilment", OrderOverdue, after=timedelta(days=3))
"""After that somebody has a look at the order."""

service = Service(
    "orders",
    source="https://orders.streamtech.example",
    metadata=Base.metadata,
    starts=[OrderPlaced],
    ends=[OrderCompleted, OrderCancelled],
    announce=True,
)


async def place_order(
    session: AsyncSession, item: str, quantity: int, *, customer: str = "ada", cents: int = 2000
) -> Order:
    """Write the order and its event in the caller's transaction: both exist, or neither."""
    order = Order(id=uuid4(), customer=customer, item=item, quantity=quantity, cents=cents)
    session.add(order)
    placed = OrderPlaced(order.id, customer, item, quantity, cents)
    # The order's id is the key: events of one order arrive in order. It also names the saga.
    await service.publish(session, placed, key=str(order.id), correlationid=str(order.id))
    return order


async def _locked(session: AsyncSession, order_id: UUID) -> Order:
    return await session.get_one(Order, order_id, with_for_update=True)


@service.compensation(emits=[OrderCancelled])
async def cancel_order(ctx: CompensationContext, *, order_id: UUID) -> None:
    """Undo the order itself, and say why."""
    order = await _locked(ctx.session, order_id)
    order.status = Status.CANCELLED
    order.reason = ctx.reason
    await ctx.cancel_deadline(IN_TIME)
    await ctx.publish(OrderCancelled(order_id, ctx.reason), key=str(order_id))


# --- forward ---


@service.on(OrderPlaced, compensation=cancel_order, deadlines=[IN_TIME])
async def watch(placed: OrderPlaced, ctx: StepContext) -> None:
    """The saga has begun: the order can be undone from now on, and is looked into if it is not on its way in time."""
    await ctx.on_rollback(cancel_order, order_id=placed.order_id)
    await ctx.deadline(IN_TIME, OrderOverdue(placed.order_id))


@service.on(StockReserved, changes_nothing=True)  # but for what the customer is shown
async def confirm(reserved: StockReserved, ctx: StepContext) -> None:
    """The goods are there: the order stands."""
    order = await _locked(ctx.session, reserved.order_id)
    if order.status is Status.PLACED:  # and not cancelled meanwhile
        order.status = Status.CONFIRMED


@service.on(PointsAwarded, changes_nothing=True)
async def show_points(awarded: PointsAwarded, ctx: StepContext) -> None:
    """The customer sees the points beside the order."""
    order = await ctx.session.get_one(Order, awarded.order_id)
    order.points = awarded.points


@service.on(OrderDispatched, emits=[OrderCompleted], cancels=[IN_TIME])
async def complete(dispatched: OrderDispatched, ctx: StepContext) -> None:
    """The parcel is on its way."""
    await ctx.pivot("the courier has the parcel")
    order = await _locked(ctx.session, dispatched.order_id)
    order.status = Status.COMPLETED
    await ctx.cancel_deadline(IN_TIME)
    await ctx.publish(OrderCompleted(order.id, order.customer, order.cents), key=str(order.id))
    await ctx.complete()


# --- when it fails ---


@service.on(InsufficientStock, undoes=[OrderPlaced])
async def out_of_stock(shortage: InsufficientStock, ctx: StepContext) -> None:
    """There is nothing to sell: roll back, which cancels the order."""
    await ctx.roll_back(f"{shortage.item} is out of stock")


@service.on(PaymentDeclined, undoes=[OrderPlaced])
async def not_paid(declined: PaymentDeclined, ctx: StepContext) -> None:
    """There is no money: roll back."""
    await ctx.roll_back(f"the payment was declined: {declined.reason}")


@service.on(ItemMissing, undoes=[OrderPlaced])
async def not_found(missing: ItemMissing, ctx: StepContext) -> None:
    """There is nothing to pack: roll back."""
    await ctx.roll_back(f"{missing.item} is not on the shelf")


@service.on(OrderOverdue, emits=[OrderGivenUp])
async def look_into(overdue: OrderOverdue, ctx: StepContext) -> None:
    """Nothing is undone by itself: a person finds out what the order waits for, and decides."""
    order = await _locked(ctx.session, overdue.order_id)
    if order.status in {Status.COMPLETED, Status.CANCELLED}:
        return
    order.overdue = True
    await ctx.open_task(
        "overdue",
        title=f"Order {order.id} has been {order.status} for {IN_TIME.after.days} days",
        outcomes={"give-up": RollBack(OrderGivenUp(order.id)), "wait": Close()},
        details={"customer": order.customer, "item": order.item, "cents": order.cents},
    )


@service.on(StockReleased, PaymentRefunded, PointsRevoked, undoes=[StockReserved, PointsAwarded])
async def keep_record(undone: StockReleased | PaymentRefunded | PointsRevoked, ctx: StepContext) -> None:
    """A rollback of a saga is not as if nothing had happened: the record says what was done about it."""
    match undone:
        case StockReleased():
            what = "stock released"
        case PaymentRefunded(cents=cents):
            what = f"refunded {cents} cents"
        case PointsRevoked(points=points):
            what = f"revoked {points} points"
            order = await ctx.session.get_one(Order, undone.order_id)
            order.points = 0
    ctx.session.add(Record(order_id=undone.order_id, what=what))
