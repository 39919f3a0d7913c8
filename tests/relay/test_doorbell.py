"""The trigger that wakes a sleeping relay fires in other people's transactions: with few rights, in strange places."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import asyncpg
import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.core.outbox_store import Doorbell
from sagapost.core.schema import install_schema, missing_supplements
from sagapost.outbox import Outbox, OutboxTables
from sagapost.outbox.relay import observations as obs
from sagapost.outbox.tables import doorbell_channel, doorbell_lock
from tests.relay.shop import EVERYTHING, Shop, Watch, running

WRITE = """
    INSERT INTO public.outbox (event_id, key_hash, topic, type, source, time, data)
    VALUES (gen_random_uuid(), 1, 't', 't', 's', now(), '{}')"""


@pytest.fixture
async def writer(shop: Shop) -> AsyncGenerator[str, None]:
    """The DSN of a role that may insert events, and nothing else."""
    role = f"sagapost_writer_{secrets.token_hex(4)}"
    admin = await asyncpg.connect(shop.dsn)
    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'writer'")
    await admin.execute(f"GRANT INSERT ON outbox, outbox_scheduled TO {role}")
    yield make_url(shop.dsn).set(username=role, password="writer").render_as_string(hide_password=False)
    await admin.execute(f"DROP OWNED BY {role}")
    await admin.execute(f"DROP ROLE {role}")
    await admin.close()


@asynccontextmanager
async def connected(dsn: str) -> AsyncGenerator[asyncpg.Connection, None]:
    """A connection for the block."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def asleep(shop: Shop) -> AsyncGenerator[Watch, None]:
    """A relay that would look again in half a minute."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    async with running(shop.relay(broker, watch)):
        await watch.until(lambda: watch.count(obs.Idle) >= 1)
        yield watch


HELD = """
    SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


@asynccontextmanager
async def opened(shop: Shop) -> AsyncGenerator[Doorbell, None]:
    """The doorbell of one more relay."""
    store = PostgreSQLOutboxStore(shop.url, tables=shop.tables)
    async with store.doorbell() as doorbell:
        yield doorbell
    await store.aclose()


async def test_a_writer_needs_no_more_than_insert(shop: Shop, writer: str) -> None:
    """Nor the tables in its search path; and it rings all the same."""
    async with asleep(shop) as watch, connected(writer) as connection:
        await connection.execute("SET search_path = pg_catalog")
        await connection.execute("SET sagapost.doorbell = on")
        await connection.execute(WRITE)
        await watch.until(lambda: watch.settled == 1, within=10)


@pytest.mark.parametrize("driver", ["asyncpg", "session"])
async def test_the_outbox_itself_writes_with_insert_alone(shop: Shop, writer: str, driver: str) -> None:
    """`Outbox.publish` reads nothing back."""
    outbox = Outbox(source="https://shop.example", tables=OutboxTables())
    if driver == "asyncpg":
        async with connected(writer) as connection, connection.transaction():
            await outbox.publish(connection, {"n": 1}, type="shop.said.v1")
    else:
        engine = create_engine(make_url(writer).set(drivername="postgresql+psycopg"))
        with Session(engine) as session, session.begin():
            outbox.publish(session, {"n": 1}, type="shop.said.v1")
        engine.dispose()
    assert await shop.one("SELECT count(*) FROM outbox") == 1


TRAPS = """
    CREATE TABLE evil.caught (who text);
    GRANT INSERT ON evil.caught TO PUBLIC;
    CREATE FUNCTION evil.pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO evil.caught VALUES (current_user); END $$;
    CREATE FUNCTION evil.pg_try_advisory_lock(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO evil.caught VALUES (current_user); RETURN false; END $$;
    CREATE FUNCTION evil.less(double precision, numeric) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO evil.caught VALUES (current_user); RETURN true; END $$;
    CREATE OPERATOR evil.< (LEFTARG = double precision, RIGHTARG = numeric, FUNCTION = evil.less);
"""


async def test_nothing_that_lies_in_the_search_path_runs(shop: Shop, writer: str) -> None:
    """Functions and operators that are in front of PostgreSQL's catch nobody."""
    role = make_url(writer).username
    await shop.one(f'CREATE SCHEMA evil AUTHORIZATION "{role}"')
    async with asleep(shop) as watch, connected(writer) as connection:
        await connection.execute(TRAPS)
        await connection.execute("SET search_path = evil, pg_catalog, public")
        await connection.execute("SET sagapost.doorbell = on")
        await connection.execute(WRITE)
        await watch.until(lambda: watch.settled == 1, within=10)
        assert await connection.fetchval("SELECT count(*) FROM evil.caught") == 0
        await connection.execute("CREATE TABLE evil.bait (x int)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(
                "CREATE TRIGGER t AFTER INSERT ON evil.bait FOR EACH STATEMENT EXECUTE FUNCTION public.outbox_ring()"
            )


async def test_tables_of_a_migration_get_their_trigger(shop: Shop) -> None:
    """Generated migrations leave the trigger out: that is told, and mended by the migration or by `db upgrade`."""
    part = shop.tables.part

    async def on(work: Callable[..., Any], *arguments: object) -> Any:
        async with shop.engine.begin() as connection:
            return await connection.run_sync(work, *arguments)

    assert await on(missing_supplements, part) == []

    def migrate(connection: Connection) -> None:
        connection.execute(shop.tables.create_doorbell)

    def upgrade(connection: Connection) -> None:
        install_schema(connection, shop.tables.versions, [part])

    for mend in (migrate, upgrade):
        await shop.one("DROP FUNCTION outbox_ring CASCADE")
        await shop.say(1)
        assert await on(missing_supplements, part) == [shop.tables.create_doorbell.what]
        await on(mend)
        assert await on(missing_supplements, part) == []
        assert await on(install_schema, shop.tables.versions, [part]) == []
    async with asleep(shop) as watch:
        before = watch.settled
        await shop.say(2)
        await watch.until(lambda: watch.settled == before + 1, within=10)


async def test_a_trigger_of_an_earlier_release_is_brought_up_to_date(shop: Shop) -> None:
    """One that ran with the owner's rights is replaced where it is, without touching the table."""
    await shop.one(
        "CREATE OR REPLACE FUNCTION outbox_ring() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS "
        "$$ BEGIN RETURN NULL; END $$"
    )
    async with shop.engine.begin() as connection:
        assert await connection.run_sync(missing_supplements, shop.tables.part) != []
        # Somebody writes meanwhile: the upgrade does not wait for them.
        async with connected(shop.dsn) as other:
            await other.execute("BEGIN")
            await other.execute(WRITE)
            await connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
            assert await connection.run_sync(install_schema, shop.tables.versions, [shop.tables.part]) == ["outbox"]
    assert await shop.one("SELECT prosecdef FROM pg_proc WHERE proname = 'outbox_ring'") is False


async def test_a_prefix_and_a_schema_that_need_quoting(shop: Shop) -> None:
    """Names of any kind reach the function whole, and the bell rings in its own channel."""
    tables = OutboxTables(schema="Sales's & more", prefix='My"-')
    async with shop.engine.begin() as connection:
        await connection.run_sync(install_schema, tables.versions, [tables.part])
        assert await connection.run_sync(missing_supplements, tables.part) == []
    rings: list[object] = []

    def ring(*arguments: object) -> None:
        rings.append(arguments)

    async with connected(shop.dsn) as listener, shop.engine.connect() as connection:
        await listener.add_listener(doorbell_channel(tables.outbox), ring)
        await listener.execute(f"SELECT pg_advisory_lock_shared({doorbell_lock(tables.outbox)})")
        async with connection.begin():
            await Outbox(source="urn:x", tables=tables).publish(connection, {"n": 1}, type="t.v1")
        await listener.fetchval("SELECT 1")
        assert len(rings) == 1


async def test_pitfall_50_nothing_that_relays_write_is_read_by_writers(shop: Shop) -> None:
    """Whatever becomes of the relays' tables, under an open transaction of days, is no matter to who publishes."""
    async with asleep(shop) as watch, connected(shop.dsn) as other:
        async with other.transaction():
            await other.execute("LOCK TABLE outbox_relays, outbox_leases IN ACCESS EXCLUSIVE MODE")
            with anyio.fail_after(10):
                await shop.say(1)
        await watch.until(lambda: watch.settled == 1, within=10)


async def test_writers_at_once_ring_for_nobody(shop: Shop) -> None:
    """Each asks by the lock whether a relay sleeps; that they meet there is no reason to notify."""
    rings: list[object] = []

    def ring(*arguments: object) -> None:
        rings.append(arguments)

    async def write() -> None:
        async with connected(shop.dsn) as connection:
            for _ in range(200):
                await connection.execute(WRITE)

    async with connected(shop.dsn) as listener:
        await listener.add_listener(doorbell_channel(shop.tables.outbox), ring)
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(write)
        await listener.fetchval("SELECT 1")
    assert len(rings) < 16


async def test_one_of_several_sleepers_is_enough_to_be_rung(shop: Shop) -> None:
    """Relays hold the lock together: that one wakes up tells nothing of the others."""
    async with opened(shop) as first, opened(shop) as second, connected(shop.dsn) as session:
        await first.arm()
        await second.arm()
        await first.disarm()
        await shop.say(1)
        assert await second.wait(10)
        await second.disarm()
        assert await session.fetchval(HELD) == 0


@pytest.mark.parametrize("by", ["session", "sql"])
async def test_a_two_phase_transaction_is_prepared_beside_a_sleeping_relay(shop: Shop, by: str) -> None:
    """Pitfall 40: the ring is lost, and never the writer's PREPARE TRANSACTION."""
    if await shop.one("SHOW max_prepared_transactions") == "0":
        pytest.skip("this server has max_prepared_transactions = 0")
    async with asleep(shop):
        if by == "session":
            engine = create_engine(make_url(shop.dsn).set(drivername="postgresql+psycopg"))

            def buy() -> None:
                with Session(engine, twophase=True) as session:
                    shop.outbox.publish(session, {"n": 1}, type="shop.said.v1")
                    session.commit()

            await anyio.to_thread.run_sync(buy)
            engine.dispose()
        else:
            async with connected(shop.dsn) as connection:
                await connection.execute("BEGIN")
                await connection.execute(WRITE)
                await connection.execute("PREPARE TRANSACTION 'sagapost_doorbell'")
                await connection.execute("COMMIT PREPARED 'sagapost_doorbell'")


async def test_a_schema_that_was_renamed_takes_events(shop: Shop) -> None:
    """Pitfall 40: the function rings in the channel of the former name; that loses the ring and no event."""
    old, new = OutboxTables(schema="former"), OutboxTables(schema="present")
    async with shop.engine.begin() as connection:
        await connection.run_sync(install_schema, old.versions, [old.part])
        await connection.exec_driver_sql("ALTER SCHEMA former RENAME TO present")
        await Outbox(source="urn:x", tables=new).publish(connection, {"n": 1}, type="t.v1")
        assert await connection.run_sync(missing_supplements, new.part) == [new.create_doorbell.what]
        await connection.run_sync(install_schema, new.versions, [new.part])
        assert await connection.run_sync(missing_supplements, new.part) == []
