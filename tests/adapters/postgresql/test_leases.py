"""Ownership on a real PostgreSQL: never two owners at once, and at no more cost after a day than after a minute."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import uuid4

import anyio
import asyncpg

from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.adapters.postgresql.leases import PostgreSQLLeases
from sagapost.adapters.postgresql.server import Server
from sagapost.core.outbox_store import Claims, LeaseToken, Partition, RelayId
from tests.adapters.postgresql.outbox import OutboxDatabase

TTL = timedelta(milliseconds=60)
PROVEN = 0.8
"""Share of its time that a relay counts on."""


@asynccontextmanager
async def opened(database: OutboxDatabase) -> AsyncGenerator[PostgreSQLOutboxStore, None]:
    """A store, closed at the end."""
    store = database.store()
    try:
        yield store
    finally:
        await store.aclose()


async def test_no_partition_ever_has_two_owners(database: OutboxDatabase) -> None:
    """Six relays that stall now and then for longer than they live: what each counts on, no other does meanwhile."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    counted: dict[Partition, list[tuple[float, float, RelayId]]] = defaultdict(list)
    changes = 0

    async def relay(mine: random.Random) -> None:
        nonlocal changes
        me = RelayId(uuid4())
        async with opened(database) as store:
            leases = store.leases
            claims: dict[Partition, LeaseToken] = {}
            for _ in range(120):
                until = time.monotonic() + TTL.total_seconds() * PROVEN
                beat = await leases.heartbeat(me, claims, ttl=TTL)
                changes += len(claims.keys() - beat.held)
                claims = {p: token for p, token in claims.items() if p in beat.held}
                claims |= await leases.claim(me, want=mine.randrange(9))
                now = time.monotonic()
                for partition in claims if now < until else ():
                    counted[partition].append((now, until, me))
                await anyio.sleep(mine.choice([0.0, 0.01, 0.02, 0.1]))

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(relay, random.Random(rng.randrange(2**32)))
    assert changes > 50, "nothing changed hands; the test would prove nothing"
    for spans in counted.values():
        ends: dict[RelayId, float] = {}
        for start, end, owner in sorted(spans):
            assert all(start >= other_end for other, other_end in ends.items() if other != owner)
            ends[owner] = max(end, ends.get(owner, 0.0))


async def test_a_relay_that_is_being_given_up_waits_and_learns_it(database: OutboxDatabase) -> None:
    """Another is deleting its row at this very moment: the outcome decides, not who looked first."""
    me = RelayId(uuid4())
    async with opened(database) as store, database.session() as other:
        for outcome in ("ROLLBACK", "COMMIT"):
            await store.leases.heartbeat(me, {}, ttl=TTL)
            claims = await store.leases.claim(me, want=4)
            held: list[int] = []

            await other.execute("BEGIN")
            await other.execute("DELETE FROM outbox_relays")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_beat, store, me, claims, held)
                await _until_somebody_waits(other)
                await other.execute(outcome)
            assert held == [4 if outcome == "ROLLBACK" else 0]
            await store.leases.retire(me)


async def _beat(store: PostgreSQLOutboxStore, relay: RelayId, claims: Claims, held: list[int]) -> None:
    beat = await store.leases.heartbeat(relay, claims, ttl=TTL)
    held.append(len(beat.held))


async def _until_somebody_waits(session: asyncpg.Connection) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with anyio.fail_after(10):
        while not await session.fetchval(waiting):  # noqa: ASYNC110 - asks a database of other sessions
            await anyio.sleep(0.01)


async def test_pitfall_50_a_heartbeat_costs_the_same_after_a_day_under_an_open_transaction(
    database: OutboxDatabase,
) -> None:
    """A transaction keeps every dead version of a day; the pages that heartbeats touch do not grow with them."""
    me, ttl = RelayId(uuid4()), timedelta(minutes=1)
    link = PostgreSQLLink(Server(database.url), purpose="control", timeout=30.0, plan_each_time=True)
    leases = PostgreSQLLeases(link, database.tables)

    async def pages() -> int:
        await link.fetch("SELECT pg_stat_force_next_flush()")
        return await database.value("""
            SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)::bigint
            FROM pg_statio_user_tables WHERE relname IN ('outbox_relays', 'outbox_leases')""")

    async def ten_beats() -> int:
        before = await pages()
        for _ in range(10):
            assert len((await leases.heartbeat(me, claims, ttl=ttl)).held) == 32
        return await pages() - before

    async with database.session() as report:
        await leases.heartbeat(me, {}, ttl=ttl)
        claims = await leases.claim(me, want=32)
        await report.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await report.execute("SELECT count(*) FROM outbox")
        fresh = await ten_beats()
        await database.sql.execute(_DAY)
        later = await ten_beats()
        print(fresh, later)
        assert await database.value("SELECT pg_relation_size('outbox_relays') / 8192") > 200
        assert later < 3 * fresh + 100
        await report.execute("ROLLBACK")
    await link.aclose()


_DAY = """
    DO $$ DECLARE former timestamptz; latest timestamptz; me uuid; BEGIN
        SELECT relay, expires_at, expires_at INTO me, former, latest FROM outbox_relays;
        FOR n IN REVERSE 43199..0 LOOP
            DELETE FROM outbox_relays WHERE expires_at = former AND relay = me;
            former := latest - n * interval '2 seconds';
            INSERT INTO outbox_relays (expires_at, relay) VALUES (former, me);
        END LOOP;
    END $$"""
"""A heartbeat every two seconds, the last of them as it was."""
