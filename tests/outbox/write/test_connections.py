"""What is particular to connections: the transaction must be open, and raw asyncpg in all its forms."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.core.errors import NotInTransactionError
from sagapost.outbox import Outbox, OutboxTables
from tests.outbox.write.service import Database, outbox, placed, tables

# --- no transaction ---


def test_a_connection_without_a_transaction(database: Database) -> None:
    """Refused, with the block to call it in."""
    with database.engine.connect() as connection:
        with pytest.raises(NotInTransactionError, match=r"a Connection .*with engine\.begin\(\)"):
            outbox.publish(connection, placed(1))
        with connection.begin():
            outbox.publish(connection, placed(2))
        with pytest.raises(NotInTransactionError):
            outbox.publish(connection, placed(3))
    assert database.events() == [2]


async def test_an_async_connection_without_a_transaction(database: Database) -> None:
    """Refused by the call, before anything is awaited."""
    async with database.async_engine.connect() as connection:
        with pytest.raises(NotInTransactionError, match=r"an AsyncConnection .*async with engine\.begin\(\)"):
            _ = outbox.publish(connection, placed(1))
        async with connection.begin():
            await outbox.publish(connection, placed(2))
    assert database.events() == [2]


def test_a_connection_that_began_by_itself(database: Database) -> None:
    """Autobegin is a transaction like any other: its commit is the caller's."""
    with database.engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        outbox.publish(connection, placed(1))
    assert database.events() == []


def test_a_connection_in_autocommit(database: Database) -> None:
    """In a transaction by name only."""
    engine = create_engine(database.engine.url, isolation_level="AUTOCOMMIT")
    with engine.begin() as connection, pytest.raises(NotInTransactionError, match="AUTOCOMMIT"):
        outbox.publish(connection, placed(1))
    engine.dispose()
    chosen = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    with chosen.begin() as connection, pytest.raises(NotInTransactionError, match="AUTOCOMMIT"):
        outbox.publish(connection, placed(1))
    assert database.events() == []


async def test_an_async_connection_in_autocommit(database: Database) -> None:
    """The same with asyncio."""
    engine = create_async_engine(database.async_engine.url, isolation_level="AUTOCOMMIT")
    async with engine.begin() as connection:
        with pytest.raises(NotInTransactionError, match="AUTOCOMMIT"):
            _ = outbox.publish(connection, placed(1))
    await engine.dispose()
    assert database.events() == []


# --- asyncpg ---

pg = pytest.mark.servers


@pg
async def test_a_raw_connection_without_a_transaction(on_postgresql: Database) -> None:
    """asyncpg commits every statement outside transaction()."""
    connection = await asyncpg.connect(on_postgresql.dsn)
    try:
        with pytest.raises(NotInTransactionError, match=r"asyncpg connection .*connection\.transaction\(\)"):
            _ = outbox.publish(connection, placed(1))
        async with connection.transaction():
            await outbox.publish(connection, placed(2))
    finally:
        await connection.close()
    assert on_postgresql.events() == [2]


@pg
async def test_a_connection_from_a_pool(on_postgresql: Database) -> None:
    """The pool hands out a proxy, not a connection."""
    async with asyncpg.create_pool(on_postgresql.dsn, min_size=1, max_size=1) as pool:
        proxy: Any
        async with pool.acquire() as proxy, proxy.transaction():
            await outbox.publish(proxy, placed(1))
    assert on_postgresql.events() == [1]


@pg
async def test_the_driver_connection_of_an_async_engine(on_postgresql: Database) -> None:
    """For hot paths that go past SQLAlchemy inside one of its transactions."""
    async with on_postgresql.async_engine.begin() as connection:
        await connection.exec_driver_sql("SELECT 1")
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await outbox.publish(raw, placed(1))
        await outbox.publish(connection, placed(2))
    assert on_postgresql.events() == [1, 2]


@pg
async def test_codecs_of_the_caller_do_not_matter(on_postgresql: Database) -> None:
    """A connection that maps JSON to objects writes the same extensions as one that does not."""
    connection = await asyncpg.connect(on_postgresql.dsn)
    try:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        async with connection.transaction():
            await outbox.publish(connection, placed(1), extensions={"n": 'a"b'})
            await outbox.publish_all(connection, [placed(2), placed(3)], extensions={"n": 'a"b'})
    finally:
        await connection.close()
    assert [row["extensions"] for row in on_postgresql.rows()] == [{"n": 'a"b'}] * 3


# --- schemas and prefixes ---

NAMED = OutboxTables(schema="Shop Floor", prefix="my_")


@pg
@pytest.mark.parametrize("kind", ["session", "connection", "async_connection", "asyncpg"])
async def test_tables_in_a_schema_of_their_own(own_database: Database, kind: str) -> None:
    """Names that need quotes are quoted, whatever the handle."""
    named = Outbox(source="s", tables=NAMED)
    with own_database.engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "Shop Floor"')
        NAMED.outbox.create(connection, checkfirst=True)
        # The doorbell's function looks at the relays.
        NAMED.relays.create(connection, checkfirst=True)
    await publish_three(named, own_database, kind)
    with own_database.engine.connect() as connection:
        count = 'SELECT count(*) FROM "Shop Floor".my_outbox'
        assert connection.exec_driver_sql(count).scalar_one() == 3


@pg
@pytest.mark.parametrize("kind", ["session", "connection", "async_connection"])
async def test_a_translated_schema(own_database: Database, kind: str) -> None:
    """`schema_translate_map`, as multi-tenant services use it, applies to events as to everything else."""
    with own_database.engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA tenant")
        translated = connection.execution_options(schema_translate_map={None: "tenant"})
        tables.relays.create(translated)
        tables.outbox.create(translated)
        connection.exec_driver_sql("DROP TRIGGER IF EXISTS outbox_ring ON tenant.outbox")
    mapping = {None: "tenant"}
    own_database.engine = own_database.engine.execution_options(schema_translate_map=mapping)
    own_database.async_engine = own_database.async_engine.execution_options(schema_translate_map=mapping)
    await publish_three(outbox, own_database, kind)
    with own_database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM tenant.outbox").scalar_one() == 3
        assert connection.exec_driver_sql("SELECT count(*) FROM public.outbox").scalar_one() == 0


async def publish_three(through: Outbox, database: Database, kind: str) -> None:
    """Publish one event, then two together."""
    from sqlalchemy.orm import Session

    match kind:
        case "session":
            with Session(database.engine) as session, session.begin():
                through.publish(session, placed(1))
                session.flush()
                through.publish_all(session, [placed(2), placed(3)])
        case "connection":
            with database.engine.begin() as connection:
                through.publish(connection, placed(1))
                through.publish_all(connection, [placed(2), placed(3)])
        case "async_connection":
            async with database.async_engine.begin() as connection:
                await through.publish(connection, placed(1))
                await through.publish_all(connection, [placed(2), placed(3)])
        case _:
            raw = await asyncpg.connect(database.dsn)
            async with raw.transaction():
                await through.publish(raw, placed(1))
                await through.publish_all(raw, [placed(2), placed(3)])
            await raw.close()


# --- rights ---


@pytest.mark.servers
async def test_the_right_to_insert_is_enough(own_database: Database) -> None:
    """For one event and for several, by every driver, with the schema translated too: nothing asks for SELECT."""
    role = f"writer_{own_database.url.database}"
    with own_database.engine.begin() as connection:
        connection.exec_driver_sql(f'CREATE ROLE "{role}"')
        connection.exec_driver_sql(f'GRANT INSERT ON outbox TO "{role}"')
    try:
        for translated in ({}, {None: "public"}):
            options: dict[str, Any] = {"schema_translate_map": translated} if translated else {}
            with own_database.engine.execution_options(**options).begin() as connection:
                connection.exec_driver_sql(f'SET LOCAL ROLE "{role}"')
                outbox.publish(connection, placed(1))
                outbox.publish_all(connection, [placed(2), placed(3)])
            async with own_database.async_engine.execution_options(**options).begin() as asynchronous:
                await asynchronous.exec_driver_sql(f'SET LOCAL ROLE "{role}"')
                await outbox.publish_all(asynchronous, [placed(4), placed(5)])
    finally:
        with own_database.engine.begin() as connection:
            connection.exec_driver_sql(f'DROP OWNED BY "{role}"')
            connection.exec_driver_sql(f'DROP ROLE "{role}"')
    assert own_database.events() == [1, 2, 3, 4, 5] * 2
