"""Days that pass in a test at a word: a clock for the process, and the same clock inside its database.

Schedules are judged by the database's clock. SQLite has none of its own there. In PostgreSQL functions of the same
names are put before those of the catalogue, for every connection opened from then on, whichever process opens it.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import anyio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

__all__ = ["VirtualTime"]

_INSTALL = (
    "CREATE SCHEMA virtual",
    "CREATE TABLE virtual.shift AS SELECT interval '0' AS by",
    """
    CREATE FUNCTION virtual.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    'SELECT pg_catalog.clock_timestamp() + by FROM virtual.shift'
    """,
    """
    CREATE FUNCTION virtual.now() RETURNS timestamptz LANGUAGE sql STABLE AS
    'SELECT pg_catalog.now() + by FROM virtual.shift'
    """,
    """
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = public, virtual, pg_catalog', current_database());
    END $$
    """,
)


class VirtualTime:
    """A `Clock` that is set forward by `pass_`; waits take real time."""

    def __init__(self) -> None:
        self._shift = timedelta(0)
        self._engine: AsyncEngine | None = None

    async def install(self, url: str) -> None:
        """Bring the clock into a PostgreSQL database, before anything else connects to it."""
        self._engine = create_async_engine(url)
        async with self._engine.begin() as connection:
            for statement in _INSTALL:
                await connection.execute(text(statement))

    async def aclose(self) -> None:
        """Close the connection to the database."""
        if self._engine is not None:
            await self._engine.dispose()

    async def pass_(self, delay: timedelta) -> None:
        """Let time pass."""
        self._shift += delay
        if self._engine is not None:
            async with self._engine.begin() as connection:
                await connection.execute(text("UPDATE virtual.shift SET by = :by"), {"by": self._shift})

    def now(self) -> datetime:
        """Return the time in UTC."""
        return datetime.now(UTC) + self._shift

    def monotonic(self) -> float:
        """Return the host's monotonic time."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait, really."""
        await anyio.sleep(seconds)
