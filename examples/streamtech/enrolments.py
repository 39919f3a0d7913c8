"""Enrolments: whose papers are being looked at. The other half of `onboarding`, after the split, is `customers`."""

from __future__ import annotations

from uuid import UUID

import msgspec
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost import BusinessFailure, CompensationContext, Service, StepContext, event


class Base(DeclarativeBase):
    """The service's own models; sagapost's tables join the same MetaData."""


class PendingEnrolment(Base):
    """Somebody whose papers are being looked at."""

    __tablename__ = "pending_enrolments"

    customer_id: Mapped[UUID] = mapped_column(primary_key=True)


@event("customers.customer-verified.v1")
class CustomerVerified(msgspec.Struct):
    """The papers are in order."""

    customer_id: UUID


@event("enrolments.enrolment-closed.v1")
class EnrolmentClosed(msgspec.Struct):
    """Nothing is pending any more."""

    customer_id: UUID


@event("enrolments.enrolment-withdrawn.v1")
class EnrolmentWithdrawn(msgspec.Struct):
    """There is no such enrolment: the customer has changed her mind."""

    customer_id: UUID


service = Service("enrolments", source="https://enrolments.streamtech.example", metadata=Base.metadata, announce=True)


@service.compensation()
async def reopen(ctx: CompensationContext, *, customer_id: UUID) -> None:
    """The customer is not verified after all."""
    ctx.session.add(PendingEnrolment(customer_id=customer_id))


@service.on(CustomerVerified, emits=[EnrolmentClosed], fails_with=[EnrolmentWithdrawn], compensation=reopen)
async def close(verified: CustomerVerified, ctx: StepContext) -> None:
    """The second transaction: it may find that it cannot be done, when the first one was committed long ago."""
    pending = await ctx.session.get(PendingEnrolment, verified.customer_id, with_for_update=True)
    if pending is None:
        raise BusinessFailure(EnrolmentWithdrawn(verified.customer_id))
    await ctx.session.delete(pending)
    await ctx.on_rollback(reopen, customer_id=verified.customer_id)
    await ctx.publish(EnrolmentClosed(verified.customer_id), key=str(verified.customer_id))


service.rolls_back_on("customers.enrolment-overdue.v1")
