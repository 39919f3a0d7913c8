"""Payment: charges the customer once the goods are there, and gives the money back if there is no delivery."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from uuid import UUID

import msgspec
from sqlalchemy import Enum, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from examples.streamtech import bank
from sagapost import BusinessFailure, CompensationContext, Retry, RetryPolicy, Service, StepContext, event
from sagapost.core.backoff import Backoff

BANK = RetryPolicy(quick=1, attempts=100, backoff=Backoff(base=timedelta(milliseconds=500), cap=timedelta(hours=1)))
"""A bank that does not answer is asked again for about four days."""


class Base(DeclarativeBase):
    """The service's own models; sagapost's tables join the same MetaData."""


class Invoice(Base):
    """What an order costs, and who pays."""

    __tablename__ = "invoices"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    customer: Mapped[str] = mapped_column(String(50))
    cents: Mapped[int]


class State(StrEnum):
    """Where the money is."""

    TAKEN = "taken"
    REFUNDED = "refunded"


class Payment(Base):
    """Money that was taken."""

    __tablename__ = "payments"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    cents: Mapped[int]
    state: Mapped[State] = mapped_column(Enum(State, native_enum=False), default=State.TAKEN)


# --- what the service handles, and what it publishes ---


@event("orders.order-placed.v1")
class OrderPlaced(msgspec.Struct):
    """A customer will have to pay."""

    order_id: UUID
    customer: str
    cents: int


@event("warehouse.stock-reserved.v1")
class StockReserved(msgspec.Struct):
    """The goods are there."""

    order_id: UUID


@event("payment.payment-taken.v1")
class PaymentTaken(msgspec.Struct):
    """The money is ours."""

    order_id: UUID
    customer: str
    cents: int


@event("payment.payment-declined.v1")
class PaymentDeclined(msgspec.Struct):
    """The customer cannot pay."""

    order_id: UUID
    reason: str


@event("payment.payment-refunded.v1")
class PaymentRefunded(msgspec.Struct):
    """The customer has the money back."""

    order_id: UUID
    cents: int


service = Service("payment", source="https://payment.streamtech.example", metadata=Base.metadata, announce=True)


@service.on(OrderPlaced, changes_nothing=True)
async def write_invoice(order: OrderPlaced, ctx: StepContext) -> None:
    """Remember the price until the goods are there."""
    ctx.session.add(Invoice(order_id=order.order_id, customer=order.customer, cents=order.cents))


@service.compensation(emits=[PaymentRefunded])
async def refund_payment(ctx: CompensationContext, *, order_id: UUID) -> None:
    """Give the money back."""
    payment = await ctx.session.get_one(Payment, order_id, with_for_update=True)
    await bank.refund(str(order_id))
    payment.state = State.REFUNDED
    await ctx.publish(PaymentRefunded(order_id, payment.cents), key=str(order_id))


@service.on(StockReserved, emits=[PaymentTaken], fails_with=[PaymentDeclined], compensation=refund_payment, retry=BANK)
async def take_payment(reserved: StockReserved, ctx: StepContext) -> None:
    """Charge the customer. "No" is an answer and ends the saga; no answer is an error and is tried again."""
    invoice = await ctx.session.get(Invoice, reserved.order_id)
    if invoice is None:
        raise Retry(timedelta(seconds=1), reason="OrderPlaced is handled at this moment, by another task")
    if await ctx.rolling_back():
        # The order was given up meanwhile. An earlier try may have been charged without an answer: that goes back.
        await bank.refund(str(invoice.order_id))
        return
    try:
        # The order's id is the key: should this transaction be rolled back after all, the next try charges nothing.
        await bank.charge(str(invoice.order_id), invoice.customer, invoice.cents)
    except bank.Declined as declined:
        raise BusinessFailure(PaymentDeclined(invoice.order_id, str(declined))) from declined
    ctx.session.add(Payment(order_id=invoice.order_id, cents=invoice.cents))
    await ctx.on_rollback(refund_payment, order_id=invoice.order_id)
    taken = PaymentTaken(invoice.order_id, invoice.customer, invoice.cents)
    await ctx.publish(taken, key=str(invoice.order_id))


service.rolls_back_on("warehouse.item-missing.v1", "orders.order-given-up.v1")
service.pivots_on("warehouse.order-dispatched.v1")
service.completes_on("orders.order-completed.v1")
