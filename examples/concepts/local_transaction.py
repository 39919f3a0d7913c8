"""Two changes that belong together: in one database one transaction is all it takes; in two it takes an event."""

from __future__ import annotations

import anyio
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from examples.concepts.events import CustomerVerified
from sagapost import Context, Service
from sagapost.sagas.testing import Rehearsal


class Base(DeclarativeBase): ...


class Customer(Base):
    __tablename__ = "customers"
    name: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="PENDING")


class PendingEnrolment(Base):
    __tablename__ = "pending_enrolments"
    customer: Mapped[str] = mapped_column(primary_key=True)


# --- together: both tables are in one database ---


async def verify(session: AsyncSession, customer: str, *, interrupted: bool = False) -> None:
    (await session.get_one(Customer, customer)).status = "VERIFIED"
    if interrupted:
        raise ConnectionError("the power fails between the two changes")
    await session.execute(delete(PendingEnrolment).where(PendingEnrolment.customer == customer))


async def together() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    sessions = async_sessionmaker(engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with sessions.begin() as session:
        session.add_all([Customer(name="ada"), PendingEnrolment(customer="ada")])
    for interrupted in (True, False):
        try:
            async with sessions.begin() as session:
                await verify(session, "ada", interrupted=interrupted)
        except ConnectionError as error:
            print(f"{error}:")
        async with sessions() as session:
            print(" ", await look(session))
    await engine.dispose()


# --- apart: Customers and Enrolments are two services with a database each ---

customers = Service("customers", source="https://customers.example", metadata=Base.metadata)
enrolments = Service("enrolments", source="https://enrolments.example", metadata=Base.metadata)


async def verify_apart(session: AsyncSession, customer: str) -> None:
    (await session.get_one(Customer, customer)).status = "VERIFIED"
    await customers.publish(session, CustomerVerified(customer), key=customer)


@enrolments.on(CustomerVerified)
async def remove_pending(verified: CustomerVerified, ctx: Context) -> None:
    await ctx.session.execute(delete(PendingEnrolment).where(PendingEnrolment.customer == verified.customer))


async def apart() -> None:
    async with Rehearsal() as stage:
        one = await stage.add(customers)
        other = await stage.add(enrolments)
        async with one.sessions.begin() as session:
            session.add(Customer(name="ada"))
        async with other.sessions.begin() as session:
            session.add(PendingEnrolment(customer="ada"))
        async with one.sessions.begin() as session:
            await verify_apart(session, "ada")
        for moment in ("after the first commit", "after the event"):
            if moment == "after the event":
                await stage.run()
            async with one.sessions() as left, other.sessions() as right:
                status = (await left.get_one(Customer, "ada")).status
                pending = await right.scalar(select(func.count()).select_from(PendingEnrolment))
                print(f"{moment}: {status}, {pending} pending")


async def look(session: AsyncSession) -> str:
    pending = await session.scalar(select(func.count()).select_from(PendingEnrolment))
    return f"{(await session.get_one(Customer, 'ada')).status}, {pending} pending"


async def main() -> None:
    await together()
    await apart()


if __name__ == "__main__":
    anyio.run(main)
