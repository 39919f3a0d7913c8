"""What a user's function can do besides its work: one row for each, with what must come of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import anyio.lowlevel
from sqlalchemy import Table, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, registry

__all__ = ["DEEDS", "SYNC_DEEDS", "Deed", "Outcome", "Unprintable"]

Outcome = Literal["done", "failed", "broke-contract"]


class Unprintable(Exception):  # noqa: N818 its name is what is looked for
    """Cannot be shown."""

    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class _Own(BaseException):
    """No `Exception`, and of no kind that Python knows."""


@dataclass(frozen=True)
class Deed:
    """One thing a function does after it has written its effect."""

    do: Callable[..., Awaitable[object]]
    outcome: Outcome
    says: str = ""
    """Part of the error that is kept."""


def _raises(error: Callable[[], BaseException], says: str) -> Deed:
    async def do(_session: AsyncSession, _table: Table) -> None:
        raise error()

    return Deed(do, "failed", says)


async def _returns_a_value(_session: AsyncSession, _table: Table) -> object:
    return {"status": "done"}


async def _returns_a_coroutine(_session: AsyncSession, _table: Table) -> object:
    return anyio.lowlevel.checkpoint()


async def _lets_a_cancelled_call_out(_session: AsyncSession, _table: Table) -> None:
    inner = asyncio.ensure_future(asyncio.sleep(10))
    inner.cancel()
    await inner


async def _cancels_its_task(_session: AsyncSession, _table: Table) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def _cancels_its_task_and_returns(_session: AsyncSession, _table: Table) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def _commits(session: AsyncSession, _table: Table) -> None:
    await session.commit()


async def _rolls_back(session: AsyncSession, _table: Table) -> None:
    await session.rollback()


async def _closes(session: AsyncSession, _table: Table) -> None:
    await session.close()


async def _commits_the_connection(session: AsyncSession, _table: Table) -> None:
    await (await session.connection()).commit()


async def _closes_the_connection(session: AsyncSession, _table: Table) -> None:
    await (await session.connection()).close()


async def _closes_the_drivers_connection(session: AsyncSession, _table: Table) -> None:
    raw = await (await session.connection()).get_raw_connection()
    await _driver(raw).close()


async def _says_commit(session: AsyncSession, _table: Table) -> None:
    await session.execute(text("COMMIT"))


async def _says_rollback(session: AsyncSession, _table: Table) -> None:
    await session.execute(text("ROLLBACK"))


async def _commits_and_raises(session: AsyncSession, _table: Table) -> None:
    await session.execute(text("COMMIT"))
    raise ValueError("after the commit")


async def _swallows(session: AsyncSession, _table: Table) -> None:
    with contextlib.suppress(SQLAlchemyError):
        await session.execute(text("SELECT count(*) FROM statistics_that_are_not_there"))


async def _swallows_and_goes_on(session: AsyncSession, table: Table) -> None:
    for _ in range(2):
        with contextlib.suppress(SQLAlchemyError):
            await session.execute(text("SELECT 1 / 0"))
    with contextlib.suppress(SQLAlchemyError):
        await session.execute(table.insert().values(order_id="further"))


async def _swallows_through_the_driver(session: AsyncSession, _table: Table) -> None:
    raw = await (await session.connection()).get_raw_connection()
    with contextlib.suppress(Exception):
        await _driver(raw).execute("SELECT * FROM statistics_that_are_not_there")


def _refused_row(table: Table) -> object:
    """Return an object of the ORM that the table takes no row of: without its `order_id`."""
    row = type("Row", (), {})
    registry().map_imperatively(row, table)
    return row()


async def _adds_what_is_refused(session: AsyncSession, table: Table) -> None:
    session.add(_refused_row(table))


async def _lets_a_failed_flush_out(session: AsyncSession, table: Table) -> None:
    session.add(_refused_row(table))
    await session.flush()


async def _swallows_a_failed_flush(session: AsyncSession, table: Table) -> None:
    with contextlib.suppress(SQLAlchemyError):
        await _lets_a_failed_flush_out(session, table)


async def _undoes_a_flush(session: AsyncSession, table: Table) -> None:
    with contextlib.suppress(SQLAlchemyError):
        async with session.begin_nested():
            await _lets_a_failed_flush_out(session, table)


async def _undoes_a_part(session: AsyncSession, _table: Table) -> None:
    with contextlib.suppress(SQLAlchemyError):
        async with session.begin_nested():
            await session.execute(text("SELECT count(*) FROM statistics_that_are_not_there"))


async def _takes_too_long(_session: AsyncSession, _table: Table) -> None:
    await anyio.sleep_forever()


async def _swallows_its_time_limit(_session: AsyncSession, _table: Table) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await anyio.sleep_forever()


async def _waits_for_a_lock(session: AsyncSession, _table: Table) -> None:
    await session.execute(text("SELECT pg_advisory_xact_lock(4711)"))


def _driver(raw: Any) -> Any:
    return raw.driver_connection


DEEDS: dict[str, Deed] = {
    "returns a value": Deed(_returns_a_value, "done"),
    "returns a coroutine": Deed(_returns_a_coroutine, "broke-contract", "nothing runs"),
    "raises": _raises(lambda: ValueError("cannot do it"), "ValueError: cannot do it"),
    "raises what cannot be shown": _raises(Unprintable, "Unprintable"),
    "raises NUL and surrogates": _raises(lambda: RuntimeError("a\x00b\udc80c"), "RuntimeError: a"),
    "raises a mebibyte": _raises(lambda: RuntimeError("x" * 2**20), "RuntimeError: x"),
    "raises SystemExit": _raises(lambda: SystemExit(0), "SystemExit"),
    "raises KeyboardInterrupt": _raises(KeyboardInterrupt, "KeyboardInterrupt"),
    "raises GeneratorExit": _raises(GeneratorExit, "GeneratorExit"),
    "raises CancelledError": _raises(asyncio.CancelledError, "CancelledError"),
    "raises StopIteration": _raises(StopIteration, "StopIteration"),
    "raises a BaseException": _raises(_Own, "_Own"),
    "raises a group": _raises(lambda: BaseExceptionGroup("several", [SystemExit(1), ValueError("v")]), "SystemExit"),
    "lets a cancelled call out": Deed(_lets_a_cancelled_call_out, "failed", "CancelledError"),
    "cancels its task": Deed(_cancels_its_task, "failed", "CancelledError"),
    "cancels its task and returns": Deed(_cancels_its_task_and_returns, "done"),
    "commits": Deed(_commits, "broke-contract", "session.commit()"),
    "rolls back": Deed(_rolls_back, "broke-contract", "session.rollback()"),
    "closes": Deed(_closes, "broke-contract", "session.close()"),
    "commits the connection": Deed(_commits_the_connection, "broke-contract", "ended the transaction"),
    "closes the connection": Deed(_closes_the_connection, "broke-contract", "closed the connection"),
    "closes the driver's connection": Deed(_closes_the_drivers_connection, "failed", "was closed while it ran"),
    "says COMMIT": Deed(_says_commit, "broke-contract", "ended the transaction"),
    "says ROLLBACK": Deed(_says_rollback, "broke-contract", "ended the transaction"),
    "commits and raises": Deed(_commits_and_raises, "broke-contract", "after the commit"),
    "swallows an error": Deed(_swallows, "failed", "statistics_that_are_not_there"),
    "swallows an error and goes on": Deed(_swallows_and_goes_on, "failed", "22012"),
    "swallows an error of the driver": Deed(_swallows_through_the_driver, "failed", "A statement failed"),
    "undoes a part": Deed(_undoes_a_part, "done"),
    "adds what is refused": Deed(_adds_what_is_refused, "failed", "IntegrityError (23502)"),
    "lets a failed flush out": Deed(_lets_a_failed_flush_out, "failed", "IntegrityError (23502)"),
    "swallows a failed flush": Deed(_swallows_a_failed_flush, "failed", "A statement failed (IntegrityError (23502)"),
    "undoes a flush": Deed(_undoes_a_flush, "done"),
    "takes too long": Deed(_takes_too_long, "failed", "did not return within"),
    "swallows its time limit": Deed(_swallows_its_time_limit, "failed", "did not return within"),
    "waits for a lock": Deed(_waits_for_a_lock, "failed", "did not return within"),
}


def _throw(error: BaseException) -> Callable[[Session], object]:
    def do(_session: Session) -> object:
        raise error

    return do


def _swallow(session: Session) -> None:
    with contextlib.suppress(SQLAlchemyError):
        session.execute(text("SELECT count(*) FROM statistics_that_are_not_there"))


def _generator(_session: Session) -> object:
    yield 1


def _commit(session: Session) -> None:
    session.commit()


def _close_the_connection(session: Session) -> None:
    session.connection().close()


def _say_commit(session: Session) -> object:
    return session.execute(text("COMMIT"))


def _value(_session: Session) -> object:
    return 1


def _coroutine(_session: Session) -> object:
    return anyio.lowlevel.checkpoint()


SYNC_DEEDS: dict[str, tuple[Callable[[Session], object], Outcome, str]] = {
    "returns a value": (_value, "done", ""),
    "returns a coroutine": (_coroutine, "broke-contract", "nothing runs"),
    "is a generator": (_generator, "broke-contract", "nothing runs"),
    "raises": (_throw(ValueError("cannot do it")), "failed", "ValueError: cannot do it"),
    "raises SystemExit": (_throw(SystemExit(0)), "failed", "SystemExit"),
    "raises CancelledError": (_throw(asyncio.CancelledError()), "failed", "CancelledError"),
    "raises GeneratorExit": (_throw(GeneratorExit()), "failed", "GeneratorExit"),
    "raises StopIteration": (_throw(StopIteration()), "failed", "StopIteration"),
    "commits": (_commit, "broke-contract", "session.commit()"),
    "closes the connection": (_close_the_connection, "broke-contract", "closed the connection"),
    "says COMMIT": (_say_commit, "broke-contract", "ended the transaction"),
    "swallows an error": (_swallow, "failed", "statistics_that_are_not_there"),
}
