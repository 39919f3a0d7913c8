"""A PostgreSQL server as tests see it: an address, and databases that can be made and dropped on it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit, urlunsplit

import asyncpg

__all__ = ["GivenPostgreSQL", "PostgreSQLServer", "answers", "execute", "fetch_value", "may_create_databases"]

_CONNECT_SECONDS = 10


class PostgreSQLServer(ABC):
    """A server with databases. All methods block; from async code call them through `anyio.to_thread`."""

    @property
    @abstractmethod
    def controllable(self) -> bool:
        """Whether it is ours to stop, kill, pause and restart (then it is a `PrivatePostgreSQL`)."""

    @abstractmethod
    def dsn(self, database: str | None = None) -> str:
        """`postgresql://...` for libpq and asyncpg; without a name the database for maintenance."""

    def url(self, database: str | None = None) -> str:
        """`postgresql+asyncpg://...` for SQLAlchemy; without a name the database for maintenance."""
        return urlunsplit(urlsplit(self.dsn(database))._replace(scheme="postgresql+asyncpg"))

    def create_database(self, name: str, template: str | None = None) -> None:
        """Make an empty database, or a copy of `template`, to which nobody may be connected meanwhile."""
        copy = f" TEMPLATE {_quoted(template)}" if template is not None else ""
        execute(self.dsn(), f"CREATE DATABASE {_quoted(name)}{copy}")

    def drop_database(self, name: str) -> None:
        """Drop a database, closing whatever is connected to it; nothing happens when there is none."""
        execute(self.dsn(), f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)")

    @contextlib.contextmanager
    def fresh_database(self, template: str | None = None) -> Generator[str, None, None]:
        """The name of a new database that is dropped on the way out."""
        name = f"sagapost_test_{secrets.token_hex(6)}"
        self.create_database(name, template)
        try:
            yield name
        finally:
            self.drop_database(name)


class GivenPostgreSQL(PostgreSQLServer):
    """A server that somebody else runs. Needs the right to create databases; its other databases stay untouched."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)._replace(scheme="postgresql")

    @property
    def controllable(self) -> bool:
        """Never: this run did not start it."""
        return False

    def dsn(self, database: str | None = None) -> str:
        """The given address, with another database when one is named."""
        parts = self._parts if database is None else self._parts._replace(path=f"/{database}")
        return urlunsplit(parts)


def execute(dsn: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own. Works inside and outside of a running event loop."""
    _run(dsn, list(statements))


def fetch_value(dsn: str, query: str) -> object:
    """Run one query and return the first column of its first row."""
    return _run(dsn, [query])


def may_create_databases(server: PostgreSQLServer) -> bool:
    """Whether its user may do what every test begins with; of a server of ours it always may."""
    return server.controllable or bool(
        fetch_value(server.dsn(), "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user")
    )


def answers(dsn: str) -> bool:
    """Whether the server lets us in; False while it starts, recovers or is down.

    Raises:
        asyncpg.PostgresError: it answers, but refuses us for good (a wrong password, say).
    """
    try:
        return fetch_value(dsn, "SELECT 1") == 1
    except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError):
        return False


def _run(dsn: str, statements: list[str]) -> object:
    async def work() -> object:
        connection = await asyncpg.connect(dsn, timeout=_CONNECT_SECONDS)
        try:
            value: object = None
            for statement in statements:
                value = await connection.fetchval(statement)
            return value
        finally:
            await connection.close()

    # In a thread of its own, since the caller's may be running an event loop already.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work()).result()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
