"""One engine after the other, and tables for the kits to work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, Engine, Integer, LargeBinary, MetaData, String, Table
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.core.databases import DatabaseKit, kit_of

__all__ = ["Bed", "metadata", "rows_of", "seen", "versions"]

T = TypeVar("T")

metadata = MetaData()
seen = Table(
    "Seen by whom",
    metadata,
    Column("consumer", Integer, primary_key=True),
    Column("key", LargeBinary, primary_key=True),
)
versions = Table(
    "versions",
    metadata,
    Column("name", String(50), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("word", String(50)),
)


@dataclass(frozen=True, slots=True)
class Bed:
    """A database with both tables in it."""

    engine: AsyncEngine | Engine

    @property
    def kit(self) -> DatabaseKit:
        """Its kit."""
        return kit_of(self.engine)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Do something in a transaction."""
        if isinstance(self.engine, AsyncEngine):
            async with self.engine.begin() as connection:
                return await connection.run_sync(work)
        with self.engine.begin() as connection:
            return work(connection)

    async def dispose(self) -> None:
        """Close its connections."""
        if isinstance(self.engine, AsyncEngine):
            await self.engine.dispose()
        else:
            self.engine.dispose()


def rows_of(connection: Connection, table: Table) -> set[tuple[Any, ...]]:
    """Return every row of a table."""
    return {tuple(row) for row in connection.execute(table.select())}
