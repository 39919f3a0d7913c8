"""Fills an outbox with many rows quickly, for benchmarks that drain it."""

from __future__ import annotations

import asyncpg
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.core.schema import install_schema
from sagapost.outbox.tables import OutboxTables

__all__ = ["KEYS", "PAYLOAD_BYTES", "TOPIC", "empty", "fill", "install"]

PAYLOAD_BYTES = 500
KEYS = 1_000
TOPIC = "bench.event.v1"


async def install(url: str) -> None:
    """Create the tables in a fresh database."""
    tables = OutboxTables()
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(install_schema, tables.versions, [tables.part])
    await engine.dispose()


async def fill(connection: asyncpg.Connection, rows: int, *, keys: int = KEYS) -> None:
    """Insert `rows` events of 500 bytes over `keys` keys in one statement."""
    names = [f"key-{n}" for n in range(keys)]
    payload = b'{"padding":"%s"}' % (b"x" * (PAYLOAD_BYTES - 14))
    await connection.execute(
        """
        INSERT INTO outbox (event_id, topic, type, source, time, datacontenttype, correlationid,
                            partitionkey, data)
        SELECT gen_random_uuid(), $1, $1, 'https://bench.example', clock_timestamp(), 'application/json',
               gen_random_uuid()::text, k.name, $2
        FROM generate_series(0, $3::int - 1) AS row(n)
        JOIN unnest($4::text[]) WITH ORDINALITY AS k(name, i) ON k.i = row.n % $5::int + 1
        ORDER BY row.n
        """,
        TOPIC,
        payload,
        rows,
        names,
        keys,
        timeout=600,
    )


async def empty(connection: asyncpg.Connection) -> None:
    """Remove every row and its dead versions."""
    await connection.execute("TRUNCATE outbox")
