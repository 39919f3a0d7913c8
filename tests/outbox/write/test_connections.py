"""What is particular to connections: the transaction must be open, and raw asyncpg in all its forms."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.core.errors import NotInTransactionError
from sagapost.outbox import Outbox, OutboxTables
from sagapost.outbox.tables import doorbell_lock
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


# --- psycopg ---


@pg
def test_psycopg_in_autocommit_needs_a_transaction_of_its_own(on_postgresql: Database) -> None:
    """Every statement is committed by itself there; `connection.transaction()` makes one, and savepoints within it."""
    with closing(psycopg.connect(on_postgresql.dsn, autocommit=True)) as connection:
        with pytest.raises(NotInTransactionError, match=r"psycopg connection in autocommit .*connection\.transaction"):
            outbox.publish(connection, placed(1))
        with connection.transaction():
            outbox.publish(connection, placed(2))
            with connection.transaction(force_rollback=True):
                outbox.publish(connection, placed(3))
            outbox.publish_all(connection, [placed(4), placed(5)], extensions={"n": 'a"b%s'})
        with pytest.raises(NotInTransactionError):
            outbox.publish(connection, placed(6))
    assert on_postgresql.events() == [2, 4, 5]
    assert [row["extensions"] for row in on_postgresql.rows()] == [None, {"n": 'a"b%s'}, {"n": 'a"b%s'}]


@pg
async def test_an_asynchronous_psycopg_connection_is_no_handle(on_postgresql: Database) -> None:
    """Said at once, and nothing is written."""
    connection = await psycopg.AsyncConnection.connect(on_postgresql.dsn)
    try:
        with pytest.raises(TypeError, match=r"AsyncConnection is not a handle .*synchronous psycopg"):
            await outbox.publish(connection, placed(1))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    finally:
        await connection.close()
    assert on_postgresql.events() == []


@pg
def test_psycopg2_is_a_handle_as_well(on_postgresql: Database) -> None:
    """It knows neither UUIDs nor `connection.transaction()`; a transaction begins by itself, or by BEGIN."""
    psycopg2: Any = pytest.importorskip("psycopg2", reason="psycopg2 belongs to another group of dependencies")
    with closing(psycopg2.connect(on_postgresql.dsn)) as connection:
        event = outbox.publish(connection, placed(1), extensions={"n": 'a"b%s'})
        outbox.publish_all(connection, [placed(2), placed(3)], subject="x")
        assert outbox.cancel(connection, event_id=event.id) == 0
        connection.commit()
        outbox.publish(connection, placed(4))
        connection.rollback()
        connection.autocommit = True
        with pytest.raises(NotInTransactionError):
            outbox.publish(connection, placed(5))
    assert on_postgresql.events() == [1, 2, 3]


@pg
def test_psycopg_with_names_that_look_like_parameters(own_database: Database) -> None:
    """A per cent sign in a table's name is none of a parameter."""
    named = Outbox(source="s", tables=OutboxTables(prefix="100%s_"))
    with own_database.engine.begin() as connection:
        named.tables.metadata.create_all(connection)
    with closing(psycopg.connect(own_database.dsn)) as connection:
        event = named.publish(connection, placed(1), deliver_at=datetime(2030, 1, 1, tzinfo=UTC))
        named.publish_all(connection, [placed(2), placed(3)])
        assert named.cancel(connection, event_id=event.id) == 1
        assert named.cancel(connection, event_id=event.id) == 0
        found = connection.execute('SELECT count(*) FROM "100%%s_outbox"', []).fetchone()
        assert found == (2,)


@pg
@pytest.mark.parametrize("one_phase", [False, True])
def test_psycopg_can_prepare_its_transaction(on_two_phase: Database, one_phase: bool) -> None:
    """A transaction for two phases holds no notification, whoever sleeps; the next one is an ordinary one."""
    lock = doorbell_lock(tables.outbox)
    with (
        closing(psycopg.connect(on_two_phase.dsn, autocommit=True)) as sleeper,
        closing(psycopg.connect(on_two_phase.dsn)) as connection,
    ):
        sleeper.execute("SELECT pg_advisory_lock_shared(%s)", [lock])
        if one_phase:
            outbox.publish(connection, placed(1))
            connection.commit()
        else:
            connection.tpc_begin("shop")
            outbox.publish(connection, placed(1))
            connection.tpc_prepare()
            connection.tpc_commit()
    assert on_two_phase.events() == [1]


# --- schemas and prefixes ---

NAMED = OutboxTables(schema="Shop Floor", prefix="my_")


@pg
@pytest.mark.parametrize("kind", ["session", "connection", "async_connection", "asyncpg", "psycopg"])
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
        case "psycopg":
            with closing(psycopg.connect(database.dsn)) as connection:
                through.publish(connection, placed(1))
                through.publish_all(connection, [placed(2), placed(3)])
                connection.commit()
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
