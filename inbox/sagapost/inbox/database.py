"""The inbox's side of the user's engine: connections, their limits, and what a database error means."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import anyio
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import QueuePool

from sagapost.core.errors import ConfigurationError, SagapostError, StoreUnavailableError

__all__ = ["Database", "Link", "concerns_availability", "is_conflict", "sqlstate", "sqlstate_of"]

T = TypeVar("T")

HOUSEKEEPING = 3
"""Connections beside those of the transactions: retries, pruning, screening."""

_CONFLICTS = frozenset({"40001", "40P01"})
"""Serialisation failure and deadlock: the transaction was fine and may be run again."""

_UNAVAILABLE_CLASSES = frozenset({"08", "53", "58"})
"""Connection, resources, system error."""

_UNAVAILABLE_CODES = frozenset({"57P01", "57P02", "57P03", "57P05", "25006"})
"""Shutdown, crash, starting up, idle session ended, and read-only: a failover in progress."""

_SQLITE_CONFLICTS = frozenset({5, 6})  # SQLITE_BUSY, SQLITE_LOCKED: another connection is writing


def sqlstate(error: DBAPIError) -> str:
    """Return the five-character SQLSTATE of a database error, or an empty string where there is none."""
    for attribute in ("sqlstate", "pgcode"):
        code = getattr(error.orig, attribute, None)
        if isinstance(code, str):
            return code
    return ""


def sqlstate_of(error: BaseException) -> str:
    """Return the SQLSTATE behind any exception, or an empty string where there is none."""
    found = _database_error(error)
    return sqlstate(found) if found is not None else ""


def _database_error(error: BaseException) -> DBAPIError | None:
    """Return the database error behind an exception, which a handler may have wrapped."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DBAPIError):
            return seen
        seen = seen.__cause__
    return None


def is_conflict(error: BaseException) -> bool:
    """Tell whether the database undid a transaction for the sake of another one. By code, never by text."""
    found = _database_error(error)
    if found is None:
        return False
    primary = getattr(found.orig, "sqlite_errorcode", 0) & 0xFF
    return sqlstate(found) in _CONFLICTS or primary in _SQLITE_CONFLICTS


def concerns_availability(error: BaseException) -> bool:
    """Tell whether an error may mean that the database cannot serve now."""
    found = _database_error(error)
    if found is None:
        return False
    code = sqlstate(found)
    return found.connection_invalidated or code in _UNAVAILABLE_CODES or code[:2] in _UNAVAILABLE_CLASSES


class Database:
    """Connections of one engine, each call with a hard limit; errors of our own statements are translated here.

    :raises ConfigurationError: if the engine's pool cannot serve `concurrency` transactions at a time.
    """

    def __init__(self, engine: AsyncEngine, *, concurrency: int, timeout: timedelta) -> None:
        self.engine = engine
        self.dialect = engine.dialect.name
        self.timeout = timeout.total_seconds()
        # SQLite has one writer; taking turns here is fairer than its busy timeout, and an in-memory database has but
        # one connection.
        self._turn = anyio.Lock() if self.dialect == "sqlite" else None
        self.concurrency = 1 if self._turn is not None else concurrency
        self._require_pool(concurrency)

    def _require_pool(self, concurrency: int) -> None:
        pool = self.engine.pool
        if self._turn is not None or not isinstance(pool, QueuePool):
            return
        overflow: int = getattr(pool, "_max_overflow", -1)
        if overflow >= 0 and pool.size() + overflow < concurrency + HOUSEKEEPING:
            raise ConfigurationError(
                f"The engine's pool allows {pool.size() + overflow} connections, but ConsumerSettings.concurrency is "
                f"{concurrency} and {HOUSEKEEPING} more are needed beside the transactions. "
                f"Use create_async_engine(..., pool_size={concurrency + HOUSEKEEPING}), or lower the concurrency."
            )

    @property
    def address(self) -> str:
        """Where it is, for logs and errors; without credentials."""
        url = self.engine.url
        return f"{url.host}:{url.port}/{url.database}" if url.host else f"{self.dialect}:{url.database or 'memory'}"

    def unavailable(self, error: BaseException) -> StoreUnavailableError:
        """Return the error for a call that did not work out."""
        what = "did not answer in time" if isinstance(error, TimeoutError) else "cannot serve now"
        detail = type(error).__name__
        found = _database_error(error)
        if found is not None:
            detail = f"{type(found.orig).__name__}, SQLSTATE {sqlstate(found) or 'none'}"
        return StoreUnavailableError(f"The database at {self.address} {what} ({detail}); it is tried again.")

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """Take turns where the database has one writer; elsewhere nothing is waited for."""
        if self._turn is None:
            yield
        else:
            async with self._turn:
                yield

    def undisturbed(self) -> _Scope:
        """Return a scope in which statements are not cancelled half-way where that does harm.

        An aiosqlite connection that is cancelled within a statement cannot be closed any more, and the event loop
        waits for it at its end. Its statements are local and short; asyncpg's may be cancelled at any point.
        """
        return _OPEN if self._turn is None else _Shield()

    async def connect(self) -> AsyncConnection:
        """Open a connection.

        :raises StoreUnavailableError: if there is none within the limit.
        """
        try:
            with self.undisturbed(), anyio.fail_after(self.timeout):
                return await self.engine.connect()
        except (OSError, TimeoutError, EOFError, PoolTimeoutError, SQLAlchemyError) as error:
            raise self.unavailable(error) from error

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run statements of ours in one transaction; commits, unless it raises.

        :raises StoreUnavailableError: if the database does not do it within the limit; it may have been done.
        """
        return await self._on_connection(lambda connection: self._in_transaction(connection, work))

    async def ping(self) -> None:
        """Ask for an answer on a connection.

        :raises StoreUnavailableError: if there is none.
        """
        await self._on_connection(lambda connection: connection.execute(text("SELECT 1")))

    async def _in_transaction(self, connection: AsyncConnection, work: Callable[[Connection], T]) -> T:
        result = await connection.run_sync(work)
        await connection.commit()
        return result

    async def _on_connection(self, use: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async with self.turn(), AsyncExitStack() as stack:
            connection = await self.connect()
            stack.push_async_callback(close, connection)
            try:
                with self.undisturbed(), anyio.fail_after(self.timeout):
                    return await use(connection)
            except SagapostError:
                raise
            except (OSError, TimeoutError, EOFError, SQLAlchemyError) as error:
                raise self.unavailable(error) from error


async def close(connection: AsyncConnection, *, broken: bool = False) -> None:
    """Give a connection back to the pool, within a bound, also while being cancelled."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(5):
        try:
            if broken:
                await connection.invalidate()
            await connection.close()
        except (OSError, SQLAlchemyError, EOFError):
            # It does not work. If closing it went wrong, the pool has thrown it away already.
            if not connection.closed:
                await connection.invalidate()


class _Scope(Protocol):
    """A block that swallows nothing."""

    def __enter__(self) -> None: ...
    def __exit__(self, *error: Any) -> None: ...


_OPEN: _Scope = nullcontext()


class _Shield:
    """Holds cancellation back until its end."""

    def __enter__(self) -> None:
        self._scope = anyio.CancelScope(shield=True)
        self._scope.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._scope.__exit__(*error)


class Link:
    """One connection that is kept from message to message while there is work, and given back in between."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: AsyncConnection | None = None

    async def get(self) -> AsyncConnection:
        """Return the connection, opening it if needed.

        :raises StoreUnavailableError: if it cannot be opened.
        """
        connection = self._connection
        if connection is None or connection.closed or connection.invalidated:
            await self.give_back(broken=True)
            connection = self._connection = await self._database.connect()
        return connection

    async def give_back(self, *, broken: bool = False) -> None:
        """Return the connection to the pool; `broken`: close it for good."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await close(connection, broken=broken)
