"""Customers: who may order. The other half of `onboarding`, after the split, is `enrolments`.

One transaction has become two, with a time between them in which a customer is verified and the enrolment is still
pending. What is left of "both or neither" is: the second one follows, or the first one is undone.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import Enum, String
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost import CompensationContext, Deadline, Service, StepContext, event


class Base(DeclarativeBase):
    """The service's own models; sagapost's tables join the same MetaData."""


class Status(StrEnum):
    """Whether a customer may order."""

    PENDING = "pending"
    VERIFIED = "verified"


class Customer(Base):
    """Somebody who signed up."""

    __tablename__ = "customers"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(String(50))
    status: Mapped[Status] = mapped_column(Enum(Status, native_enum=False), default=Status.PENDING)
    reason: Mapped[str | None] = mapped_column(String(200))
    enrolled: Mapped[bool] = mapped_column(default=False)


@event("customers.customer-verified.v1")
class CustomerVerified(msgspec.Struct):
    """The papers are in order."""

    customer_id: UUID


@event("customers.enrolment-overdue.v1")
class EnrolmentOverdue(msgspec.Struct):
    """Enrolments has not answered in time."""

    customer_id: UUID


@event("enrolments.enrolment-closed.v1")
class EnrolmentClosed(msgspec.Struct):
    """Nothing is pending any more."""

    customer_id: UUID


@event("enrolments.enrolment-withdrawn.v1")
class EnrolmentWithdrawn(msgspec.Struct):
    """There is no such enrolment: the customer has changed her mind."""

    customer_id: UUID


PATIENCE = Deadline("enrolment", EnrolmentOverdue, after=timedelta(days=1))
"""How long a customer may be verified with the enrolment still pending."""

service = Service(
    "customers",
    source="https://customers.streamtech.example",
    metadata=Base.metadata,
    starts=[CustomerVerified],
    ends=[EnrolmentClosed],
    announce=True,
)


async def sign_up(session: AsyncSession, name: str) -> Customer:
    """A new customer, whose papers Enrolments looks at."""
    customer = Customer(id=uuid4(), name=name, status=Status.PENDING)
    session.add(customer)
    return customer


async def verify(session: AsyncSession, customer_id: UUID) -> None:
    """This half of the step, and the event that makes the other half happen, in the caller's transaction."""
    customer = await session.get_one(Customer, customer_id)
    customer.status = Status.VERIFIED
    with service.start(str(customer_id)):
        await service.publish(session, CustomerVerified(customer_id), key=str(customer_id))
        await service.on_rollback(session, withdraw_verification, customer_id=customer_id)


@service.compensation()
async def withdraw_verification(ctx: CompensationContext, *, customer_id: UUID) -> None:
    """There is no other half: undo this one."""
    customer = await ctx.session.get_one(Customer, customer_id, with_for_update=True)
    customer.status = Status.PENDING
    customer.reason = ctx.reason
    await ctx.cancel_deadline(PATIENCE)


@service.on(CustomerVerified, deadlines=[PATIENCE], changes_nothing=True)
async def wait_for_enrolments(verified: CustomerVerified, ctx: StepContext) -> None:
    """The other half must follow; the service handles its own event to say how long it waits."""
    await ctx.deadline(PATIENCE, EnrolmentOverdue(verified.customer_id))


@service.on(EnrolmentClosed, cancels=[PATIENCE])
async def finish(closed: EnrolmentClosed, ctx: StepContext) -> None:
    """Both halves are done."""
    customer = await ctx.session.get_one(Customer, closed.customer_id, with_for_update=True)
    customer.enrolled = customer.status is Status.VERIFIED
    await ctx.cancel_deadline(PATIENCE)
    await ctx.complete()  # should `wait_for_enrolments` come after this, it sets no deadline any more


service.rolls_back_on(EnrolmentWithdrawn, EnrolmentOverdue)
