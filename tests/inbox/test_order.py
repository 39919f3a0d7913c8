"""Order by key: in the process, through parked messages, and through what an operator decides."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

import anyio
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.audit import Decision
from sagapost.inbox import Context, Reject
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.operated.redrive import ParkedMessages
from sagapost.inbox.operated.selection import PARKED
from tests.inbox.harness import FAST, OrderPlaced, Service, an_event, running, send


async def test_one_message_of_a_key_at_a_time_and_several_keys_at_once(
    postgresql_engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Per key the order of the queue and never two at once; across keys as many at once as there are places."""
    service = Service(ordered=True)
    running_now: dict[str, int] = defaultdict(int)
    most_of_a_key = most_at_once = 0

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        nonlocal most_of_a_key, most_at_once
        key = ctx.event.partitionkey or ""
        running_now[key] += 1
        most_of_a_key = max(most_of_a_key, running_now[key])
        most_at_once = max(most_at_once, sum(running_now.values()))
        await ctx.session.execute(service.write(event.order_id, note=key))
        await anyio.sleep(0.001)
        running_now[key] -= 1

    await service.install(postgresql_engine)
    events = [an_event(OrderPlaced(f"{n:03}"), key=f"k{n % 5}") for n in range(100)]
    await send(broker, service, *events)
    async with running(service, postgresql_engine, broker, concurrency=8) as consumer:
        await consumer.settled(100)
    by_key: dict[str, list[str]] = defaultdict(list)
    for row in await service.rows(postgresql_engine, service.effects):
        by_key[row.note].append(row.order_id)
    assert {key: len(orders) for key, orders in by_key.items()} == {f"k{n}": 20 for n in range(5)}
    assert all(orders == sorted(orders) for orders in by_key.values())
    assert most_of_a_key == 1
    assert most_at_once > 1


async def test_followers_of_a_parked_message_park_behind_it_and_go_in_order(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """While the first of a key fails, later ones of it wait in the table, other keys flow; then all go in order."""
    service = Service(ordered=True)
    broken = True

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if broken and event.order_id == "a-0":
            raise ConnectionError
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    events = [an_event(OrderPlaced(f"{key}-{n}"), key=key) for n in range(4) for key in "ab"]
    await send(broker, service, *events)
    async with running(service, engine, broker, retry=FAST) as consumer:
        await consumer.settled(8)
        assert await service.written(engine) == [f"b-{n}" for n in range(4)]
        behind = consumer.seen.of(obs.Parked, lambda parked: parked.state == "behind")
        assert len({parked.event_id for parked in behind}) == 3
        broken = False
        await consumer.seen.until(obs.Handled, 8)
    assert (await service.written(engine))[4:] == [f"a-{n}" for n in range(4)]
    assert await service.parked(engine) == []


@pytest.mark.parametrize("batch", [1, 4, 10])
async def test_a_message_that_arrives_while_followers_are_parked_waits_its_turn(
    engine: AsyncEngine, broker: MemoryBroker, batch: int
) -> None:
    """Late arrivals join the end of the parked ones, whether those are waiting, behind or being handled."""
    service = Service(ordered=True)
    broken = True

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if broken:
            raise ConnectionError
        await anyio.sleep(0.002)
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(f"{n:02}"), key="k") for n in range(5)))
    async with running(service, engine, broker, retry=FAST, batch=batch) as consumer:
        await consumer.settled(5)
        broken = False
        for n in range(5, 30):
            await send(broker, service, an_event(OrderPlaced(f"{n:02}"), key="k"))
            await anyio.sleep(0.004)
        await consumer.seen.until_true(
            lambda: (
                len(consumer.seen.of(obs.Handled))
                + sum(sum(group.types.values()) for group in consumer.seen.of(obs.GroupHandled))
                == 30
            )
        )
    assert await service.written(engine) == [f"{n:02}" for n in range(30)]
    assert await service.parked(engine) == []


async def _with_a_dead_first(
    engine: AsyncEngine, broker: MemoryBroker, on_dead: Literal["block", "skip"]
) -> tuple[Service, list[str]]:
    service = Service(ordered=True)
    broken = True

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if broken and event.order_id == "0":
            raise Reject("not yet")
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(str(n)), key="k") for n in range(4)))
    async with running(service, engine, broker, retry=FAST, on_dead=on_dead) as consumer:
        await consumer.settled(4)
        before = await service.written(engine)
        broken = False
        operator = ParkedMessages(engine, service.tables, "warehouse", on_dead=on_dead)
        await operator.redrive(PARKED.select(), Decision("ada", "corrected"))
        await consumer.seen.until(obs.Handled, 4)
    return service, before


async def test_a_dead_letter_blocks_its_key_until_an_operator_decides(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Policy `block`: nothing of the key overtakes it, and a redrive goes in the key's order."""
    service, before = await _with_a_dead_first(engine, broker, "block")
    assert before == []
    assert await service.written(engine) == ["0", "1", "2", "3"]


async def test_a_dead_letter_is_skipped_where_that_is_chosen(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Policy `skip`: the rest of the key goes on without it."""
    service, before = await _with_a_dead_first(engine, broker, "skip")
    assert before == ["1", "2", "3"]
    assert await service.written(engine) == ["1", "2", "3", "0"]


async def test_a_discarded_dead_letter_lets_its_key_go_on(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The operator gives the first one up: the rest follow in order, and the discarded one is in the audit."""
    service = Service(ordered=True)

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if event.order_id == "0":
            raise Reject("never")
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(str(n)), key="k") for n in range(4)))
    async with running(service, engine, broker, retry=FAST) as consumer:
        await consumer.settled(4)
        operator = ParkedMessages(engine, service.tables, "warehouse")
        assert await operator.discard(PARKED.equal(state="dead"), Decision("ada", "a test order")) == 1
        await consumer.seen.until(obs.Handled, 3)
    assert await service.written(engine) == ["1", "2", "3"]
    (entry,) = await service.decisions(engine)
    assert (entry.action, entry.actor, entry.reason) == ("discard", "ada", "a test order")
    assert entry.original is not None


async def test_followers_left_behind_by_a_crash_are_found(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """A process that died between removing the first and promoting the next leaves work for the next look."""
    service = Service(ordered=True)
    broken = True

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if broken:
            raise Reject("not yet")
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(str(n)), key="k") for n in range(3)))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(3)
    parked = service.tables.parked
    async with engine.begin() as connection:
        await connection.execute(parked.delete().where(parked.c.state == "dead"))
    broken = False
    async with running(service, engine, broker) as consumer:
        await consumer.seen.until(obs.Handled, 2)
    assert await service.written(engine) == ["1", "2"]


async def test_messages_without_a_key_wait_for_nobody(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """In an ordered inbox only keys are ordered."""
    service = Service(ordered=True)

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if event.order_id == "bad":
            raise Reject("no")
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("bad")), an_event(OrderPlaced("good")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(2)
    assert await service.written(engine) == ["good"]
