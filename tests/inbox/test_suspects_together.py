"""What comes back after a crash, and what waits behind a parked message, is brought to its end in groups."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core import Event
from sagapost.core.broker import Delivery
from sagapost.inbox import Context
from sagapost.inbox import observations as obs
from sagapost.inbox.keys import dedup_key
from tests.inbox.harness import FAST, OrderPlaced, Recorder, Service, an_event, running, send

pytestmark = pytest.mark.timeout(90)


async def was_in_hand(broker: MemoryBroker, service: Service, *events: Event) -> None:
    """Put messages in the queue as after a crash: handed out once and never acknowledged."""
    await send(broker, service, *events)
    async with broker.subscribe(service.inbox.queue, prefetch=len(events)) as deliveries:
        in_hand: list[Delivery] = []
        async for delivery in deliveries:
            in_hand.append(delivery)
            if len(in_hand) == len(events):
                break
        for delivery in reversed(in_hand):
            await deliveries.reject(delivery, requeue=True)


def grouped(seen: Recorder) -> int:
    """Return how many messages were handled in groups."""
    return sum(sum(each.types.values()) for each in seen.of(obs.GroupHandled))


def done(seen: Recorder) -> int:
    """Return how many messages were handled."""
    return grouped(seen) + len(seen.of(obs.Handled))


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_prefetch_that_came_back_is_handled_in_groups(
    engine: AsyncEngine, broker: MemoryBroker, ordered: bool
) -> None:
    """Each is on record while its group runs, and struck from it with the outcome."""
    service = Service(ordered=ordered)

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await was_in_hand(broker, service, *(an_event(OrderPlaced(f"{n:02}"), key="k") for n in range(40)))
    async with running(service, engine, broker, batch=10, concurrency=2) as consumer:
        await consumer.settled(40)
        assert grouped(consumer.seen) > 20
        begun = consumer.seen.of(obs.AttemptBegun)
        assert len(begun) == 40
        assert {each.unended for each in begun} == {0}
    assert sorted(await service.written(engine)) == [f"{n:02}" for n in range(40)]
    if ordered:
        assert await service.written(engine) == [f"{n:02}" for n in range(40)]
    assert await service.count(engine, service.tables.attempts) == 0


async def test_a_group_of_suspects_that_fails_leaves_nothing_on_record(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Nobody died of it: each is tried on its own with a clean record."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if event.order_id == "3":
            raise ZeroDivisionError
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await was_in_hand(broker, service, *(an_event(OrderPlaced(str(n))) for n in range(8)))
    async with running(service, engine, broker, batch=8, concurrency=1) as consumer:
        await consumer.settled(8)
        assert consumer.seen.of(obs.GroupUndone)
        assert {each.unended for each in consumer.seen.of(obs.AttemptBegun)} == {0}
    assert sorted(await service.written(engine)) == ["0", "1", "2", "4", "5", "6", "7"]
    assert [row.reason for row in await service.parked(engine)] == ["failed"]
    assert await service.count(engine, service.tables.attempts) == 0


async def test_duplicates_that_came_back_leave_nothing_on_record(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The process died between commit and acknowledgement."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    events = [an_event(OrderPlaced(str(n))) for n in range(5)]
    await send(broker, service, *events)
    async with running(service, engine, broker, batch=5, concurrency=1) as consumer:
        await consumer.settled(5)
    await was_in_hand(broker, service, *events)
    async with running(service, engine, broker, batch=5, concurrency=1) as consumer:
        await consumer.settled(5)
    assert sorted(await service.written(engine)) == ["0", "1", "2", "3", "4"]
    assert await service.count(engine, service.tables.attempts) == 0


async def test_one_whose_attempt_never_ended_makes_its_group_go_one_by_one(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """The process died of a group: which of them it was shows when each is handled alone."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    events = [an_event(OrderPlaced(str(n))) for n in range(6)]
    await send(broker, service, an_event(OrderPlaced("first")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    async with engine.begin() as connection:
        number = (await connection.execute(service.tables.consumers.select())).one().id
        died = service.tables.attempts.insert().values(consumer=number, key=dedup_key(events[4]), started=1)
        await connection.execute(died)
    await was_in_hand(broker, service, *events)
    async with running(service, engine, broker, batch=6, concurrency=1) as consumer:
        await consumer.settled(6)
        assert not consumer.seen.of(obs.GroupStarted)
        assert sorted(each.unended for each in consumer.seen.of(obs.AttemptBegun)) == [0, 0, 0, 0, 0, 1]
    assert sorted(await service.written(engine)) == ["0", "1", "2", "3", "4", "5", "first"]
    assert await service.count(engine, service.tables.attempts) == 0


async def test_followers_of_a_parked_message_go_in_groups_and_in_order(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """A key in demand would otherwise be parked at faster than its parked messages are handled."""
    service = Service(ordered=True)
    broken = True

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if broken:
            raise ConnectionError
        await ctx.session.execute(service.write(event.order_id, note=str(ctx.attempt)))

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(f"{n:02}"), key="k") for n in range(41)))
    async with running(service, engine, broker, retry=FAST, batch=10, concurrency=2) as consumer:
        await consumer.settled(41)
        broken = False
        await consumer.seen.until_true(lambda: done(consumer.seen) >= 41)
        assert grouped(consumer.seen) >= 30
    rows = await service.rows(engine, service.effects)
    assert [row.order_id for row in rows] == [f"{n:02}" for n in range(41)]
    assert {row.note for row in rows[1:]} == {"1"}
    assert await service.parked(engine) == []


async def test_a_failure_among_the_followers_holds_those_behind_it(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The group is undone; those before it are done, those behind it wait again, and go in order when it does."""
    service = Service(ordered=True)
    broken = {"00", "15"}

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if event.order_id in broken:
            raise ConnectionError
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(f"{n:02}"), key="k") for n in range(30)))
    async with running(service, engine, broker, retry=FAST, batch=8, concurrency=2) as consumer:
        await consumer.settled(30)
        broken.discard("00")
        await consumer.seen.until_true(lambda: done(consumer.seen) >= 15)
        broken.clear()
        await consumer.seen.until_true(lambda: done(consumer.seen) >= 30)
    assert await service.written(engine) == [f"{n:02}" for n in range(30)]
    assert await service.parked(engine) == []
