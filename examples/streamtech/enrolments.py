"""Enrolments: whose papers are being looked at. The other half of `onboarding`, after the split, is `customers`."""

from __future__ import annotations

from uuid import UUID

import msgspec
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost.core import event
from sagapost.inbox import BusinessFailure, Inbox, InboxTables
from sagapost.outbox import Outbox, OutboxTables
from sagapost.sagas import CompensationContext, Sagas, SagaTables, StepContext


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


outbox = Outbox(source="https://enrolments.streamtech.example", tables=OutboxTables(Base.metadata))
sagas = Sagas("enrolments", outbox=outbox, tables=SagaTables(Base.metadata), announce=True)
inbox = Inbox("enrolments", outbox=outbox, tables=InboxTables(Base.metadata), context=sagas.context)


@sagas.compensation()
async def reopen(ctx: CompensationContext, *, customer_id: UUID) -> None:
    """The customer is not verified after all."""
    ctx.session.add(PendingEnrolment(customer_id=customer_id))


@inbox.on(CustomerVerified, emits=[EnrolmentClosed, EnrolmentWithdrawn])
@sagas.step(emits=[EnrolmentClosed], compensation=reopen, fails_with=[EnrolmentWithdrawn])
async def close(verified: CustomerVerified, ctx: StepContext) -> None:
    """The second transaction: it may find that it cannot be done, when the first one was committed long ago."""
    pending = await ctx.session.get(PendingEnrolment, verified.customer_id, with_for_update=True)
    if pending is None:
        raise BusinessFailure(EnrolmentWithdrawn(verified.customer_id))
    await ctx.session.delete(pending)
    await ctx.on_rollback(reopen, customer_id=verified.customer_id)
    await ctx.publish(EnrolmentClosed(verified.customer_id), key=str(verified.customer_id))


sagas.rolls_back_on(inbox, "customers.enrolment-overdue.v1")
