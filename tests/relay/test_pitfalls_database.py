"""What went wrong between other relays and their databases (docs/pitfalls.md), done to this one on PostgreSQL."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import anyio
import anyio.to_thread
import asyncpg
from sqlalchemy import text
from sqlalchemy.engine import make_url

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.core.clock import SystemClock
from sagapost.core.errors import SchemaError, StoreUnavailableError
from sagapost.core.schema import install_schema
from sagapost.outbox import Outbox
from sagapost.outbox.relay import Relay
from sagapost.outbox.relay import observations as obs
from sagapost.outbox.tables import doorbell_channel
from tests.faults.proxy import FaultProxy
from tests.relay.shop import EVERYTHING, FAST, Shop, Watch, numbers, received, running
from tests.servers.databases import execute
from tests.servers.fixtures import OwnPostgreSQL


@asynccontextmanager
async def connected(shop: Shop) -> AsyncGenerator[asyncpg.Connection, None]:
    """A session beside the relay's."""
    connection = await asyncpg.connect(shop.dsn)
    try:
        yield connection
    finally:
        await connection.close()


RELAY_CONNECTIONS = 5
"""Reading, settling, leases, doorbell, sweep."""


@dataclass
class SkewedClock(SystemClock):
    """A host whose clock is wrong."""

    by: timedelta

    def now(self) -> datetime:
        return datetime.now(UTC) + self.by


async def test_pitfall_05_wrong_clocks_change_no_order(shop: Shop) -> None:
    """Three hosts an hour apart take turns at one row, each under its lock: events come in the order of the turns."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    async with shop.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE account (version int)"))
        await connection.execute(text("INSERT INTO account VALUES (0)"))
    turns = 20

    async def host(skew: timedelta) -> None:
        outbox = Outbox(source="urn:host", tables=shop.tables, clock=SkewedClock(skew))
        for _ in range(turns):
            async with shop.engine.begin() as connection:
                version = await connection.scalar(text("UPDATE account SET version = version + 1 RETURNING version"))
                await outbox.publish(connection, {"n": version}, key="account", type="shop.said.v1")

    async with running(shop.relay(broker, watch)):
        async with anyio.create_task_group() as tasks:
            for hours in (-1, 0, 1):
                tasks.start_soon(host, timedelta(hours=hours))
        await watch.until(lambda: watch.settled == 3 * turns)
    events = await received(broker, 3 * turns)
    assert numbers(events) == list(range(1, 3 * turns + 1))
    assert [event.time for event in events] != sorted(event.time for event in events)


async def test_pitfall_08_a_row_that_somebody_locks_keeps_its_place(shop: Shop) -> None:
    """An operator's SELECT FOR UPDATE on the first event of a key: the second does not go before it."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    await shop.say(1, 2, 3)
    async with connected(shop) as operator, running(shop.relay(broker, watch)):
        await operator.execute("BEGIN")
        await operator.execute("SELECT FROM outbox ORDER BY position LIMIT 1 FOR UPDATE")
        await shop.say(4, 5)
        await watch.until(lambda: sum(e.rows for e in watch.events if isinstance(e, obs.Published)) == 5)
        assert numbers(await received(broker, 5)) == [1, 2, 3, 4, 5]
        await operator.execute("ROLLBACK")
        await watch.until(lambda: watch.settled == 5)
    assert not broker.waiting(EVERYTHING.name)


async def test_pitfall_11_the_listening_connection_is_always_read(shop: Shop) -> None:
    """Megabytes of notifications for a sleeping relay: none are left in the server, and no snapshot is pinned."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    channel = doorbell_channel(shop.tables.outbox)
    async with running(shop.relay(broker, watch)), connected(shop) as other:
        await watch.until(lambda: watch.count(obs.Idle) >= 1)
        for _ in range(10):
            await other.execute(
                f"SELECT pg_notify('{channel}', n || repeat('x', 7900)) FROM generate_series(1, 300) n"
            )
        with anyio.fail_after(20):
            while await other.fetchval("SELECT pg_notification_queue_usage()"):
                await anyio.lowlevel.checkpoint()
        pinned = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sagapost-doorbell' AND {}"
        assert await other.fetchval(pinned.format("datname = current_database()")) == 1
        with anyio.fail_after(20):
            # Between two statements of the relay: none that lasts.
            while await other.fetchval(
                pinned.format("datname = current_database() AND (state <> 'idle' OR backend_xmin IS NOT NULL)")
            ):
                await anyio.lowlevel.checkpoint()
        await shop.say(1)
        await watch.until(lambda: watch.settled == 1)


async def test_pitfall_14_a_database_gone_without_a_word_is_noticed_and_left(shop: Shop) -> None:
    """Half-open TCP on every connection of a sleeping relay: it works on within its time limits, not hours later."""
    url = make_url(shop.url)
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    async with FaultProxy(url.host or "", url.port or 5432) as proxy:
        store = PostgreSQLOutboxStore(
            url.set(host=proxy.host, port=proxy.port).render_as_string(hide_password=False),
            tables=shop.tables,
            call_timeout=1.0,
            connect_timeout=10.0,
        )
        relay = Relay(store, broker, settings=replace(FAST, poll_interval=timedelta(seconds=1)), observer=watch)
        async with running(relay):
            await watch.until(lambda: watch.count(obs.Idle) >= 1)
            assert proxy.strand() >= 3
            await shop.say(1, 2)
            await watch.until(lambda: watch.settled == 2, within=60)
            # The connection that listens was half-open as well: the next event rings on a new one.
            await watch.until(lambda: isinstance(watch.events[-1], obs.Idle), within=60)
            await shop.say(3)
            await watch.until(lambda: watch.settled == 3, within=60)
    assert numbers(await received(broker, 3)) == [1, 2, 3]


async def test_pitfall_15_a_saturated_loop_starves_no_heartbeat(shop: Shop) -> None:
    """Somebody hogs the event loop in slices of 20 ms while a backlog drains: no lease is lost, none comes twice."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    await shop.say(*range(1_000), key=None)
    done = anyio.Event()

    async def hog() -> None:
        while not done.is_set():
            until = time.perf_counter() + 0.02
            while time.perf_counter() < until:
                pass
            await anyio.lowlevel.checkpoint()

    relays = [shop.relay(broker, watch, replace(FAST, lease_ttl=timedelta(seconds=5))) for _ in range(2)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hog)
        async with running(*relays):
            await watch.until(lambda: watch.settled == 1_000, within=120)
            done.set()
    assert watch.count(obs.LeaseLost) == 0
    assert Counter(numbers(await received(broker, 1_000))) == Counter(range(1_000))
    assert not broker.waiting(EVERYTHING.name)


STEAL = """
    WITH buried AS (DELETE FROM outbox_relays), thief AS (
        INSERT INTO outbox_relays (relay, expires_at) VALUES (gen_random_uuid(), now() + interval '1 hour')
        RETURNING relay
    )
    UPDATE outbox_leases SET owner = thief.relay, token = token + 1 FROM thief"""
WRITE = """
    INSERT INTO outbox (event_id, key_hash, topic, type, source, time, data)
    SELECT gen_random_uuid(), n, 't', 't', 's', now(), '{}' FROM generate_series(1, 50) n"""


async def test_pitfall_17_a_relay_that_slept_through_its_lease_touches_nothing(shop: Shop) -> None:
    """Its process stands still until another owns all; what it finds when it wakes it neither sends nor deletes."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    async with running(shop.relay(broker, watch)):
        await watch.until(lambda: watch.count(obs.Idle) >= 1)
        broker.hold_confirms()
        await shop.say(1, 2, 3, key=None)
        await watch.until(lambda: sum(e.rows for e in watch.events if isinstance(e, obs.Sent)) == 3)
        # Blocks the event loop, as a suspended process would be.
        execute(shop.dsn, "SELECT pg_sleep(2.5)", STEAL, WRITE)
        broker.release_confirms()
        await watch.until(lambda: watch.count(obs.LeaseLost) >= 1)
        assert await shop.one("SELECT count(*) FROM outbox") == 53
    assert len(broker.waiting(EVERYTHING.name)) == 3
    assert await shop.one("SELECT count(*) FROM outbox") == 53


async def test_pitfall_24_ten_thousand_due_events_are_moved_once(shop: Shop) -> None:
    """Four movers whose connections are terminated again and again: each event is in the outbox, and once."""
    total = 10_000
    await shop.one(f"""
        WITH written AS (
            INSERT INTO outbox_scheduled (deliver_at, event_id, key_hash, topic, type, source, time, data)
            SELECT now() - interval '1 hour', gen_random_uuid(), n % 32768, 't', 't', 's', now(),
                   convert_to(n::text, 'UTF8')
            FROM generate_series(1, {total}) n RETURNING 1)
        SELECT count(*) FROM written""")
    cuts: list[int] = []

    async def move() -> None:
        store = PostgreSQLOutboxStore(shop.url, tables=shop.tables)
        while True:
            try:
                upcoming = (await store.schedule.move_due(limit=200)).upcoming
            except StoreUnavailableError:
                continue
            if upcoming is None:
                break
        await store.aclose()

    async def terminate() -> None:
        async with connected(shop) as operator:
            for left in range(total - 1_500, 0, -1_500):
                while await operator.fetchval("SELECT count(*) > $1 FROM outbox_scheduled", left):
                    await anyio.lowlevel.checkpoint()
                ended = await operator.fetch(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name LIKE 'sagapost-%' AND datname = current_database()"
                )
                cuts.append(len(ended))

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(move)
            tasks.start_soon(terminate)
    assert sum(cuts) > 0
    assert await shop.one("SELECT count(*) FROM outbox") == total
    assert await shop.one("SELECT count(DISTINCT event_id) FROM outbox") == total
    assert await shop.one("SELECT count(DISTINCT data) FROM outbox") == total


async def test_pitfall_25_work_goes_on_after_each_restart_of_the_database(own_postgresql: OwnPostgreSQL) -> None:
    """Stopped and killed under a relay at work: nobody helps, nothing is lost, and no connection is left behind."""
    server = await anyio.to_thread.run_sync(own_postgresql)
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    shop = Shop(server.url())
    async with shop.engine.begin() as connection:
        await connection.run_sync(install_schema, shop.tables.versions, [shop.tables.part])

    async with running(shop.relay(broker, watch)):
        for round_, end in enumerate((server.stop, server.kill, server.stop)):
            await shop.say(*range(round_ * 10, round_ * 10 + 10))
            expected = 10 + 10 * round_
            await watch.until(lambda expected=expected: watch.settled == expected, within=60)  # type: ignore[misc]
            await shop.engine.dispose()
            lost = watch.lost("database")
            await anyio.to_thread.run_sync(end)
            await watch.until(lambda lost=lost: watch.lost("database") > lost, within=60)  # type: ignore[misc]
            await anyio.to_thread.run_sync(server.start)
        await shop.say(*range(30, 40))
        await watch.until(lambda: watch.settled == 40, within=60)
        opened = await shop.one("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'sagapost-%'")
        assert isinstance(opened, int)
        assert opened <= RELAY_CONNECTIONS
    await shop.engine.dispose()
    assert numbers(await received(broker, 40)) == list(range(40))
    assert not broker.waiting(EVERYTHING.name)


async def test_a_relay_whose_tables_are_upgraded_says_so_and_ends(shop: Shop) -> None:
    """Columns it uses are gone: the next cycle finds the other version, in one sentence, and no outage to wait for."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    ended: list[BaseException] = []

    async def run() -> None:
        try:
            await shop.relay(broker, watch).run()
        except* SchemaError as errors:
            ended.extend(errors.exceptions)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await watch.until(lambda: watch.count(obs.Idle) >= 1)
            execute(
                shop.dsn,
                "UPDATE sagapost_schema SET version = version + 1 WHERE part = 'outbox'",
                "INSERT INTO outbox (type, source, data) VALUES ('t', 's', '')",
                "ALTER TABLE outbox RENAME COLUMN slot TO place",
            )
            # What wakes it up: the end of its connections.
            execute(
                shop.dsn,
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE application_name LIKE 'sagapost-%' AND datname = current_database()",
            )
    assert "Upgrade the sagapost package" in str(ended[0])
