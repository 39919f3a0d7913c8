"""Pitfall 36: several handlers of one event. What shares a transaction, and what has a fate of its own."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.clock import SystemClock
from sagapost.core.databases import kit_of
from sagapost.inbox import BusinessFailure, Context, Exhausted, Reject, RetryPolicy
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.kept.redo import redo
from tests.inbox.harness import FAST, NEVER, OrderPlaced, Service, StockReserved, StockShort, an_event, running, send

TWICE = RetryPolicy(quick=0, attempts=2, backoff=FAST.backoff)


@pytest.mark.parametrize("answer", [BusinessFailure(StockShort("1")), Reject("no"), RuntimeError("no mail server")])
@pytest.mark.parametrize("ordered", [False, True])
async def test_pitfall_36_a_handler_with_its_own_transaction_has_its_own_fate(
    engine: AsyncEngine, broker: MemoryBroker, answer: Exception, ordered: bool
) -> None:
    """Whatever another answers, it is handled, once: also after a redelivery, and for the next event of the key."""
    service = Service(ordered=ordered)

    @service.inbox.on(OrderPlaced)
    async def notify(placed: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(placed.order_id, "notified"))
        raise answer

    @service.inbox.on(OrderPlaced, transaction="count")
    async def count(placed: OrderPlaced, ctx: Context) -> None:
        assert ctx.transaction == "count"
        await ctx.session.execute(service.write(placed.order_id, "counted"))

    await service.install(engine)
    first, second = an_event(OrderPlaced("1"), key="k"), an_event(OrderPlaced("2"), key="k")
    await send(broker, service, first, first, second)
    async with running(service, engine, broker, retry=NEVER) as consumer:
        await consumer.settled(3)
    effects = [(row.order_id, row.note) for row in await service.rows(engine, service.effects)]
    assert sorted(effects) == [("1", "counted"), ("2", "counted")]
    answered = isinstance(answer, BusinessFailure)
    assert len(await service.parked(engine)) == (0 if answered else 2)
    assert await service.count(engine, service.tables.seen) == 4


async def test_pitfall_36_what_failed_is_tried_again_without_the_others(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Parked, tried and handled again under its own key, and what it was redone for is done by its handlers alone."""
    service, log = Service(), list[str]()

    @service.inbox.on(OrderPlaced)
    async def reserve(_placed: OrderPlaced, _ctx: Context) -> None:
        log.append("reserved")

    @service.inbox.on(OrderPlaced, transaction="mail", retry=FAST)
    async def notify(_placed: OrderPlaced, ctx: Context) -> None:
        log.append("notified")
        if ctx.attempt < 3:
            raise ConnectionError("no mail server")

    await service.install(engine)
    event = an_event(OrderPlaced("1"))
    await send(broker, service, event)
    async with running(service, engine, broker) as consumer:
        await consumer.seen.until(obs.Handled, 2)
        assert sorted(log) == ["notified", "notified", "notified", "reserved"]
        assert consumer.statistics.acknowledged == 1
        async with engine.begin() as connection:
            refusal = await connection.run_sync(
                redo,
                service.tables,
                kit_of(engine).moments(SystemClock()),
                consumer="warehouse",
                transaction="mail",
                event=event,
                topic=None,
                why="once more",
            )
        assert refusal is None
        await consumer.seen.until(obs.Handled, 3)
    assert log.count("reserved") == 1
    assert log[-1] == "notified"


async def test_pitfall_36_a_handler_that_worked_does_not_pay_for_another(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """In one transaction: retries, error policies and the last resort are those of the handler that failed."""
    service, log = Service(), list[str]()

    async def no_courier(_placed: OrderPlaced, ctx: Context, _exhausted: Exhausted) -> None:
        await ctx.publish(StockReserved("1"))

    async def no_address(placed: OrderPlaced, ctx: Context, exhausted: Exhausted) -> None:
        await ctx.session.execute(service.write(placed.order_id, f"{exhausted.attempts}"))

    @service.inbox.on(OrderPlaced, on_exhausted=no_courier, errors={Exception: "reject"}, retry=NEVER)
    async def ship(_placed: OrderPlaced, _ctx: Context) -> None:
        log.append("shipped")

    @service.inbox.on(OrderPlaced, on_exhausted=no_address, retry=TWICE)
    async def notify(_placed: OrderPlaced, _ctx: Context) -> None:
        raise RuntimeError("no address")

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("1")))
    async with running(service, engine, broker) as consumer:
        await consumer.seen.until(obs.Handled)
    assert log == ["shipped", "shipped"]
    assert await service.published(engine) == []
    assert [row.note for row in await service.rows(engine, service.effects)] == ["2"]


async def test_pitfall_36_a_write_that_fails_is_the_handlers_that_wrote(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Also where the handler only added it, and another one that works comes after it."""
    service, asked = Service(), list[str]()

    async def last_resort(_placed: OrderPlaced, _ctx: Context, exhausted: Exhausted) -> None:
        asked.append(exhausted.reason)

    @service.inbox.on(OrderPlaced, on_exhausted=last_resort)
    async def write(_placed: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.effects.insert().values(order_id=None))

    @service.inbox.on(OrderPlaced, errors={Exception: FAST})
    async def works(_placed: OrderPlaced, _ctx: Context) -> None: ...

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("1")))
    async with running(service, engine, broker) as consumer:
        await consumer.seen.until(obs.Handled)
    assert asked == ["failed"]


async def test_pitfall_36_what_waits_for_a_transaction_that_was_removed_runs_no_other_handler(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """A version without it lets the message wait for one that has it, as for an unknown event."""
    service = Service()

    @service.inbox.on(OrderPlaced, transaction="mail", retry=FAST)
    async def notify(_placed: OrderPlaced, _ctx: Context) -> None:
        raise ConnectionError("no mail server")

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("1")))
    async with running(service, engine, broker) as consumer:
        await consumer.seen.until(obs.Parked)
    without = Service()

    @without.inbox.on(OrderPlaced)
    async def reserve(placed: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(without.write(placed.order_id))

    async with running(without, engine, broker) as consumer:
        await consumer.seen.until(obs.RoundClaimed, 2)
    assert await without.written(engine) == []
    (parked,) = await without.parked(engine)
    assert (parked.state, parked.reason) == ("waiting", "unknown-type")
    assert "in a transaction of their own" in parked.error
