"""An outbox on PostgreSQL, written to and looked at by SQL: rows by the hundred thousand, plans, other sessions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.adapters.postgresql.fetch import SnapshotReader
from sagapost.adapters.postgresql.fetch_statements import FetchStatements
from sagapost.adapters.postgresql.server import Server
from sagapost.core.outbox_store import Claims, LeaseToken, OutboxReader, OutboxRow, Partition
from sagapost.core.schema import install_schema
from sagapost.outbox import OutboxTables

__all__ = ["EVERYTHING", "Explained", "OutboxDatabase", "drain", "installed", "numbers"]

PARTITIONS = 32
EVERYTHING: Claims = {Partition(p): LeaseToken(1) for p in range(PARTITIONS)}

_INSERT = """
    INSERT INTO outbox (event_id, key_hash, topic, type, source, time, partitionkey, data)
    SELECT gen_random_uuid(), (n * 7919) % 32768, 'tests', 'tests', 'tests', now(), 'key-' || n % 1000,
           CASE WHEN $2::int = 0 THEN convert_to(n::text, 'UTF8') ELSE decode(repeat('ab', $2::int), 'hex') END
    FROM generate_series($3::int, $3::int + $1::int - 1) n"""

_PAGES_READ = """
    SELECT heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit
    FROM pg_statio_user_tables WHERE relname = 'outbox'"""


@dataclass(frozen=True, slots=True)
class Explained:
    """What a statement did when it ran."""

    buffers: int
    """Pages touched."""
    indexes: frozenset[str]
    scanned: frozenset[str]
    """Tables read from end to end."""


class OutboxDatabase:
    """One database with an outbox."""

    def __init__(self, url: str, tables: OutboxTables) -> None:
        self.url = url
        self.dsn = url.replace("+asyncpg", "")
        self.tables = tables
        self.sql: asyncpg.Connection

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[None, None]:
        """Open the session that tests write with, and count the partitions in."""
        async with self.session() as self.sql:
            # Statistics and dead rows are part of what is tested: nobody tidies up behind the test's back.
            await self.sql.execute("ALTER TABLE outbox SET (autovacuum_enabled = false)")
            await self.sql.execute(
                f"INSERT INTO outbox_leases (partition) SELECT generate_series(0, {PARTITIONS - 1})"
            )
            yield

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[asyncpg.Connection, None]:
        """Another session."""
        connection = await asyncpg.connect(self.dsn)
        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def open_transaction(self, *, insert: int = 1, first: int = 1) -> AsyncGenerator[asyncpg.Connection, None]:
        """A transaction that has written so many rows and stays open; whoever wants it commits it before the end."""
        async with self.session() as other:
            await other.execute("BEGIN")
            await self.write(insert, first=first, through=other)
            yield other

    async def write(
        self, count: int, *, size: int = 0, first: int = 1, through: asyncpg.Connection | None = None
    ) -> None:
        """Write rows in one transaction: their data is their number, or so many bytes; keys go round."""
        await (self.sql if through is None else through).execute(_INSERT, count, size, first)

    async def write_one(self, number: int, *, key: str = "k", through: asyncpg.Connection | None = None) -> int:
        """Write one row of a key; return its position."""
        return await self.value(
            """INSERT INTO outbox (event_id, key_hash, topic, type, source, time, partitionkey, data)
               VALUES (gen_random_uuid(), 0, 'tests', 'tests', 'tests', now(), $1, convert_to($2, 'UTF8'))
               RETURNING position""",
            key,
            str(number),
            through=through,
        )

    async def value(self, sql: str, *arguments: object, through: asyncpg.Connection | None = None) -> int:
        """Run a statement that returns one number."""
        number: Any = await (self.sql if through is None else through).fetchval(sql, *arguments)
        return int(number)

    def store(self, *, port: int | None = None, call_timeout: float = 30.0) -> PostgreSQLOutboxStore:
        """A store, by way of another port if one is given."""
        url = self.url
        if port is not None:
            head, _, tail = url.rpartition(":")
            url = f"{head}:{port}/{tail.partition('/')[2]}"
        return PostgreSQLOutboxStore(url, tables=self.tables, call_timeout=call_timeout, connect_timeout=call_timeout)

    @asynccontextmanager
    async def reader(self) -> AsyncGenerator[OutboxReader, None]:
        """A reader of a store of its own."""
        store = self.store()
        try:
            async with store.reader() as reader:
                yield reader
        finally:
            await store.aclose()

    @asynccontextmanager
    async def counted_reader(self) -> AsyncGenerator[tuple[OutboxReader, Callable[[], Awaitable[int]]], None]:
        """A reader, and how many pages of the outbox all sessions have touched until now.

        A session keeps its counts to itself for up to a second, so those of the reader are asked for as well.
        """
        link = PostgreSQLLink(Server(self.url), purpose="fetch", timeout=30.0)

        async def pages_read() -> int:
            for session in (link, self.sql):
                await session.fetch("SELECT pg_stat_force_next_flush()")
            return await self.value(_PAGES_READ)

        try:
            yield SnapshotReader(link, FetchStatements(self.tables.outbox, self.tables.dead), PARTITIONS), pages_read
        finally:
            await link.aclose()

    async def explain(self, sql: str, *arguments: object, generic: bool = False) -> Explained:
        """Run a statement and tell how; `generic`: as planned after some executions, without looking at arguments."""
        mode = "force_generic_plan" if generic else "force_custom_plan"
        await self.sql.execute(f"SET plan_cache_mode = {mode}")
        explained: Any = await self.sql.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *arguments)
        plan: dict[str, Any] = json.loads(explained)[0]["Plan"]
        nodes = list(_nodes(plan))
        return Explained(
            buffers=plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
            indexes=frozenset(node["Index Name"] for node in nodes if "Index Name" in node),
            scanned=frozenset(node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"),
        )


@asynccontextmanager
async def installed(url: str) -> AsyncGenerator[OutboxDatabase, None]:
    """Install the tables in an empty database."""
    tables = OutboxTables()
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(install_schema, tables.versions, [tables.part])
    await engine.dispose()
    database = OutboxDatabase(url, tables)
    async with database.connected():
        yield database


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


async def drain(reader: OutboxReader, *, max_rows: int = 1_000, max_bytes: int = 2**25) -> list[OutboxRow]:
    """Fetch until caught up."""
    rows: list[OutboxRow] = []
    while True:
        page = await reader.fetch(EVERYTHING, max_rows=max_rows, max_bytes=max_bytes)
        assert len(page.rows) <= max_rows
        rows += page.rows
        if page.caught_up:
            return rows


def numbers(rows: Sequence[OutboxRow]) -> list[int]:
    """What `write` numbered them."""
    return [int(row.event.data) for row in rows]
