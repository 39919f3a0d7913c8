"""Onboarding in one service: a customer is verified and the pending enrolment is gone, in one local transaction.

Local ACID first: both tables are in one database, so there is nothing for a saga to do. `customers` and `enrolments`
are the same step once the tables live in two databases.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import Enum, String
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The service's models; no table of sagapost is needed."""


class Status(StrEnum):
    """Whether a customer may order."""

    PENDING = "pending"
    VERIFIED = "verified"


class Customer(Base):
    """Somebody who signed up."""

    __tablename__ = "customers"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    status: Mapped[Status] = mapped_column(Enum(Status, native_enum=False), default=Status.PENDING)


class PendingEnrolment(Base):
    """Somebody whose papers are being looked at."""

    __tablename__ = "pending_enrolments"

    customer: Mapped[str] = mapped_column(String(50), primary_key=True)


async def sign_up(session: AsyncSession, name: str) -> None:
    """A new customer, and the papers to look at."""
    session.add_all([Customer(name=name, status=Status.PENDING), PendingEnrolment(customer=name)])


async def verify(session: AsyncSession, name: str) -> None:
    """Both changes in the caller's transaction: either both are made or neither, and nobody sees one of them alone.

    :raises NoResultFound: if there is no such customer, or nothing is pending; then nothing has changed.
    """
    customer = await session.get_one(Customer, name)
    customer.status = Status.VERIFIED
    await session.delete(await session.get_one(PendingEnrolment, name))
