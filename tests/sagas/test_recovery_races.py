"""Failure against progress, deadline against step, relay against relay: decided by the database, on PostgreSQL."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import anyio
import msgspec
import pytest

from sagapost.core import event
from sagapost.inbox.declared import observations as obs
from sagapost.sagas import CompensationContext, Compensator, Deadline, StepContext
from tests.sagas.recovery import OrderPacked, ShippingFailed, Warehouse, an_event, made


@event("warehouse.shipping-timed-out.v1")
class ShippingTimedOut(msgspec.Struct):
    """Said when the deadline passes."""

    order_id: str


SHIPPING = Deadline("shipping", ShippingTimedOut, after=timedelta(hours=1))


@pytest.fixture
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Warehouse, None]:
    """A service on PostgreSQL."""
    async with made(request, tmp_path) as service:
        yield service


async def test_progress_and_failure_of_one_saga_at_the_same_time_leave_nothing_undone(service: Warehouse) -> None:
    """Three steps and a failure of each of twenty sagas are handled concurrently, in a random order, while two
    compensators run: whatever the interleaving, each step that was done is undone once, and no saga is left behind.
    """
    undone: Counter[str] = Counter()

    @service.sagas.compensation()
    async def unpack(ctx: CompensationContext, *, step: str) -> None:
        undone[step] += 1

    @service.inbox.on(OrderPacked)
    async def pack(packed: OrderPacked, ctx: StepContext) -> None:
        await service.write(ctx.session, packed.order_id)
        await ctx.on_rollback(unpack, step=packed.order_id)

    service.sagas.rolls_back_on(service.inbox, ShippingFailed)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    sagas = [f"order-{n}" for n in range(20)]
    events = [an_event(OrderPacked(f"{saga}/{step}"), saga=saga) for saga in sagas for step in range(3)]
    events += [an_event(ShippingFailed(saga), saga=saga) for saga in sagas]
    random.Random(seed).shuffle(events)
    compensators = [Compensator(service.sagas, service.engine) for _ in range(2)]
    async with service.consuming(concurrency=8) as seen, anyio.create_task_group() as tasks:
        for compensator in compensators:
            tasks.start_soon(compensator.run)
        await service.send(*events)
        await seen.until(obs.Handled, len(events))
        for compensator in compensators:
            compensator.stop()
    while await compensators[0].step():
        pass
    steps = await service.effects_had()
    assert len(steps) == 60
    assert undone == Counter(steps)
    assert {row.state for row in await service.rows(service.saga_tables.states)} == {"rolled_back"}
    assert {row.state for row in await service.rows(service.saga_tables.compensations)} == {"done"}
    assert not seen.of(obs.Parked)


async def test_each_deadline_fires_once_with_several_relays_or_was_cancelled(service: Warehouse) -> None:
    """Sixty deadlines pass at one moment under three relays while half of them are being cancelled: each is either
    cancelled or fires exactly once, also across a restart of everything in between.
    """
    orders = [f"order-{n}" for n in range(60)]
    cancelled: set[str] = set()
    fired: list[str] = []

    @service.inbox.on(OrderPacked)
    async def begin(packed: OrderPacked, ctx: StepContext) -> None:
        timed_out = ShippingTimedOut(packed.order_id)
        # Set twice: the second moves it.
        await ctx.deadline(SHIPPING, timed_out, after=timedelta(minutes=5))
        await ctx.deadline(SHIPPING, timed_out)

    @service.inbox.on(ShippingTimedOut)
    async def timed_out(late: ShippingTimedOut, _ctx: StepContext) -> None:
        fired.append(late.order_id)

    async with service.consuming(concurrency=8) as seen:
        await service.send(*(an_event(OrderPacked(order), saga=order) for order in orders))
        await seen.until(obs.Handled, len(orders))
    await service.clock.pass_(timedelta(minutes=30))

    async def cancel(order: str) -> None:
        async with service.sessions.begin() as session:
            if await service.outbox.cancel(session, correlationid=order, name="shipping"):
                cancelled.add(order)

    async with AsyncExitStack() as stack:
        seen = await stack.enter_async_context(service.consuming(concurrency=8))
        for _ in range(3):
            await stack.enter_async_context(service.relaying())
        assert len(await service.rows(service.outbox.tables.scheduled)) == len(orders)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.clock.pass_, timedelta(minutes=31))
            for order in orders[::2]:
                tasks.start_soon(cancel, order)
        await seen.until(obs.Handled, len(orders) + len(orders) - len(cancelled))
        # What a relay still had in flight would come now.
        await service.send(an_event(OrderPacked("last"), saga="last"))
        await seen.until(obs.Handled, len(orders) + len(orders) - len(cancelled) + 1)
    assert Counter(fired) == Counter(order for order in orders if order not in cancelled)
    assert cancelled <= set(orders[::2])
    assert not seen.of(obs.Duplicate)
    assert [row.correlationid for row in await service.rows(service.outbox.tables.scheduled)] == ["last"]
    assert await service.rows(service.outbox.tables.outbox) == []
