"""One server as asyncpg is told of it, for raw connections and for SQLAlchemy's engines alike; also through a pooler.

A pooler in transaction mode (PgBouncer, and what providers run in its place) gives each transaction another connection
of the server, so that a statement that was prepared under a name is not there the next time, or is another's. It is
recognised by its greeting: the process id that it hands out is not that of the server's process. Then no statement has
a name, and each is prepared and executed within one transaction, which stays on one connection.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_only  # 2.1 calls it await_; the old name is in 2.0 as well

from sagapost.adapters.postgresql.driver import asyncpg
from sagapost.core.databases import drop_useless_connections
from sagapost.core.databases.server_url import ServerUrl, read_server_url

__all__ = ["Server", "create_engine"]

_pooled: dict[tuple[object, ...], bool] = {}
"""Which hosts and database were found to be behind a pooler. They rarely move, and each look costs a connection."""


# A database or role may have another default. Transactions of services would then fail for the sake of a relay that
# has read what they write, and a relay's statements for the sake of theirs. Through a pooler each transaction says so.
_OURS = "SET default_transaction_isolation = 'read committed'"


class _NamelessConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection through a pooler: what is asked behind the caller's back happens in one transaction, too."""

    async def set_type_codec(self, *args: Any, **options: Any) -> None:
        """See `asyncpg.Connection.set_type_codec`; it looks the type up."""
        async with self.transaction():
            await super().set_type_codec(*args, **options)


class Server:
    """Where a URL leads; opens nothing by itself.

    :param url: of libpq, a provider or SQLAlchemy.
    :raises ConfigurationError: if it cannot be read, or a file it names cannot be used.
    """

    def __init__(self, url: str | URL | ServerUrl, *, connect_timeout: float = 10.0) -> None:
        if isinstance(url, URL):
            url = url.render_as_string(hide_password=False)
        self.url = read_server_url(url) if isinstance(url, str) else url
        self._connect_timeout = self.url.connect_timeout or connect_timeout
        self._tls = self.url.tls_argument()
        self._place = (self.url.hosts, self.url.database)

    def __repr__(self) -> str:
        return f"<Server {self.address}>"

    @property
    def address(self) -> str:
        """Hosts and database; never credentials."""
        return self.url.address

    @property
    def is_pooled(self) -> bool:
        """Whether a pooler was met."""
        return _pooled.get(self._place, False)

    @property
    def names_statements(self) -> bool:
        """Whether prepared statements have names: not where a pooler was met, or the URL says so."""
        return self.url.statement_cache != 0 and not self.is_pooled

    async def connect(self, purpose: str) -> asyncpg.Connection:
        """Open a connection. Errors are asyncpg's."""
        while True:
            named = self.names_statements
            connection = await asyncpg.connect(**self.arguments(purpose))
            try:
                if not named:
                    return connection
                if not await self._meets_a_pooler(connection):
                    await connection.execute(_OURS)
                    return connection
            except BaseException:
                # Nobody else knows it yet: cut it, or the server keeps it until this process collects garbage.
                connection.terminate()
                raise
            connection.terminate()

    @asynccontextmanager
    async def undivided(self, connection: asyncpg.Connection) -> AsyncGenerator[None, None]:
        """Keep the statements of the block on one connection of the server, where a pooler is in between."""
        # Not `isinstance`: asyncpg's metaclass says yes to that for every connection, and each statement would pay
        # for BEGIN and COMMIT, two round trips more.
        if _NamelessConnection in type(connection).__mro__:
            async with connection.transaction(isolation="read_committed"):
                yield
        else:
            yield

    def arguments(self, purpose: str) -> dict[str, Any]:
        """Return the keyword arguments of `asyncpg.connect`: everything the URL says, and nothing read twice."""
        url = self.url
        settings = {"application_name": f"sagapost-{purpose}", **url.server_settings}
        found: dict[str, Any] = {
            "host": [host.name for host in url.hosts] or None,
            "port": [host.port for host in url.hosts] or None,
            "user": url.user,
            "password": url.password,
            "passfile": url.password_file,
            "database": url.database,
            "ssl": self._tls,
            "direct_tls": url.direct_tls or None,
            "target_session_attrs": url.session,
            "statement_cache_size": url.statement_cache,
            "timeout": self._connect_timeout,
            "server_settings": settings,
        }
        if not self.names_statements:
            found |= {"statement_cache_size": 0, "connection_class": _NamelessConnection}
        return {name: value for name, value in found.items() if value is not None}

    def engine(self, purpose: str, **options: Any) -> AsyncEngine:
        """Return an engine of SQLAlchemy's that connects in the same way; nothing is opened yet.

        :param options: of `create_async_engine`; of `connect_args`, which are asyncpg's, the URL's own stand.
        """
        further = dict(options.pop("connect_args", {}))
        arguments = self.arguments(purpose)
        settings = {**arguments.pop("server_settings"), **further.pop("server_settings", {})}
        if self.url.connect_timeout is not None:
            further.pop("timeout", None)
        arguments |= {**further, "server_settings": {**settings, **self.url.server_settings}}
        engine = create_async_engine(self.url.to_sqlalchemy("asyncpg"), connect_args=arguments, **options)
        drop_useless_connections(engine)

        @event.listens_for(engine.sync_engine, "do_connect")
        def _connect(
            dialect: Dialect, _record: ConnectionPoolEntry, cargs: tuple[Any, ...], cparams: dict[str, Any]
        ) -> DBAPIConnection | None:
            if self.names_statements:
                connection = dialect.connect(*cargs, **cparams)
                raw: asyncpg.Connection = connection.driver_connection
                if not await_only(self._meets_a_pooler(raw)):
                    return connection
                raw.terminate()
            cparams.update(statement_cache_size=0, connection_class=_NamelessConnection)
            cparams.update(prepared_statement_cache_size=0, prepared_statement_name_func=_no_name)
            return None  # SQLAlchemy connects with these

        return engine

    async def _meets_a_pooler(self, connection: asyncpg.Connection) -> bool:
        """Find out whether somebody else than the server greeted us; remembered if so."""
        # By the simple protocol, which prepares nothing; the tag of the answer counts the rows.
        tag = await connection.execute(f"SELECT WHERE pg_backend_pid() = {connection.get_server_pid()}")
        found = bool(tag == "SELECT 0")
        if found:
            _pooled[self._place] = True
        return found


def create_engine(url: str | URL, **options: Any) -> AsyncEngine:
    """Return an engine for a URL of libpq, a provider or SQLAlchemy, also through a pooler; nothing is opened yet.

    :param options: of `sqlalchemy.ext.asyncio.create_async_engine`.
    :raises ConfigurationError: if the URL cannot be read; no value of it is quoted.
    """
    return Server(url).engine("engine", **options)


_no_name: Callable[[], str] = str
"""The name of every statement behind a pooler: empty."""
