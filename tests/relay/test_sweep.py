"""Pitfall 39: the nets under the cursor hold in the normal state, idle and busy, and cost nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import anyio
import asyncpg
import pytest

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.core.broker import Queue
from sagapost.core.outbox_store import Claims, OutboxSweeper, Position
from sagapost.outbox.relay import Relay
from sagapost.outbox.relay import observations as obs
from tests.relay.shop import EVERYTHING, FAST, Shop, Watch, numbers, received, running

SHOP = Queue(EVERYTHING.name, frozenset({"shop.#"}))
SWEEPING = replace(FAST, sweep_interval=timedelta(seconds=1))

RESTORED_NUMBERS = [1_000_001, 1_000_002, 1_000_003]
RESTORED = """
    INSERT INTO outbox (xid, type, source, partitionkey, data)
    SELECT '700', 't', 's', 'restored', convert_to('{"n":' || n || '}', 'UTF8')
    FROM generate_series(1000001, 1000003) n"""


async def restore(shop: Shop) -> None:
    """Put rows in as pg_restore and logical replication do: with transaction ids of the past, and no trigger."""
    connection = await asyncpg.connect(shop.dsn)
    await connection.execute("SET session_replication_role = replica")
    await connection.execute(RESTORED)
    await connection.close()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_pitfall_39_a_sweep_finds_what_no_cursor_can_see(shop: Shop, *, busy: bool) -> None:
    """Rows with transaction ids of the past come, once and in order, whether the relay sleeps or never does."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    done = anyio.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        while busy and not done.is_set():
            await shop.say(written, key=None)
            written += 1

    async with running(shop.relay(broker, watch, SWEEPING)):
        async with anyio.create_task_group() as tasks:
            if busy:
                tasks.start_soon(write)
            await watch.until(lambda: watch.settled >= 20 if busy else watch.count(obs.Idle) >= 1)
            await restore(shop)
            await watch.until(lambda: watch.count(obs.Missed) >= 1)
            done.set()
        await watch.until(lambda: watch.settled == written + 3)
    got = numbers(await received(broker, written + 3))
    assert Counter(got) == Counter([*range(written), *RESTORED_NUMBERS])
    assert [n for n in got if n >= RESTORED_NUMBERS[0]] == RESTORED_NUMBERS
    assert not broker.waiting(EVERYTHING.name)


class _Counting(PostgreSQLOutboxStore):
    """Counts the looks of its sweepers."""

    looks = 0

    def sweeper(self) -> AbstractAsyncContextManager[OutboxSweeper]:
        return self._counted()

    @asynccontextmanager
    async def _counted(self) -> AsyncGenerator[OutboxSweeper, None]:
        async with super().sweeper() as sweeper:
            yield _Counted(self, sweeper)


class _Counted:
    def __init__(self, store: _Counting, sweeper: OutboxSweeper) -> None:
        self._store = store
        self._sweeper = sweeper

    async def mark(self) -> None:
        await self._sweeper.mark()

    async def left(self, claims: Claims, *, above: Position, limit: int) -> Sequence[tuple[Position, str | None]]:
        self._store.looks += 1
        return await self._sweeper.left(claims, above=above, limit=limit)


async def test_pitfall_39_a_sweep_repeats_nothing_that_is_in_flight_or_held(shop: Shop) -> None:
    """Rows on their way for many intervals, rows that wait for a queue: swept over and over, and left alone."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(SHOP)
    store = _Counting(shop.url, tables=shop.tables)
    async with running(Relay(store, broker, settings=SWEEPING, observer=watch)):
        await shop.say(1, 2, key="held", type_="nobody.listens.v1")
        await watch.until(lambda: watch.count(obs.Held) >= 1)
        broker.hold_confirms()
        await shop.say(3, 4, 5, key=None)
        await watch.until(lambda: sum(e.rows for e in watch.events if isinstance(e, obs.Sent)) >= 3)
        store.looks = 0
        while store.looks < 4:
            await shop.one("SELECT pg_sleep(0.1)")
        assert watch.count(obs.Missed) == 0
        broker.release_confirms()
        await watch.until(lambda: watch.settled >= 3)
    assert Counter(numbers(await received(broker, 3))) == Counter([3, 4, 5])
    assert not broker.waiting(EVERYTHING.name)
    assert await shop.one("SELECT count(*) FROM outbox") == 2


async def test_pitfall_39_a_relay_goes_on_after_its_leases_were_truncated(shop: Shop) -> None:
    """An operator empties the lease table under a relay: it makes and takes them again, unasked."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    async with running(shop.relay(broker, watch)):
        await shop.say(1)
        await watch.until(lambda: watch.settled == 1)
        await shop.one("TRUNCATE outbox_leases")
        await shop.say(2)
        await watch.until(lambda: watch.settled == 2)
    assert numbers(await received(broker, 2)) == [1, 2]


async def test_pitfall_41_positions_go_on_behind_what_waits(shop: Shop) -> None:
    """After a switch-over by logical replication the sequence is behind: a relay that starts advances it."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    await shop.say(1, 2, 3)
    await shop.one("SELECT setval('outbox_position_seq', 1, false)")
    broker.hold_confirms()
    async with running(shop.relay(broker, watch)):
        await watch.until(lambda: watch.count(obs.Sent) >= 1)
        await shop.say(4)
        assert await shop.one("""SELECT max(position) FROM outbox""") == 4
        broker.release_confirms()
        await watch.until(lambda: watch.settled == 4)
    assert numbers(await received(broker, 4)) == [1, 2, 3, 4]
