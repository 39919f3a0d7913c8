"""One lazily opened asyncpg connection with hard time limits; reopened by the next call after it broke."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from sagapost.adapters.postgresql.driver import asyncpg
from sagapost.adapters.postgresql.server import Server
from sagapost.core.databases import Outage, PostgreSQL

if TYPE_CHECKING:
    from asyncpg import Record

__all__ = ["KIT", "PostgreSQLLink"]

KIT = PostgreSQL()


class PostgreSQLLink:
    """One connection, used by one task at a time (calls are serialised by a lock).

    Every call has a hard limit of `timeout` seconds, counted on this side, so that a half-open TCP link is noticed
    within it whatever the peer does. A call that fails drops the connection; the next call opens a new one.
    """

    def __init__(self, server: Server, *, purpose: str, timeout: float, plan_each_time: bool = False) -> None:
        """Open nothing.

        :param plan_each_time: plan statements anew at each call, for tables that grow from nothing while they are
            prepared.
        """
        self._server = server
        self._plan_each_time = plan_each_time
        self._where = server.address
        self._purpose = purpose
        self._timeout = timeout
        self._connection: asyncpg.Connection | None = None
        self.opened = 0
        """How often a connection was opened: it grows when one was replaced."""
        self._lock = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Link {self._purpose} to {self._where}>"

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, so far as is known."""
        return self._connection is not None and not self._connection.is_closed()

    async def fetch(self, sql: str, *args: object) -> Sequence[Record]:
        """Run one statement in a transaction of its own; return its rows."""
        async with self._lock:
            try:
                with anyio.fail_after(self._timeout):
                    connection = await self.connected()
                    async with self._server.undivided(connection):
                        rows: Sequence[Record] = await connection.fetch(sql, *args)
                    return rows
            except BaseException as error:
                self._give_up(error)
                if isinstance(error, Exception):
                    raise KIT.translate(error, where=self._where) from error
                raise

    async def fetchrow(self, sql: str, *args: object) -> Record | None:
        """Run one statement; return its first row."""
        rows = await self.fetch(sql, *args)
        return rows[0] if rows else None

    async def listen(self, channel: str, callback: Callable[..., None]) -> bool:
        """Listen on a channel. Idempotent on one connection; to be repeated on the next.

        The callback is also called when the connection ends: nothing more will be received on it.

        :returns: whether anything can be received at all: not through a pooler, where the server would notify
            whoever has its connection.
        """
        async with self._lock:
            try:
                with anyio.fail_after(self._timeout):
                    connection = await self.connected()
                    notified = not self._server.is_pooled
                    if notified:
                        await connection.add_listener(channel, callback)
                    connection.add_termination_listener(callback)
                    return notified
            except BaseException as error:
                self._give_up(error)
                if isinstance(error, Exception):
                    raise KIT.translate(error, where=self._where) from error
                raise

    async def connected(self) -> asyncpg.Connection:
        """Return the open connection, opening it if needed. Untranslated errors; call under a time limit."""
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = await self._server.connect(self._purpose)
            self._connection = connection
            # Statements without a name are planned each time anyway, and a pooler would give the setting to others.
            if self._plan_each_time and self._server.names_statements:
                await connection.execute("SET plan_cache_mode = force_custom_plan")
            self.opened += 1
        return connection

    def _give_up(self, error: BaseException) -> None:
        """Drop the connection unless the server merely answered with an error of the statement itself.

        What is reported as an outage is waited for, and on the same connection that may be for ever: a server that
        takes no writes any more (a fail-over) keeps its connections open.
        """
        keep = isinstance(error, asyncpg.PostgresError) and not isinstance(KIT.classify(error), Outage)
        if not keep:
            self.drop()

    def drop(self) -> None:
        """Cut the connection without a word to the peer, who may not be there to read it."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            connection.terminate()

    async def aclose(self) -> None:
        """Close politely, within a bound; cut the connection if the peer does not answer. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is None or connection.is_closed():
            return
        # Whatever goes wrong while leaving, the socket is cut below.
        ignored = suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
        with anyio.CancelScope(shield=True), anyio.move_on_after(2), ignored:
            await connection.close(timeout=1)
        if not connection.is_closed():
            connection.terminate()
