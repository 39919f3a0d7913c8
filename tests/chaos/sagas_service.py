"""Four services with money and goods: `sagapost consume tests.chaos.sagas_service:orders`, `:stock`, and so on.

    Orders -- placed --> Stock -- reserved --> Payment -- taken --> Shipping -- sent --> Orders: completed

Orders decides: the first of "sent", a failure, and the deadline that reaches it makes the order completed or
cancelled, and everybody undoes their part of a cancelled one. What goes wrong with an order travels with it, so that
it can be judged without asking anybody. Every effect is also a row that nothing makes unique: a second one shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

import msgspec
from sqlalchemy import BigInteger, Identity, String, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost.core import event
from sagapost.core.backoff import Backoff
from sagapost.inbox import BusinessFailure, Inbox, InboxTables, Retry, RetryPolicy
from sagapost.inbox.declared.outcomes import Exhausted
from sagapost.outbox import Outbox, OutboxTables
from sagapost.sagas import CompensationContext, Deadline, Sagas, SagaTables, StepContext

__all__ = ["DEADLINE", "Effect", "Fate", "Order", "OrderOverdue", "OrderPlaced", "SERVICES"]


class Fate(StrEnum):
    """What goes wrong with an order."""

    NONE = "nothing"
    REFUSED = "the step says no"
    BREAKS = "the step fails every time, until it is given up"
    HICCUP = "the step fails twice"
    LOST = "the step does nothing and says nothing"
    LATE = "the step comes after the deadline"


class OrdersBase(DeclarativeBase):
    """Models of Orders."""


class StockBase(DeclarativeBase):
    """Models of Stock."""


class PaymentBase(DeclarativeBase):
    """Models of Payment."""


class ShippingBase(DeclarativeBase):
    """Models of Shipping."""


class Order(OrdersBase):
    """An order; `state` is placed, completed or cancelled."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    saga: Mapped[str] = mapped_column(String(64))
    item: Mapped[int]
    quantity: Mapped[int]
    account: Mapped[int]
    cents: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16), default="placed")
    reason: Mapped[str | None]


class Stock(StockBase):
    """How many there are of an item."""

    __tablename__ = "stock"

    item: Mapped[int] = mapped_column(primary_key=True)
    available: Mapped[int]


class Account(PaymentBase):
    """A customer's money."""

    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    cents: Mapped[int] = mapped_column(BigInteger)


class Effect:
    """One thing done or undone for an order."""

    position: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    order_id: Mapped[int] = mapped_column(BigInteger)
    amount: Mapped[int] = mapped_column(BigInteger)
    """Taken; negative: given back."""


class StockMoved(Effect, StockBase):
    """Goods taken or put back."""

    __tablename__ = "effects"


class MoneyMoved(Effect, PaymentBase):
    """Cents taken or given back."""

    __tablename__ = "effects"


class ParcelMoved(Effect, ShippingBase):
    """A parcel sent (1) or called back (-1)."""

    __tablename__ = "effects"


class Shape(msgspec.Struct):
    """What every step knows of an order."""

    order: int
    item: int
    quantity: int
    account: int
    cents: int
    fate: Fate = Fate.NONE
    at: str = ""
    """The service at which it goes wrong."""


@event("orders.placed.v1")
class OrderPlaced(Shape):
    """A customer wants something."""


@event("stock.reserved.v1")
class StockReserved(Shape):
    """The goods are kept."""


@event("payment.taken.v1")
class PaymentTaken(Shape):
    """It is paid."""


@event("shipping.sent.v1")
class ParcelSent(Shape):
    """It is on its way."""


@event("orders.completed.v1")
class OrderCompleted(msgspec.Struct):
    """The end, one way."""

    order: int


@event("orders.cancelled.v1")
class OrderCancelled(msgspec.Struct):
    """Everybody undoes their part."""

    order: int


@event("orders.overdue.v1")
class OrderOverdue(msgspec.Struct):
    """The deadline."""

    order: int


DEADLINE = Deadline("order", OrderOverdue, after=timedelta(days=1))
"""Set with each order by whoever places it, for a time of its own."""


@event("stock.refused.v1")
class StockRefused(msgspec.Struct):
    """There is not enough of it, or the step was given up."""

    order: int


@event("payment.declined.v1")
class PaymentDeclined(msgspec.Struct):
    """There is no money, or the step was given up."""

    order: int


@event("shipping.refused.v1")
class ShippingRefused(msgspec.Struct):
    """Nobody lives there, or the step was given up."""

    order: int


@dataclass(frozen=True, slots=True)
class Service:
    """One of the four."""

    base: type[DeclarativeBase]
    outbox: Outbox
    sagas: Sagas
    inbox: Inbox


def _service(
    name: str, base: type[DeclarativeBase], *, starts: tuple[type, ...] = (), ends: tuple[type, ...] = ()
) -> Service:
    outbox = Outbox(source=f"https://{name}.example", tables=OutboxTables(base.metadata))
    sagas = Sagas(name, outbox=outbox, tables=SagaTables(base.metadata), starts=starts, ends=ends, announce=True)
    inbox = Inbox(name, outbox=outbox, tables=InboxTables(base.metadata), context=sagas.context)
    return Service(base, outbox, sagas, inbox)


SERVICES = {
    "orders": _service(
        "orders", OrdersBase, starts=(OrderPlaced, OrderOverdue), ends=(OrderCompleted, OrderCancelled)
    ),
    "stock": _service("stock", StockBase),
    "payment": _service("payment", PaymentBase),
    "shipping": _service("shipping", ShippingBase),
}
orders, stock, payment, shipping = (service.inbox for service in SERVICES.values())
_stock, _payment, _shipping = (SERVICES[name].sagas for name in ("stock", "payment", "shipping"))

PATIENT = RetryPolicy(quick=1, attempts=4, backoff=Backoff(base=timedelta(milliseconds=100), cap=timedelta(seconds=1)))
"""Soon used up: a step that breaks is given up within seconds."""
LATE_BY = timedelta(seconds=6)
"""How long a late step waits; longer than deadlines in `tests.chaos.sagas`."""


def _lost(shape: Shape, here: str) -> bool:
    """Whether the step is to do nothing and say nothing."""
    return shape.at == here and shape.fate is Fate.LOST


def _suffer(shape: Shape, here: str, ctx: StepContext, refusal: object) -> None:
    """Go wrong at the end of a step, where that is the order's fate: nothing of the step may remain."""
    if shape.at != here:
        return
    match shape.fate:
        case Fate.REFUSED:
            raise BusinessFailure(refusal)
        case Fate.BREAKS:
            raise ConnectionRefusedError("nobody answers")
        case Fate.HICCUP if ctx.attempt <= 2:
            raise ConnectionRefusedError("nobody answers for a moment")
        case Fate.LATE if ctx.attempt == 1:
            raise Retry(LATE_BY, reason="a slow colleague")
        case _:
            pass


def _next(cls: type[Shape], shape: Shape) -> Shape:
    return cls(**msgspec.structs.asdict(shape))


# --- stock ---


@_stock.compensation()
async def put_back(ctx: CompensationContext, *, order: int, item: int, quantity: int) -> None:
    """Undo `reserve`; for some orders only at the second try."""
    await ctx.session.execute(update(Stock).where(Stock.item == item).values(available=Stock.available + quantity))
    ctx.session.add(StockMoved(order_id=order, amount=-quantity))
    if order % 5 == 0 and ctx.attempt == 1:
        await ctx.session.flush()
        raise ConnectionRefusedError("the shelf is out of reach for a moment")


async def _stock_gives_up(shape: Shape, ctx: StepContext, _exhausted: Exhausted) -> None:
    await ctx.publish(StockRefused(shape.order))


@stock.on(OrderPlaced, emits=[StockReserved, StockRefused], retry=PATIENT, on_exhausted=_stock_gives_up)
@_stock.step(compensation=put_back, fails_with=[StockRefused])
async def reserve(placed: OrderPlaced, ctx: StepContext) -> None:
    """Take the goods from the shelf."""
    if _lost(placed, "stock"):
        return
    enough = (Stock.item == placed.item) & (Stock.available >= placed.quantity)
    taking = update(Stock).where(enough).values(available=Stock.available - placed.quantity).returning(Stock.item)
    if (await ctx.session.execute(taking)).one_or_none() is None:
        raise BusinessFailure(StockRefused(placed.order))
    ctx.session.add(StockMoved(order_id=placed.order, amount=placed.quantity))
    await ctx.on_rollback(put_back, order=placed.order, item=placed.item, quantity=placed.quantity)
    await ctx.publish(_next(StockReserved, placed), key=str(placed.order))
    _suffer(placed, "stock", ctx, StockRefused(placed.order))


# --- payment ---


@_payment.compensation()
async def refund(ctx: CompensationContext, *, order: int, account: int, cents: int) -> None:
    """Undo `take_money`."""
    await ctx.session.execute(update(Account).where(Account.id == account).values(cents=Account.cents + cents))
    ctx.session.add(MoneyMoved(order_id=order, amount=-cents))


async def _payment_gives_up(shape: Shape, ctx: StepContext, _exhausted: Exhausted) -> None:
    await ctx.publish(PaymentDeclined(shape.order))


@payment.on(StockReserved, emits=[PaymentTaken, PaymentDeclined], retry=PATIENT, on_exhausted=_payment_gives_up)
@_payment.step(compensation=refund, fails_with=[PaymentDeclined])
async def take_money(reserved: StockReserved, ctx: StepContext) -> None:
    """Take the customer's money."""
    if _lost(reserved, "payment"):
        return
    enough = (Account.id == reserved.account) & (Account.cents >= reserved.cents)
    taking = update(Account).where(enough).values(cents=Account.cents - reserved.cents).returning(Account.id)
    if (await ctx.session.execute(taking)).one_or_none() is None:
        raise BusinessFailure(PaymentDeclined(reserved.order))
    ctx.session.add(MoneyMoved(order_id=reserved.order, amount=reserved.cents))
    await ctx.on_rollback(refund, order=reserved.order, account=reserved.account, cents=reserved.cents)
    await ctx.publish(_next(PaymentTaken, reserved), key=str(reserved.order))
    _suffer(reserved, "payment", ctx, PaymentDeclined(reserved.order))


# --- shipping ---


@_shipping.compensation()
async def call_back(ctx: CompensationContext, *, order: int) -> None:
    """Undo `send`; for some orders the courier is asked twice."""
    ctx.session.add(ParcelMoved(order_id=order, amount=-1))
    if order % 7 == 0 and ctx.attempt == 1:
        await ctx.session.flush()
        raise ConnectionRefusedError("the courier does not answer")


async def _shipping_gives_up(shape: Shape, ctx: StepContext, _exhausted: Exhausted) -> None:
    await ctx.publish(ShippingRefused(shape.order))


@shipping.on(PaymentTaken, emits=[ParcelSent, ShippingRefused], retry=PATIENT, on_exhausted=_shipping_gives_up)
@_shipping.step(compensation=call_back, fails_with=[ShippingRefused])
async def send(taken: PaymentTaken, ctx: StepContext) -> None:
    """Send the parcel."""
    if _lost(taken, "shipping"):
        return
    ctx.session.add(ParcelMoved(order_id=taken.order, amount=1))
    await ctx.on_rollback(call_back, order=taken.order)
    await ctx.publish(_next(ParcelSent, taken), key=str(taken.order))
    _suffer(taken, "shipping", ctx, ShippingRefused(taken.order))


for _inbox, _sagas in ((stock, _stock), (payment, _payment), (shipping, _shipping)):
    _sagas.rolls_back_on(_inbox, OrderCancelled)


# --- orders ---


async def _decide(ctx: StepContext, order: int, state: str) -> bool:
    """Bring an order to its end; False if it has come to one already."""
    deciding = update(Order).where(Order.id == order, Order.state == "placed").values(state=state)
    decided = await ctx.session.execute(deciding.values(reason=ctx.event.type).returning(Order.id))
    if decided.one_or_none() is None:
        return False
    await ctx.cancel_deadline(DEADLINE)
    return True


@orders.on(ParcelSent, emits=[OrderCompleted])
@SERVICES["orders"].sagas.step(changes_nothing=True, cancels=[DEADLINE])
async def complete(sent: ParcelSent, ctx: StepContext) -> None:
    """The order has come through."""
    if await _decide(ctx, sent.order, "completed"):
        await ctx.publish(OrderCompleted(sent.order), key=str(sent.order))


@orders.on(StockRefused, PaymentDeclined, ShippingRefused, OrderOverdue, emits=[OrderCancelled])
@SERVICES["orders"].sagas.step(changes_nothing=True, cancels=[DEADLINE])
async def cancel(failed: StockRefused | PaymentDeclined | ShippingRefused | OrderOverdue, ctx: StepContext) -> None:
    """The order has not."""
    if await _decide(ctx, failed.order, "cancelled"):
        await ctx.publish(OrderCancelled(failed.order), key=str(failed.order))
