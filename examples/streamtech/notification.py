"""Notification: writes to customers. A mail cannot be unsent, so what undoes it is another mail."""

from __future__ import annotations

from uuid import UUID

import msgspec
from sqlalchemy import String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost import CompensationContext, Service, StepContext, event


class Base(DeclarativeBase):
    """The service's own models; sagapost's tables join the same MetaData."""


class Mail(Base):
    """A mail that was handed to the mail server."""

    __tablename__ = "mails"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[UUID] = mapped_column(index=True)
    customer: Mapped[str] = mapped_column(String(50))
    subject: Mapped[str] = mapped_column(String(100))
    text: Mapped[str] = mapped_column(Text)


@event("payment.payment-taken.v1")
class PaymentTaken(msgspec.Struct):
    """The order is paid for."""

    order_id: UUID
    customer: str


@event("orders.order-completed.v1")
class OrderCompleted(msgspec.Struct):
    """The goods are on their way."""

    order_id: UUID
    customer: str


service = Service(
    "notification", source="https://notification.streamtech.example", metadata=Base.metadata, announce=True
)


@service.compensation()
async def write_again(ctx: CompensationContext, *, order_id: UUID, customer: str) -> None:
    """The first mail was read long ago: say what has changed."""
    text = "Your order is cancelled, and we are sorry. What you paid is on its way back to you."
    ctx.session.add(Mail(order_id=order_id, customer=customer, subject="Your order is cancelled", text=text))


@service.on(PaymentTaken, compensation=write_again)
async def confirm_payment(paid: PaymentTaken, ctx: StepContext) -> None:
    """Say that the order is being packed."""
    text = "Thank you. Your payment has arrived, and your order is being packed."
    ctx.session.add(Mail(order_id=paid.order_id, customer=paid.customer, subject="We are packing", text=text))
    await ctx.on_rollback(write_again, order_id=paid.order_id, customer=paid.customer)


@service.on(OrderCompleted, changes_nothing=True)
async def announce_parcel(completed: OrderCompleted, ctx: StepContext) -> None:
    """Say that the parcel is on its way."""
    text = "The courier has your parcel."
    ctx.session.add(Mail(order_id=completed.order_id, customer=completed.customer, subject="On its way", text=text))


service.rolls_back_on("warehouse.item-missing.v1", "orders.order-given-up.v1")
service.pivots_on("warehouse.order-dispatched.v1")
service.completes_on("orders.order-completed.v1")
