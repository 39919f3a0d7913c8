"""The bank: not a service of StreamTech but somebody else's, with books of its own, and down now and then.

It does what payment providers do: a charge has a key, and the same key charged again does nothing. That is what makes
it safe to call from a handler, which runs again whenever its own transaction did not commit.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import CheckConstraint, String, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

URL_VARIABLE = "STREAMTECH_BANK_URL"
SHOP = "streamtech"


class Base(DeclarativeBase):
    """The bank's books."""


class Account(Base):
    """Money, in cents."""

    __tablename__ = "accounts"
    __table_args__ = (CheckConstraint("cents >= 0", name="no_credit"),)

    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    cents: Mapped[int]
    unanswered: Mapped[int] = mapped_column(default=0)
    """So many of the next requests get no answer; every other one is carried out all the same."""


class Charge(Base):
    """Money that went from an account to the shop."""

    __tablename__ = "charges"

    key: Mapped[str] = mapped_column(String(100), primary_key=True)
    account: Mapped[str] = mapped_column(String(50))
    cents: Mapped[int]
    refunded: Mapped[bool] = mapped_column(default=False)


class Declined(Exception):  # noqa: N818 an answer, not an error
    """The account does not have that much: asking again would not help."""


class BankTimeoutError(Exception):
    """No answer. Nobody knows whether the money has moved; asking again under the same key is safe."""


async def charge(key: str, account: str, cents: int) -> None:
    """Move money from an account to the shop, once for a key.

    :raises Declined: if there is not enough.
    :raises BankTimeoutError: if the bank does not answer.
    """
    async with _books() as session:
        trouble = await _trouble(session, account)
        if trouble % 2 == 1:
            raise BankTimeoutError(f"The bank does not answer (charge {key}).")
        if await session.get(Charge, key) is None:
            if not await _move(session, account, -cents):
                raise Declined(f"{account} does not have {cents} cents")
            await _move(session, SHOP, cents)
            session.add(Charge(key=key, account=account, cents=cents))
            await session.commit()
    if trouble:
        raise BankTimeoutError(f"The bank does not answer any more (charge {key}).")


async def refund(key: str) -> None:
    """Move the money of a charge back, once.

    :raises BankTimeoutError: if the bank does not answer.
    """
    async with _books() as session:
        made = update(Charge).where(Charge.key == key, Charge.refunded.is_(False)).values(refunded=True)
        moved = (await session.execute(made.returning(Charge.account, Charge.cents))).one_or_none()
        if moved is not None:
            await _move(session, moved.account, moved.cents)
            await _move(session, SHOP, -moved.cents)
            await session.commit()


async def _move(session: AsyncSession, account: str, cents: int) -> bool:
    enough = update(Account).where(Account.name == account, Account.cents + cents >= 0)
    changed = await session.execute(enough.values(cents=Account.cents + cents).returning(Account.name))
    return changed.one_or_none() is not None


async def _trouble(session: AsyncSession, account: str) -> int:
    """Count one unanswered request down; 0 if the bank is well."""
    unanswered = update(Account).where(Account.name == account, Account.unanswered > 0)
    left = await session.scalar(unanswered.values(unanswered=Account.unanswered - 1).returning(Account.unanswered + 1))
    await session.commit()
    return left or 0


async def charges() -> dict[str, int]:
    """Return what was charged and not refunded, by key."""
    async with _books() as session:
        kept = select(Charge.key, Charge.cents).where(Charge.refunded.is_(False))
        return {row.key: row.cents for row in await session.execute(kept)}


async def balances() -> dict[str, int]:
    """Return what is on every account."""
    async with _books() as session:
        return {row.name: row.cents for row in await session.execute(select(Account.name, Account.cents))}


async def pay_in(account: str, cents: int) -> None:
    """Open an account."""
    async with _books() as session:
        session.add(Account(name=account, cents=cents))
        await session.commit()


async def leave_unanswered(account: str, requests: int) -> None:
    """Let the next requests for an account have no answer."""
    async with _books() as session:
        await session.execute(update(Account).where(Account.name == account).values(unanswered=requests))
        await session.commit()


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[None]:
    """Open a bank with books of its own, for processes started inside the block too."""
    before = os.environ.get(URL_VARIABLE)
    os.environ[URL_VARIABLE] = url
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await pay_in(SHOP, 0)
        yield
    finally:
        await engine.dispose()
        if before is None:
            del os.environ[URL_VARIABLE]
        else:
            os.environ[URL_VARIABLE] = before


@asynccontextmanager
async def _books() -> AsyncGenerator[AsyncSession]:
    engine = create_async_engine(os.environ[URL_VARIABLE], poolclass=NullPool)
    try:
        async with AsyncSession(engine) as session:
            yield session
    except DBAPIError as error:
        raise BankTimeoutError("The bank is busy.") from error
    finally:
        await engine.dispose()
