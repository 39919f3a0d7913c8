"""Loyalty: points for what was paid, one for each euro."""

from __future__ import annotations

from uuid import UUID

import msgspec
from sqlalchemy import CheckConstraint, String
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost import CompensationContext, Service, StepContext, event


class Base(DeclarativeBase):
    """The service's own models; sagapost's tables join the same MetaData."""


class Member(Base):
    """A customer and the points."""

    __tablename__ = "members"
    __table_args__ = (CheckConstraint("points >= 0", name="points_are_never_negative"),)

    customer: Mapped[str] = mapped_column(String(50), primary_key=True)
    points: Mapped[int] = mapped_column(default=0)


class Award(Base):
    """Points for one order."""

    __tablename__ = "awards"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    customer: Mapped[str] = mapped_column(String(50))
    points: Mapped[int]
    revoked: Mapped[bool] = mapped_column(default=False)


@event("payment.payment-taken.v1")
class PaymentTaken(msgspec.Struct):
    """Somebody paid."""

    order_id: UUID
    customer: str
    cents: int


@event("loyalty.points-awarded.v1")
class PointsAwarded(msgspec.Struct):
    """A customer has more points."""

    order_id: UUID
    customer: str
    points: int


@event("loyalty.points-revoked.v1")
class PointsRevoked(msgspec.Struct):
    """A customer has fewer points."""

    order_id: UUID
    points: int


service = Service("loyalty", source="https://loyalty.streamtech.example", metadata=Base.metadata, announce=True)


@service.compensation(emits=[PointsRevoked])
async def revoke_points(ctx: CompensationContext, *, order_id: UUID) -> None:
    """Take the points back."""
    award = await ctx.session.get_one(Award, order_id)
    member = await ctx.session.get_one(Member, award.customer, with_for_update=True)
    member.points -= award.points
    award.revoked = True
    await ctx.publish(PointsRevoked(order_id, award.points), key=str(order_id))


@service.on(PaymentTaken, emits=[PointsAwarded], compensation=revoke_points)
async def award_points(paid: PaymentTaken, ctx: StepContext) -> None:
    """Paid is paid: the points are given at once, and taken back should the order fail after all."""
    points = await credit(ctx.session, paid.order_id, paid.customer, paid.cents)
    await ctx.on_rollback(revoke_points, order_id=paid.order_id)
    await ctx.publish(PointsAwarded(paid.order_id, paid.customer, points), key=str(paid.order_id))


service.rolls_back_on("warehouse.item-missing.v1", "orders.order-given-up.v1")
service.pivots_on("warehouse.order-dispatched.v1")
service.completes_on("orders.order-completed.v1")


async def credit(session: AsyncSession, order_id: UUID, customer: str, cents: int) -> int:
    """Write the points down; return how many."""
    points = cents // 100
    member = await session.get(Member, customer, with_for_update=True)
    if member is None:
        member = Member(customer=customer, points=0)
        session.add(member)
    member.points += points
    session.add(Award(order_id=order_id, customer=customer, points=points))
    return points
