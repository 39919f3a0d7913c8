"""One lazily opened sqlite3 connection, used from a worker thread; reopened by the next call after it broke."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread
from sqlalchemy.engine import URL, make_url

from sagapost.core.databases import SQLite
from sagapost.core.errors import ConfigurationError

__all__ = ["KIT", "SQLiteLink", "parse_path"]

KIT = SQLite()

T = TypeVar("T")

_PAUSE = 0.005

_EXAMPLE = "Example: sqlite+aiosqlite:///var/orders.db"


def parse_path(url: str | URL | Path) -> Path:
    """Accept a SQLAlchemy URL or a path; return the path of the database file.

    :raises ConfigurationError: if it is not a SQLite URL or names no file.
    """
    if isinstance(url, Path):
        return url
    if isinstance(url, str) and "://" not in url:
        name: str | None = url
    else:
        try:
            parsed = make_url(url)
        except Exception as error:
            raise ConfigurationError(f"The database URL cannot be read. {_EXAMPLE}") from error
        if parsed.get_backend_name() != "sqlite":
            raise ConfigurationError(
                f"The database URL names {parsed.get_backend_name()!r}, this adapter speaks to SQLite. {_EXAMPLE}"
            )
        name = parsed.database
    if not name or name == ":memory:" or name.startswith("file:"):
        raise ConfigurationError(
            f"The relay and the writers meet in a file, and {name or 'an empty name'!r} names none. {_EXAMPLE}"
        )
    return Path(name)


class SQLiteLink:
    """One connection to a database file.

    Calls run in a worker thread of this link's own, one after the other, each as one transaction. A call waits for
    another writer for at most `busy_timeout` seconds. A call that fails closes the connection; the next opens it anew.
    """

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._connection: sqlite3.Connection | None = None
        # A thread of its own: the default limiter is shared with the caller's code, which may use it up, and a
        # heartbeat that waits for a thread loses the leases.
        self._thread = anyio.CapacityLimiter(1)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a read transaction: all of its statements see one snapshot."""
        return await self._run(work, "BEGIN")

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a write transaction, committed when it returns.

        IMMEDIATE: a transaction that begins as a reader and writes later fails at once, however long the busy timeout,
        if another one wrote in between.
        """
        return await self._run(work, "BEGIN IMMEDIATE")

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._close, limiter=self._thread)

    async def _run(self, work: Callable[[sqlite3.Connection], T], begin: str) -> T:
        # A cancelled caller waits for the thread, which ends within the busy timeout and the call's own work: a
        # transaction is never abandoned half way.
        return await anyio.to_thread.run_sync(self._in_transaction, work, begin, limiter=self._thread)

    def _in_transaction(self, work: Callable[[sqlite3.Connection], T], begin: str) -> T:
        try:
            connection = self._connected()
            connection.execute(begin)
            result = work(connection)
            connection.execute("COMMIT")
        except Exception as error:
            self._close()  # rolls back
            raise KIT.translate(error, where=str(self._path)) from error
        return result

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            # mode=rw: a missing file is an error, not an empty database.
            connection = sqlite3.connect(
                f"file:{quote(str(self._path))}?mode=rw",
                uri=True,
                timeout=self._busy_timeout,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._use_wal(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Put the file into WAL mode, in which readers and the writer do not block one another; the file keeps it."""
        deadline = time.monotonic() + self._busy_timeout
        while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                # The change needs the file alone, and SQLite does not wait for that: it fails at once.
                if not KIT.is_conflict(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)  # in the link's own thread

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
