"""The broker delivers at least once; each event takes effect once, and a copy is recognised by its id."""

from __future__ import annotations

import anyio
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from examples.concepts.events import PaymentTaken, PointsAwarded, show
from sagapost import Context, Service
from sagapost.sagas.testing import Rehearsal


class Base(DeclarativeBase): ...


class Member(Base):
    __tablename__ = "members"
    name: Mapped[str] = mapped_column(primary_key=True)
    points: Mapped[int] = mapped_column(default=0)


loyalty = Service("loyalty", source="https://loyalty.example", metadata=Base.metadata)


@loyalty.on(PaymentTaken, emits=[PointsAwarded])
async def award_points(paid: PaymentTaken, ctx: Context) -> None:
    member = await ctx.session.get_one(Member, "ada")
    member.points += paid.cents // 100  # not idempotent by itself: done twice it would count twice
    await ctx.publish(PointsAwarded(paid.order, paid.cents // 100))


async def main() -> None:
    async with Rehearsal(duplicates=True) as stage:
        service = await stage.add(loyalty)
        async with service.sessions.begin() as session:
            session.add(Member(name="ada"))
        await stage.say(PaymentTaken("1", 30_00))
        await stage.say(PaymentTaken("2", 12_00))
        await stage.run()
        async with service.sessions() as session:
            print("every event was delivered twice; points:", (await session.get_one(Member, "ada")).points)
        show(stage)


if __name__ == "__main__":
    anyio.run(main)
