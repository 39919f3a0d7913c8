"""Group commit: one transaction for many messages, and for each its own end when something goes wrong."""

from __future__ import annotations

from datetime import timedelta

import anyio
import anyio.lowlevel
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.clock import SystemClock
from sagapost.core.databases import kit_of
from sagapost.core.identity import dedup_key
from sagapost.inbox import BusinessFailure, Context, Reject, SyncContext
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.kept.attempts import BegunAttempts
from sagapost.inbox.kept.claims import ClaimedGroup, Claims
from sagapost.inbox.kept.dedup import Dedup
from sagapost.inbox.kept.parked_order import ParkedOrder
from sagapost.inbox.kept.parking import ParkingDecision, ParkingLot
from sagapost.inbox.kept.registry import register_consumer
from tests.inbox.harness import (
    BOUND,
    FAST,
    OrderPlaced,
    Recorder,
    Service,
    StockReserved,
    StockShort,
    an_event,
    running,
    send,
)


async def test_a_batch_is_one_transaction(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Forty messages that wait are handled by few transactions, each with its own cause on what it published."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        await ctx.publish(StockReserved(event.order_id))

    await service.install(engine)
    events = [an_event(OrderPlaced(f"{n:02}")) for n in range(40)]
    await send(broker, service, *events)
    async with running(service, engine, broker, batch=40, concurrency=1) as consumer:
        await consumer.settled(40)
        assert consumer.statistics.handled == 40
        groups = consumer.seen.of(obs.GroupHandled)
    assert sum(group.types["orders.order-placed.v1"] for group in groups) + len(consumer.seen.of(obs.Handled)) == 40
    assert len(groups) <= 3
    assert await service.written(engine) == [f"{n:02}" for n in range(40)]
    causes = [row.causationid for row in await service.rows(engine, service.outbox.tables.outbox)]
    assert causes == [event.id for event in events]


async def test_duplicates_in_and_across_batches(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Copies within one batch, and copies of what an earlier batch committed, have no second effect."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    events = [an_event(OrderPlaced(f"{n:02}")) for n in range(10)]
    await send(broker, service, *events, *events)
    async with running(service, engine, broker, batch=20, concurrency=1) as consumer:
        await consumer.settled(20)
        await send(broker, service, *events)
        await consumer.settled(30)
        assert (consumer.statistics.handled, consumer.statistics.duplicates) == (10, 20)
    assert sorted(await service.written(engine)) == [f"{n:02}" for n in range(10)]


@pytest.mark.parametrize("ordered", [False, True])
async def test_one_bad_message_costs_the_batch_and_nothing_else(
    engine: AsyncEngine, broker: MemoryBroker, ordered: bool
) -> None:
    """A failure, a rejection and a business failure in a batch: it is undone and run one by one, each to its end."""
    service = Service(ordered=ordered)

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        if event.order_id == "03":
            raise ValueError("boom")
        if event.order_id == "05":
            raise Reject("no")
        if event.order_id == "07":
            raise BusinessFailure(StockShort(event.order_id))

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(f"{n:02}"), key=f"k{n}") for n in range(10)))
    async with running(service, engine, broker, batch=10, concurrency=1) as consumer:
        await consumer.settled(10)
        assert consumer.seen.of(obs.GroupUndone)
    assert await service.written(engine) == ["00", "01", "02", "04", "06", "08", "09"]
    assert sorted(row.reason for row in await service.parked(engine)) == ["failed", "rejected"]
    assert await service.published(engine) == ["warehouse.stock-short.v1"]


async def test_an_undecodable_message_does_not_stop_the_batch(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """It is parked with the reason; the rest is handled."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    events = [an_event(OrderPlaced(f"{n:02}")) for n in range(5)]
    await send(broker, service, *events[:2], an_event({"order": 1}, type="orders.order-placed.v1"), *events[2:])
    async with running(service, engine, broker, batch=10, concurrency=1) as consumer:
        await consumer.settled(6)
    assert sorted(await service.written(engine)) == [f"{n:02}" for n in range(5)]
    (parked,) = await service.parked(engine)
    assert parked.reason == "undecodable"
    assert "order_id" in parked.error


async def test_order_holds_within_and_across_batches(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Messages of one key share batches in their order, also while one of them is parked and later ones follow."""
    service = Service(ordered=True)
    broken = True

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if broken and event.order_id == "a-03":
            raise ConnectionError
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(f"{key}-{n:02}"), key=key) for n in range(20) for key in "ab"))
    async with running(service, engine, broker, batch=8, concurrency=3, retry=FAST) as consumer:
        await consumer.settled(40)
        broken = False
        await consumer.seen.until_true(lambda: consumer.statistics.handled == 40)
    written = await service.written(engine)
    for key in "ab":
        assert [order for order in written if order.startswith(key)] == [f"{key}-{n:02}" for n in range(20)]


async def test_two_groups_with_keys_in_common_do_not_deadlock(
    postgresql_engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Two consumers claim the same keys in opposite order of arrival: one waits, nobody deadlocks, one effect each."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        await anyio.lowlevel.checkpoint()

    await service.install(postgresql_engine)
    events = [an_event(OrderPlaced(f"{n:03}")) for n in range(200)]
    other = MemoryBroker("other")
    await send(broker, service, *events)
    await send(other, service, *reversed(events))
    first, second = Recorder(), Recorder()
    async with (
        running(service, postgresql_engine, broker, batch=20, concurrency=2, seen=first) as one,
        running(service, postgresql_engine, other, batch=20, concurrency=2, seen=second) as two,
    ):
        await one.settled(200)
        await two.settled(200)
        assert one.statistics.handled + two.statistics.handled == 200
    assert not [undone for seen in (first, second) for undone in seen.of(obs.GroupUndone)]
    assert sorted(await service.written(postgresql_engine)) == [f"{n:03}" for n in range(200)]


async def test_a_group_goes_behind_a_message_that_another_replica_parks_meanwhile(
    postgresql_engine: AsyncEngine,
) -> None:
    """Two replicas have the same messages, one of them cut off from the broker: the one that waits must not overtake.

    The first parks message 1 while the group of the second, messages 1 and 2 of one key, waits for its dedup key. The
    group then finds 1 known and 2 fresh, and may still not handle 2.
    """
    service, engine = Service(ordered=True), postgresql_engine
    await service.install(engine)
    messages = [
        Message(event, event.type, dedup_key(event), (), None, event.partitionkey)
        for event in (an_event(OrderPlaced(order), key="k") for order in ("1", "2"))
    ]
    async with engine.begin() as connection:
        consumer = await connection.run_sync(register_consumer, service.tables, service.inbox.name)
    moments = kit_of("postgresql").moments(SystemClock())
    dedup = Dedup(service.tables, moments.kit, consumer=consumer)
    order = ParkedOrder(service.tables, moments, consumer=consumer, on_dead="block")
    lot = ParkingLot(service.tables, dedup, moments, order, consumer=consumer, ordered=True)
    claims = Claims(dedup, lot, BegunAttempts(service.tables, moments, consumer=consumer))
    waiting = ParkingDecision("waiting", "failed", "it failed", attempts=1, retry_in=timedelta(hours=1))
    claimed: list[object] = []

    async def claim_as_a_group() -> None:
        async with engine.connect() as second:
            claimed.append(await second.run_sync(claims.claim_all, messages))

    with anyio.fail_after(BOUND):
        async with engine.connect() as first, anyio.create_task_group() as tasks:
            assert await first.run_sync(lot.park, messages[0], waiting) is not None
            tasks.start_soon(claim_as_a_group)
            while not await _waits_for_a_lock(engine):  # noqa: ASYNC110 - the server has no signal for it
                await anyio.sleep(0.005)
            await first.commit()
    assert claimed == [ClaimedGroup(own=set(), behind=messages[1:])]


async def _waits_for_a_lock(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        return bool((await connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))).scalar_one())


async def test_def_handlers_in_a_batch(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """They run in threads one after the other on the batch's session."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    def reserve(event: OrderPlaced, ctx: SyncContext) -> None:
        ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(f"{n:02}")) for n in range(10)))
    async with running(service, engine, broker, batch=10, concurrency=1) as consumer:
        await consumer.settled(10)
    assert await service.written(engine) == [f"{n:02}" for n in range(10)]


async def test_a_handler_that_commits_in_a_batch_is_found_out(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The guard holds in a batch as well: the culprit is parked, the others are handled."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        if event.order_id == "1":
            await ctx.session.commit()

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(str(n))) for n in range(3)))
    async with running(service, engine, broker, batch=3, concurrency=1) as consumer:
        await consumer.settled(3)
    assert await service.written(engine) == ["0", "2"]
    (parked,) = await service.parked(engine)
    assert parked.reason == "broke-contract"
