"""Installing on PostgreSQL: schemas, prefixes, and replicas that start together."""

from __future__ import annotations

import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sagapost.core.schema import check_schema, install_schema
from sagapost.outbox.tables import OutboxTables


async def install(engine: AsyncEngine, schema: str | None, prefix: str = "") -> list[str]:
    """Install the outbox as one process does, with tables of its own; check it in the same transaction."""
    tables = OutboxTables(schema=schema, prefix=prefix)
    async with engine.begin() as connection:
        changed = await connection.run_sync(install_schema, tables.versions, [tables.part])
        await connection.run_sync(check_schema, tables.versions, tables.part, where="test database")
    return changed


@pytest.mark.parametrize("schema", [None, "messaging"])
async def test_replicas_that_start_together_take_turns(postgresql_url: str, schema: str | None) -> None:
    """Six installers at once, into a schema that does not exist yet: one creates, five find it done, none fails."""
    engine = create_async_engine(postgresql_url, pool_size=6)
    changed: list[list[str]] = []

    async def replica() -> None:
        changed.append(await install(engine, schema))

    try:
        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(replica)
    finally:
        await engine.dispose()
    assert sorted(changed) == [[], [], [], [], [], ["audit", "outbox"]]


async def test_two_services_share_a_database_by_prefix(postgresql_url: str) -> None:
    """Both sets of tables, triggers and constraints exist side by side in one schema."""
    engine = create_async_engine(postgresql_url)
    try:
        assert await install(engine, None, "orders_") == ["audit", "outbox"]
        assert await install(engine, None, "warehouse_") == ["audit", "outbox"]
    finally:
        await engine.dispose()


async def test_the_table_itself_refuses_a_refused_row_without_a_reason(postgresql_url: str) -> None:
    """The rule lives in the database too: attempts without error and due time are rejected, whoever writes them."""
    engine = create_async_engine(postgresql_url)
    try:
        await install(engine, None)
        async with engine.begin() as connection:
            await connection.execute(
                text(
                    "INSERT INTO outbox (event_id, key_hash, topic, type, source, time, data) "
                    "VALUES (gen_random_uuid(), 1, 't', 't', 's', now(), '')"
                )
            )
        async with engine.connect() as connection:
            with pytest.raises(IntegrityError, match="refused_rows_say_why"):
                await connection.execute(text("UPDATE outbox SET attempts = 1"))
    finally:
        await engine.dispose()
