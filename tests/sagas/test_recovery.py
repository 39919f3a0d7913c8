"""Forward recovery: schedules over days, snooze, last resorts; under virtual time, on both databases."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from sagapost.inbox import At, Exhausted, Reject, RetryPolicy, Schedule, Snooze
from sagapost.inbox.declared import observations as obs
from sagapost.sagas import StepContext
from tests.sagas.recovery import OrderPacked, OrderShipped, ShippingFailed, Warehouse, an_event, made

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture(params=["sqlite", "postgresql"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Warehouse, None]:
    """A service on each database."""
    async with made(request, tmp_path) as service:
        yield service


async def test_a_step_is_tried_now_in_an_hour_and_tomorrow_at_eight(service: Warehouse) -> None:
    """The courier cannot pick up today: the dispatch is tried again by its schedule, across consumer restarts."""
    tried: list[str] = []
    schedule = Schedule(timedelta(0), timedelta(hours=1), At(time(8, tzinfo=BERLIN), days=1))

    @service.inbox.on(OrderPacked, emits=[OrderShipped], retry=RetryPolicy(quick=0, schedule=schedule))
    async def dispatch(event: OrderPacked, ctx: StepContext) -> None:
        local = service.clock.now().astimezone(BERLIN)
        tried.append(f"{local:%H}")
        await service.write(ctx.session, event.order_id)
        if len(tried) < 4:
            raise ConnectionError("no courier today")
        await ctx.publish(OrderShipped(event.order_id))

    began = service.clock.now()
    async with service.consuming() as seen:
        await service.send(an_event(OrderPacked("4711")))
        parked = (await seen.until(obs.Parked, 2))[-1]
        assert (parked.reason, parked.state, parked.attempts) == ("failed", "waiting", 2)
        assert parked.retry_in == pytest.approx(3600)
    # A day in which nothing ran: what is due waits in the table.
    await service.clock.pass_(timedelta(minutes=61))
    async with service.consuming() as seen:
        parked = (await seen.until(obs.Parked, 3))[-1]
    due = service.clock.now() + timedelta(seconds=parked.retry_in or 0)
    assert f"{due.astimezone(BERLIN):%H:%M}" in {"08:00", "07:59"}
    assert due.astimezone(BERLIN).date() > began.astimezone(BERLIN).date()
    assert await service.effects_had() == []
    await service.clock.pass_(timedelta(seconds=parked.retry_in or 0))
    async with service.consuming() as seen:
        await seen.until(obs.Handled)
    assert len(tried) == 4
    assert tried[-1] in {"08", "07"}
    assert await service.effects_had() == ["4711"]
    assert await service.published() == ["warehouse.order-shipped.v1"]


async def test_a_snoozed_message_is_handled_at_its_time_and_no_attempt_is_counted(service: Warehouse) -> None:
    """However often a step snoozes, its budget of one attempt is untouched, and what it wrote is undone each time."""
    opens = service.clock.now() + timedelta(days=30)
    attempts: list[int] = []

    @service.inbox.on(OrderPacked, retry=RetryPolicy(quick=0, attempts=1))
    async def dispatch(event: OrderPacked, ctx: StepContext) -> None:
        attempts.append(ctx.attempt)
        await service.write(ctx.session, event.order_id)
        if len(attempts) < 3:
            raise Snooze(after=timedelta(0), reason="the gate is busy")
        if service.clock.now() < opens:
            raise Snooze(until=opens, reason="the warehouse is closed for the holidays")

    async with service.consuming() as seen:
        await service.send(an_event(OrderPacked("4711")))
        parked = await seen.until(obs.Parked, 3)
        assert {(each.reason, each.state, each.attempts) for each in parked} == {("snoozed", "waiting", 0)}
        assert parked[-1].retry_in == pytest.approx(timedelta(days=30).total_seconds(), abs=600)
    [row] = await service.rows(service.tables.parked)
    assert row.error == "the warehouse is closed for the holidays"
    assert await service.effects_had() == []
    await service.clock.pass_(timedelta(days=30))
    async with service.consuming() as seen:
        await seen.until(obs.Handled)
    assert attempts == [1, 1, 1, 1]
    assert await service.effects_had() == ["4711"]
    assert not seen.of(obs.HandlerFailed)


@pytest.mark.parametrize("fails_by", ["error", "reject"])
async def test_a_last_resort_takes_the_place_of_a_dead_letter(service: Warehouse, fails_by: str) -> None:
    """When the tries are used up, the declared failure is published in the message's transaction: fail back."""
    told: list[Exhausted] = []

    async def give_up(event: OrderPacked, ctx: StepContext, exhausted: Exhausted) -> None:
        told.append(exhausted)
        await service.write(ctx.session, "given up")
        await ctx.publish(ShippingFailed(event.order_id))

    @service.inbox.on(OrderPacked, retry=RetryPolicy(quick=1, attempts=1), on_exhausted=give_up)
    async def dispatch(event: OrderPacked, ctx: StepContext) -> None:
        await service.write(ctx.session, "tried")
        raise Reject("the address is empty") if fails_by == "reject" else ConnectionError("no courier")

    async with service.consuming() as seen:
        packed = an_event(OrderPacked("4711"))
        await service.send(packed)
        await seen.until(obs.Handled)
        await service.send(packed)
        await seen.until(obs.Duplicate)
    assert [each.reason for each in told] == ["rejected" if fails_by == "reject" else "failed"]
    assert await service.effects_had() == ["given up"]
    assert await service.published() == ["warehouse.shipping-failed.v1"]
    assert await service.rows(service.tables.parked) == []


async def test_a_last_resort_that_fails_leaves_a_dead_letter(service: Warehouse) -> None:
    """Nothing is lost between the two: the message is parked with both errors, and can be redriven."""

    async def give_up(event: OrderPacked, ctx: StepContext, exhausted: Exhausted) -> None:
        await service.write(ctx.session, "given up")
        raise RuntimeError("and that failed too")

    @service.inbox.on(OrderPacked, on_exhausted=give_up)
    async def dispatch(event: OrderPacked, ctx: StepContext) -> None:
        raise ConnectionError("no courier")

    async with service.consuming() as seen:
        await service.send(an_event(OrderPacked("4711")))
        await seen.until(obs.Parked)
    [row] = await service.rows(service.tables.parked)
    assert (row.state, row.reason) == ("dead", "failed")
    assert "no courier" in row.error
    assert "Its last resort failed too: RuntimeError" in row.error
    assert await service.effects_had() == []
