"""The window: what is remembered, for how long, and what happens to an event from before it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.audit import Decision
from sagapost.core.clock import SystemClock
from sagapost.core.databases import kit_of
from sagapost.core.ids import new_uuid
from sagapost.inbox import Consumer, Context
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.kept.registry import register_consumer
from sagapost.inbox.operated.redrive import ParkedMessages
from sagapost.inbox.operated.selection import PARKED
from sagapost.inbox.running.retention import Retention
from tests.inbox.harness import FAST, OrderPlaced, Recorder, Service, an_event, quick_settings, running, send

WINDOW = timedelta(days=7)


def a_service() -> Service:
    """A service whose handler writes its orders down."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))

    return service


async def remember(service: Service, engine: AsyncEngine, number: int, *, age: timedelta) -> int:
    """Put keys of this age into the dedup table; return the consumer's number."""
    async with engine.begin() as connection:
        consumer = await connection.run_sync(lambda sync: register_consumer(sync, service.tables, "warehouse"))
        seen_at = datetime.now(UTC) - age
        rows = [
            {"consumer": consumer, "key": new_uuid().bytes, "seen_at": seen_at + timedelta(microseconds=n)}
            for n in range(number)
        ]
        if rows:
            await connection.execute(insert(service.tables.seen), rows)
    return consumer


async def test_only_keys_from_before_the_window_are_pruned_in_chunks(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """250 old keys go in chunks of 100, each its own transaction; keys inside the window, and its tenth more, stay."""
    service = a_service()
    await service.install(engine)
    await remember(service, engine, 250, age=WINDOW * 1.2)
    await remember(service, engine, 10, age=WINDOW * 1.05)
    await remember(service, engine, 10, age=WINDOW * 0.5)
    await broker.declare(service.inbox.queue)
    async with running(service, engine, broker, retention=WINDOW, prune_chunk=100) as consumer:
        pruned = await consumer.seen.until(obs.PrunedKeys, 3)
    assert [event.rows for event in pruned] == [100, 100, 50]
    assert await service.count(engine, service.tables.seen) == 20


async def test_two_pruners_at_once_beside_a_busy_consumer(
    postgresql_engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Nobody deadlocks, nobody waits for the other, every old key goes exactly once, every new one stays."""
    service = a_service()
    engine = postgresql_engine
    await service.install(engine)
    number = await remember(service, engine, 5_000, age=WINDOW * 2)
    moments = kit_of("postgresql").moments(SystemClock())
    counts = [0, 0]

    async def prune(index: int) -> None:
        retention = Retention(service.tables, moments, consumer=number, window=WINDOW)
        while True:
            async with engine.begin() as connection:
                pruned = await connection.run_sync(lambda sync: retention.prune(sync, limit=100))
            counts[index] += pruned
            if pruned < 100:
                return

    await send(broker, service, *(an_event(OrderPlaced(f"{n:03}")) for n in range(300)))
    async with running(service, engine, broker, prune_interval=timedelta(hours=1)) as consumer:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(prune, 0)
            tasks.start_soon(prune, 1)
        await consumer.settled(300)
        by_the_consumer = sum(event.rows for event in consumer.seen.of(obs.PrunedKeys))
    assert sum(counts) + by_the_consumer == 5_000
    assert all(counts)
    assert await service.count(engine, service.tables.seen) == 300


async def test_a_locked_row_does_not_hold_pruning_up(postgresql_engine: AsyncEngine) -> None:
    """Rows another transaction holds are passed over, not waited for, and pruned by a later pass."""
    service = a_service()
    engine = postgresql_engine
    await service.install(engine)
    number = await remember(service, engine, 10, age=WINDOW * 2)
    retention = Retention(service.tables, kit_of("postgresql").moments(SystemClock()), consumer=number, window=WINDOW)
    seen = service.tables.seen
    async with engine.connect() as holder:
        await holder.execute(select(seen.c.key).order_by(seen.c.seen_at).limit(3).with_for_update())
        with anyio.fail_after(5):
            async with engine.begin() as connection:
                assert await connection.run_sync(lambda sync: retention.prune(sync, limit=100)) == 7
    async with engine.begin() as connection:
        assert await connection.run_sync(lambda sync: retention.prune(sync, limit=100)) == 3


async def test_an_event_from_before_the_window_is_parked_not_handled(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Whether it was handled is forgotten, so a person decides; redriven it is handled, once."""
    service = a_service()
    await service.install(engine)
    old = an_event(OrderPlaced("old"), time=datetime.now(UTC) - WINDOW * 1.01)
    young = an_event(OrderPlaced("young"), time=datetime.now(UTC) - WINDOW * 0.99)
    await send(broker, service, old, young, old)
    async with running(service, engine, broker, retention=WINDOW, retry=FAST) as consumer:
        await consumer.settled(3)
        assert await service.written(engine) == ["young"]
        (parked,) = await service.parked(engine)
        assert (parked.state, parked.reason) == ("dead", "too-old")
        assert "before the dedup window" in parked.error
        operator = ParkedMessages(engine, service.tables, "warehouse")
        await operator.redrive(PARKED.equal(reason="too-old"), Decision("ada", "it never arrived"))
        await consumer.seen.until(obs.Handled, 2)
        await send(broker, service, old)
        await consumer.settled(4)
    assert await service.written(engine) == ["young", "old"]


async def test_pitfall_46_a_publisher_whose_clock_is_behind_blocks_no_key(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """In an ordered inbox too: its message waits for a decision, and later ones of the key, of anybody, do not."""
    service = Service(ordered=True)

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    old = an_event(OrderPlaced("old"), key="k", time=datetime.now(UTC) - WINDOW * 2, source="urn:foreign")
    await send(broker, service, old, an_event(OrderPlaced("new"), key="k"))
    async with running(service, engine, broker, retention=WINDOW, retry=FAST) as consumer:
        await consumer.settled(2)
        assert await service.written(engine) == ["new"]
        operator = ParkedMessages(engine, service.tables, "warehouse")
        await operator.redrive(PARKED.equal(reason="too-old"), Decision("ada", "its clock is wrong"))
        await consumer.seen.until(obs.Handled, 2)
    assert await service.written(engine) == ["new", "old"]


async def test_an_old_duplicate_whose_key_is_still_known_is_just_a_duplicate(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """The window only matters for what is no longer known."""
    service = a_service()
    await service.install(engine)
    event = an_event(OrderPlaced("o-1"), time=datetime.now(UTC) - timedelta(days=6))
    await send(broker, service, event)
    async with running(service, engine, broker, retention=WINDOW) as consumer:
        await consumer.settled(1)
    await send(broker, service, event)
    async with running(service, engine, broker, retention=timedelta(days=1)) as consumer:
        await consumer.settled(1)
        assert consumer.statistics.duplicates == 1
    assert await service.written(engine) == ["o-1"]
    assert await service.parked(engine) == []


async def test_the_key_of_a_parked_message_outlives_its_pruning(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """A redelivery of a message that is still parked is a duplicate even when the dedup table forgot it."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        raise ValueError

    await service.install(engine)
    event = an_event(OrderPlaced("o-1"))
    await send(broker, service, event)
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
        async with engine.begin() as connection:
            await connection.execute(service.tables.seen.delete())
        await send(broker, service, event)
        await consumer.settled(2)
    assert len(await service.parked(engine)) == 1


async def test_ages_are_judged_by_the_clock_of_the_database(
    postgresql_engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """A host whose clock is a month ahead parks nothing that is young."""
    service = a_service()
    engine = postgresql_engine
    await service.install(engine)

    class Ahead(SystemClock):
        def now(self) -> datetime:
            return super().now() + timedelta(days=30)

    await send(broker, service, an_event(OrderPlaced("o-1")))
    seen = Recorder()
    consumer = Consumer(
        service.inbox, engine=engine, broker=broker, settings=quick_settings(), observer=seen, clock=Ahead()
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await seen.until(obs.Acknowledged)
        consumer.stop()
    assert await service.written(engine) == ["o-1"]


async def test_pruning_reads_along_its_index(postgresql_engine: AsyncEngine) -> None:
    """With many young keys the search for old ones touches the age index, never the whole table."""
    service = a_service()
    engine = postgresql_engine
    await service.install(engine)
    await remember(service, engine, 2_000, age=timedelta(0))
    seen = service.tables.seen
    async with engine.connect() as connection:
        await connection.exec_driver_sql(f"ANALYZE {seen.name}")
        plan = "\n".join(
            row[0]
            for row in await connection.exec_driver_sql(
                f"EXPLAIN SELECT key FROM {seen.name} WHERE consumer = 1 "
                "AND seen_at < clock_timestamp() - interval '7 days' ORDER BY seen_at LIMIT 100 "
                "FOR UPDATE SKIP LOCKED"
            )
        )
    assert "inbox_seen_age" in plan
    assert "Seq Scan" not in plan


async def test_forgotten_attempt_records_go_with_the_window(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """A message that once crashed a process and never came back leaves nothing for ever."""
    service = a_service()
    await service.install(engine)
    number = await remember(service, engine, 0, age=timedelta(0))
    attempts = service.tables.attempts
    async with engine.begin() as connection:
        await connection.execute(
            insert(attempts),
            [{"consumer": number, "key": bytes([n]) * 16, "started": 1} for n in range(2)],
        )
        await connection.execute(
            update(attempts)
            .where(attempts.c.key == b"\x00" * 16)
            .values(last_started_at=datetime.now(UTC) - WINDOW * 2)
        )
    await broker.declare(service.inbox.queue)
    async with running(service, engine, broker, retention=WINDOW) as consumer:
        (pruned,) = await consumer.seen.until(obs.PrunedKeys)
    assert (pruned.rows, pruned.attempts) == (0, 1)
    assert await service.count(engine, attempts) == 1
