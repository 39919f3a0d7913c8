"""What comes back after a crash, and what waits behind a parked message, is brought to its end in groups."""

from __future__ import annotations

from datetime import timedelta

import pytest
from msgspec import json
from sqlalchemy import Connection, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core import Backoff, Event, SystemClock
from sagapost.core.broker import Delivery
from sagapost.core.databases import kit_of
from sagapost.core.identity import dedup_key
from sagapost.inbox import Context, RetryPolicy
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.kept.attempts import BegunAttempts
from sagapost.inbox.kept.claims import Claims
from sagapost.inbox.kept.dedup import Dedup
from sagapost.inbox.kept.parked_order import ParkedOrder
from sagapost.inbox.kept.parking import ParkingLot
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


async def test_what_is_missing_in_between_keeps_a_group_from_going(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """A message whose predecessor is still parked, in flight elsewhere, would overtake it."""
    service = Service(ordered=True)

    @service.inbox.on(OrderPlaced)
    async def reserve(_event: OrderPlaced, _ctx: Context) -> None:
        raise ConnectionError

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(str(n)), key="k") for n in range(5)))
    async with running(service, engine, broker, retry=FAST) as consumer:
        await consumer.settled(5)
    moments = kit_of(engine).moments(SystemClock())

    def look(connection: Connection) -> tuple[list[str], int | None, int | None]:
        number = connection.execute(service.tables.consumers.select()).one().id
        dedup = Dedup(service.tables, moments.kit, consumer=number)
        attempts = BegunAttempts(service.tables, moments, consumer=number)
        order = ParkedOrder(service.tables, moments, consumer=number, on_dead="block")
        lot = ParkingLot(service.tables, dedup, moments, order, consumer=number, ordered=True)
        claims = Claims(dedup, lot, attempts)
        parked = service.tables.parked
        # As if the first had only been called off.
        connection.execute(update(parked).values(attempts=0, crashes=0, claimed=0))
        connection.execute(
            update(parked).where(parked.c.state == "waiting").values(next_attempt_at=moments.after(-timedelta(days=1)))
        )
        due = lot.claim_due(connection, limit=1, lease=timedelta(seconds=9), suspects=False, train=3)
        messages = [
            Message(item.content, item.topic, item.key, (), None, item.content.partitionkey, item.place)
            for item in due
            if isinstance(item.content, Event)
        ]
        orders = [json.decode(message.event.data, type=OrderPlaced).order_id for message in messages]
        with connection.begin_nested() as savepoint:
            gap = claims.claim_all(connection, [messages[0], messages[2]])
            savepoint.rollback()
        whole = claims.claim_all(connection, messages)
        return orders, gap if gap is None else len(gap.own), whole if whole is None else len(whole.own)

    async with engine.begin() as connection:
        assert await connection.run_sync(look) == (["0", "1", "2"], None, 3)


async def test_what_a_process_died_of_and_other_retries_take_turns(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Many that were in flight are due before many that were not: each kind goes on, the former one at a time."""
    service = Service()
    broken = True
    in_work: set[str] = set()
    with_a_suspect: list[set[str]] = []

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if broken:
            raise ConnectionError
        in_work.add(event.order_id)
        if any(order.startswith("suspect") for order in in_work):
            with_a_suspect.append(set(in_work))
        await ctx.session.execute(service.write(event.order_id))
        in_work.discard(event.order_id)

    await service.install(engine)
    names = [f"{kind} {n:02}" for kind in ("suspect", "innocent") for n in range(20)]
    await send(broker, service, *(an_event(OrderPlaced(name)) for name in names))
    later = RetryPolicy(
        quick=0, attempts=9, backoff=Backoff(base=timedelta(hours=1), cap=timedelta(hours=1), jitter=0)
    )
    async with running(service, engine, broker, retry=later, concurrency=1) as consumer:
        await consumer.settled(40)
    moments, parked = kit_of(engine).moments(SystemClock()), service.tables.parked
    async with engine.begin() as connection:
        await connection.execute(update(parked).values(next_attempt_at=moments.after(-timedelta(minutes=1))))
        suspects = select(parked.c.id).order_by(parked.c.id).limit(20)
        earlier = moments.after(-timedelta(minutes=2))
        await connection.execute(
            update(parked).where(parked.c.id.in_(suspects)).values(claimed=1, next_attempt_at=earlier)
        )
    broken = False
    async with running(service, engine, broker, retry=later, concurrency=4, max_crashes=3) as consumer:
        await consumer.seen.until(obs.Handled, 40)
    kinds = [name.split()[0] for name in await service.written(engine)]
    assert sorted(kinds) == ["innocent"] * 20 + ["suspect"] * 20
    # Neither kind waited for the other to be all done.
    assert kinds.index("innocent") < 20 > kinds.index("suspect")
    assert len(set(kinds[:10])) == 2
    assert with_a_suspect
    assert [together for together in with_a_suspect if len(together) > 1] == []
