"""Versions of a service side by side: what one of them does not know waits for one that does, and blocks no key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core import event
from sagapost.inbox import Context
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.declared.outcomes import NotKnown
from tests.inbox.harness import OrderPlaced, Service, an_event, running, send


@event("orders.order-viewed.v1")
class OrderViewed(msgspec.Struct):
    """What the newer version takes."""

    order_id: str


def a_version(*, large: bool, **inbox: Any) -> Service:
    """Return the service as one version declares it."""
    service = Service(ordered=True, **inbox)

    @service.inbox.on(OrderPlaced)
    async def placed(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(f"placed {event.order_id}"))

    if large:

        @service.inbox.on(OrderViewed)
        async def viewed(event: OrderViewed, ctx: Context) -> None:
            await ctx.session.execute(service.write(f"viewed {event.order_id}"))

    return service


async def test_pitfall_35_what_an_old_replica_does_not_know_waits_in_its_place(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """The new version has declared its queue, the old one still runs: the new event waits, later ones of its key wait
    behind it, others are handled. When the new version starts all are handled at once, in the order of the key.
    """
    old, new = a_version(large=False), a_version(large=True)
    await old.install(engine)
    await broker.declare(new.inbox.queue)
    async with running(old, engine, broker) as consumer:
        await send(broker, new, an_event(OrderViewed("1"), key="1"))
        await send(broker, new, an_event(OrderPlaced("1"), key="1"), an_event(OrderPlaced("2"), key="2"))
        await consumer.settled(3)
        # It is looked at again, and reported once.
        await consumer.seen.until(obs.RoundClaimed, 2)
    assert [(row.state, row.reason, row.attempts) for row in await old.parked(engine)] == [
        ("waiting", "unknown-type", 0),
        ("behind", "behind", 0),
    ]
    assert len(consumer.seen.of(obs.Parked)) == 2
    assert await old.written(engine) == ["placed 2"]
    async with engine.begin() as connection:
        await connection.execute(
            update(new.tables.parked)
            .where(new.tables.parked.c.state == "waiting")
            .values(next_attempt_at=datetime.now(UTC) + timedelta(hours=1))
        )
    async with running(new, engine, broker) as consumer:
        await consumer.seen.until(obs.Handled, 2)
    assert await new.written(engine) == ["placed 2", "viewed 1", "placed 1"]
    assert await new.parked(engine) == []


async def test_pitfall_35_what_a_new_version_does_not_take_any_more_blocks_no_key(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """The handler was removed and the binding is still there: the event waits for an older version, for the roll-out
    may be taken back, and the later events of its key do not wait for it.
    """
    old, new = a_version(large=True), a_version(large=False)
    await old.install(engine)
    async with running(old, engine, broker) as consumer:
        await consumer.seen.until(obs.ConsumerReady)
    async with running(new, engine, broker) as consumer:
        await send(broker, new, an_event(OrderViewed("1"), key="1"), an_event(OrderPlaced("1"), key="1"))
        await consumer.settled(2)
    assert await new.written(engine) == ["placed 1"]
    [parked] = await new.parked(engine)
    assert (parked.state, parked.reason) == ("waiting", "unknown-type")
    assert "remove the queue's binding" in parked.error
    async with running(old, engine, broker) as consumer:
        await consumer.seen.until(obs.Handled)
    assert await new.written(engine) == ["placed 1", "viewed 1"]


@pytest.mark.parametrize("limit", [timedelta(0), timedelta(milliseconds=1)], ids=["at once", "after a while"])
async def test_pitfall_35_waiting_for_another_version_ends(
    engine: AsyncEngine, broker: MemoryBroker, limit: timedelta
) -> None:
    """After the time that was set it is a dead letter, and what was parked behind it is handled."""
    service = a_version(large=False)
    await service.install(engine)
    await broker.declare(a_version(large=True).inbox.queue)
    async with running(service, engine, broker, unknown_for=limit) as consumer:
        await send(broker, service, an_event(OrderViewed("1"), key="1"), an_event(OrderPlaced("1"), key="1"))
        await consumer.seen.until(obs.Parked, where=lambda each: each.state == "dead")
        await consumer.seen.until(obs.Handled)
    [parked] = await service.parked(engine)
    assert (parked.state, parked.reason, parked.attempts) == ("dead", "unknown-type", 0)
    assert await service.written(engine) == ["placed 1"]


async def test_a_handler_that_does_not_know_a_name_waits_without_counting(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """It is tried again, uses up no attempt, and is handled by a version that knows the name, as soon as it starts."""
    service, knows = Service(), False

    @service.inbox.on(OrderPlaced)
    async def placed(event: OrderPlaced, ctx: Context) -> None:
        if not knows:
            raise NotKnown("Nothing here is called 'collect'.")
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    async with running(service, engine, broker) as consumer:
        await send(broker, service, an_event(OrderPlaced("1")))
        await consumer.seen.until(obs.RoundClaimed, 2)
    [parked] = await service.parked(engine)
    assert (parked.state, parked.reason, parked.attempts) == ("waiting", "unknown-name", 0)
    assert parked.error == "Nothing here is called 'collect'."
    knows = True
    async with running(service, engine, broker) as consumer:
        await consumer.seen.until(obs.Handled)
    assert await service.written(engine) == ["1"]
