"""Scenarios of enrolment: what one local transaction does, and what it takes once there are two databases."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import StaticPool

from examples.streamtech import customers, enrolments, onboarding
from examples.streamtech.scenarios.stage import Ask, Facts, Stage


async def local_acid(stage: Stage) -> None:
    """Customer verified and enrolment removed in one local transaction: no event, no saga, nothing to undo."""
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.begin() as connection:
        await connection.run_sync(onboarding.Base.metadata.create_all)
    async with AsyncSession(engine) as session, session.begin():
        await onboarding.sign_up(session, "ivan")
        await onboarding.sign_up(session, "judy")
        await session.flush()
        await session.delete(await session.get_one(onboarding.PendingEnrolment, "judy"))
    stage.say("ivan and judy sign up; judy withdraws her enrolment")
    async with AsyncSession(engine) as session, session.begin():
        await onboarding.verify(session, "ivan")
    stage.say("ivan is verified")
    try:
        async with AsyncSession(engine) as session, session.begin():
            await onboarding.verify(session, "judy")
    except NoResultFound:
        stage.say("judy cannot be verified, since nothing is pending; the database undoes the half that was done")

    async def ask() -> Facts:
        async with AsyncSession(engine) as session:
            status = {each.name: str(each.status) for each in await session.scalars(select(onboarding.Customer))}
            pending = list(await session.scalars(select(onboarding.PendingEnrolment.customer)))
        return {"ivan is": status["ivan"], "judy is": status["judy"], "pending": ", ".join(pending)}

    await stage.ends({"ivan is": "verified", "judy is": "pending", "pending": ""}, ask)
    await engine.dispose()


async def two_services(stage: Stage) -> None:
    """The same over two services: the second half follows in its own transaction."""
    ivan = await _sign_up(stage, "ivan", pending=True)
    await _verify(stage, ivan, "ivan")
    await stage.ends({"customer": "verified", "enrolled": True, "pending": False, "why": None}, _facts(stage, ivan))


async def withdrawn(stage: Stage) -> None:
    """The second half cannot be done, when the first one is committed long ago: it is undone."""
    judy = await _sign_up(stage, "judy", pending=False)
    stage.say("judy withdraws her enrolment")
    await _verify(stage, judy, "judy")
    expected = {
        "customer": "pending",
        "enrolled": False,
        "pending": False,
        "why": "enrolments.enrolment-withdrawn.v1 from https://enrolments.streamtech.example",
    }
    await stage.ends(expected, _facts(stage, judy))


async def _sign_up(stage: Stage, name: str, *, pending: bool) -> UUID:
    async with stage.session("customers") as session, session.begin():
        customer = await customers.sign_up(session, name)
    if pending:
        async with stage.session("enrolments") as session, session.begin():
            session.add(enrolments.PendingEnrolment(customer_id=customer.id))
    stage.say(f"{name} signs up")
    return customer.id


async def _verify(stage: Stage, customer_id: UUID, name: str) -> None:
    async with stage.session("customers") as session, session.begin():
        await customers.verify(session, customer_id)
    stage.saga = str(customer_id)
    stage.say(f"{name} is verified")


def _facts(stage: Stage, customer_id: UUID) -> Ask:
    async def ask() -> Facts:
        async with stage.session("customers") as session:
            customer = await session.get_one(customers.Customer, customer_id)
        async with stage.session("enrolments") as session:
            pending = await session.get(enrolments.PendingEnrolment, customer_id)
        return {
            "customer": str(customer.status),
            "enrolled": customer.enrolled,
            "pending": pending is not None,
            "why": customer.reason,
        }

    return ask
