"""The inbox's side of the user's engine: connections and their limits."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import anyio
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import QueuePool

from sagapost.core.databases import Other, drop_useless_connections, kit_of, wrapped
from sagapost.core.errors import ConfigurationError, SagapostError, StoreUnavailableError

__all__ = ["Database", "Link"]

T = TypeVar("T")

HOUSEKEEPING = 3
"""Connections beside those of the transactions: retries, pruning, screening."""


class Database:
    """Connections of one engine, each call with a hard limit; errors of our own statements are translated here.

    :raises ConfigurationError: if the engine's pool cannot serve `concurrency` transactions at a time.
    """

    def __init__(self, engine: AsyncEngine, *, concurrency: int, timeout: timedelta) -> None:
        self.engine = engine
        self.kit = kit_of(engine)
        drop_useless_connections(engine)
        self.timeout = timeout.total_seconds()
        # Taking turns here is fairer than SQLite's busy timeout, and an in-memory database has but one connection.
        self._turn = anyio.Lock() if self.kit.one_writer else None
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
        return self.kit.address(self.engine.url)

    def unavailable(self, error: BaseException) -> StoreUnavailableError:
        """Return the error for a call of ours that did not work out, whatever the reason: it is made again."""
        return StoreUnavailableError(self.kit.sentence(error, where=self.address))

    def concerns(self, error: BaseException) -> bool:
        """Return whether an error of a handler may mean that the database cannot serve now.

        An outage of anything else that a handler calls is the handler's.
        """
        return wrapped(error) is not None and self.kit.is_outage(error)

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
        except Exception as error:
            # SQLAlchemy passes on as they are what some drivers raise while connecting.
            if isinstance(error, SQLAlchemyError) or not isinstance(self.kit.classify(error), Other):
                raise self.unavailable(error) from error
            raise

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run statements of ours in one transaction; commits, unless it raises.

        :raises StoreUnavailableError: if the database does not do it within the limit; it may have been done.
        """
        return await self._on_connection(lambda connection: self._in_transaction(connection, work))

    async def run_async(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """As `run`, for work that awaits."""

        async def run(connection: AsyncConnection) -> T:
            result = await work(connection)
            await connection.commit()
            return result

        return await self._on_connection(run)

    async def ping(self) -> None:
        """Ask for an answer on a connection.

        :raises StoreUnavailableError: if there is none, or the server takes no writes.
        """
        await self._on_connection(self._probe)

    async def _probe(self, connection: AsyncConnection) -> None:
        if not (await connection.execute(text(self.kit.probe))).scalar_one():
            await connection.invalidate()
            raise StoreUnavailableError(f"The database at {self.address} takes no writes; it is tried again.")

    async def _in_transaction(self, connection: AsyncConnection, work: Callable[[Connection], T]) -> T:
        result = await connection.run_sync(work)
        await connection.commit()
        return result

    async def _on_connection(self, use: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async with self.turn():
            connection = await self.connect()
            broken = False
            try:
                with self.undisturbed(), anyio.fail_after(self.timeout):
                    return await use(connection)
            except SagapostError:
                raise
            except (OSError, TimeoutError, EOFError, SQLAlchemyError) as error:
                broken = self.kit.is_outage(error)
                raise self.unavailable(error) from error
            finally:
                await close(connection, broken=broken)


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
