"""The kinds of database handle an event can be published through, and what each does with rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from sagapost.outbox.asyncpg import AsyncpgConnection, insert_rows_asyncpg, require_asyncpg_transaction
from sagapost.outbox.connection import insert_rows, insert_rows_async, require_connection_transaction
from sagapost.outbox.psycopg import (
    DjangoConnection,
    DriverConnection,
    PsycopgConnection,
    insert_rows_driver,
    is_django,
    is_psycopg,
    require_driver_transaction,
)
from sagapost.outbox.rows import Rows
from sagapost.outbox.scheduled import Cancellation
from sagapost.outbox.session import add_rows, require_session_transaction

__all__ = ["AsyncHandle", "SyncHandle", "after", "cancel", "write"]

SyncHandle: TypeAlias = Session | Connection | scoped_session[Session] | PsycopgConnection | DjangoConnection
"""A handle that publishes without await."""

AsyncHandle: TypeAlias = AsyncSession | AsyncConnection | async_scoped_session[AsyncSession] | AsyncpgConnection
"""A handle whose publish is awaited."""

_Handle: TypeAlias = Session | Connection | AsyncSession | AsyncConnection | AsyncpgConnection | DriverConnection

T = TypeVar("T")


def write(handle: SyncHandle | AsyncHandle, rows: Rows) -> Awaitable[None] | None:
    """Write the rows, or add them to the session; return what is left to await, None for a synchronous handle.

    :raises NotInTransactionError: if no transaction is open; checked before anything is awaited.
    :raises TypeError: if the handle is of no known kind.
    """
    match _resolve(handle):
        case AsyncSession(sync_session=session):
            require_session_transaction(session, rows.target.core_one)
            add_rows(session, rows)
            return _Done(None)
        case Session() as session:
            require_session_transaction(session, rows.target.core_one)
            add_rows(session, rows)
            return None
        case AsyncConnection() as connection:
            require_connection_transaction(connection)
            return _Later(partial(insert_rows_async, connection, rows))
        case Connection() as connection:
            require_connection_transaction(connection)
            insert_rows(connection, rows)
            return None
        case AsyncpgConnection() as raw:
            require_asyncpg_transaction(raw)
            return _Later(partial(insert_rows_asyncpg, raw, rows))
        case driver:
            require_driver_transaction(driver)
            insert_rows_driver(driver, rows)
            return None


def cancel(handle: SyncHandle | AsyncHandle, cancellation: Cancellation) -> int | Coroutine[Any, Any, int]:
    """Take back scheduled events in the handle's transaction.

    :raises NotInTransactionError: if no transaction is open; checked before anything is awaited.
    :raises TypeError: if the handle is of no known kind.
    """
    match _resolve(handle):
        case AsyncSession() as session:
            require_session_transaction(session.sync_session, cancellation.statement)
            return session.run_sync(cancellation.in_session)
        case Session() as session:
            require_session_transaction(session, cancellation.statement)
            return cancellation.in_session(session)
        case AsyncConnection() as connection:
            require_connection_transaction(connection)
            return connection.run_sync(cancellation.on_connection)
        case Connection() as connection:
            require_connection_transaction(connection)
            return cancellation.on_connection(connection)
        case AsyncpgConnection() as raw:
            require_asyncpg_transaction(raw)
            return cancellation.on_asyncpg(raw)
        case driver:
            require_driver_transaction(driver)
            return cancellation.on_driver(driver)


def after(written: Awaitable[None], result: T, *, method: str) -> Coroutine[Any, Any, T]:
    """Return a coroutine of `result` once the rows are written.

    :param method: what was called, for Python's warning of a coroutine that was never awaited.
    """
    if isinstance(written, _Done):
        return _Done(result)
    coroutine = _result_after(written, result)
    coroutine.__qualname__ = method  # type: ignore[attr-defined]  # it is a types.CoroutineType
    return coroutine


async def _result_after(written: Awaitable[None], result: T) -> T:
    await written
    return result


class _Later(Awaitable[None]):
    """Begins when it is awaited: of a forgotten await Python is to name what was called, and nothing of ours."""

    __slots__ = ("_begin",)

    def __init__(self, begin: Callable[[], Awaitable[None]]) -> None:
        self._begin = begin

    def __await__(self) -> Generator[Any, Any, None]:
        return self._begin().__await__()


class _Done(Coroutine[Any, Any, T]):
    """A coroutine that is done already: nothing is pending for an AsyncSession, and a forgotten await is harmless.

    A coroutine and not any awaitable, since type checkers complain of a coroutine that is not awaited.
    """

    __slots__ = ("_result",)

    def __init__(self, result: T) -> None:
        self._result = result

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()
        return self._result

    def send(self, _value: Any, /) -> NoReturn:
        """End at once, with the result."""
        raise StopIteration(self._result)

    def throw(self, *error: Any) -> NoReturn:
        """Raise, as a coroutine that has not begun does."""
        raise error[-1] if isinstance(error[-1], BaseException) else error[0]

    def close(self) -> None:
        """Nothing is open."""


def _resolve(handle: object) -> _Handle:
    """Return the handle behind a scoped session, and refuse what is none."""
    if isinstance(handle, scoped_session | async_scoped_session):
        return cast("Session | AsyncSession", handle())
    # The structural check comes last: it asks for attributes one by one.
    if isinstance(handle, AsyncSession | Session | AsyncConnection | Connection | AsyncpgConnection):
        return handle
    if is_django(handle) or is_psycopg(handle):
        return handle
    raise TypeError(
        f"{type(handle).__module__}.{type(handle).__qualname__} is not a handle of a transaction. "
        "Pass a SQLAlchemy Session, AsyncSession, Connection or AsyncConnection, an asyncpg or synchronous psycopg "
        "connection, or Django's connection."
    )
