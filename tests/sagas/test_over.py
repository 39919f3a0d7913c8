"""Pitfall 37: a saga that is over is over. What comes late can know it, what waits ends, nothing begins it again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from sagapost import sagas as saga_module
from sagapost.core import event
from sagapost.core.clock import SystemClock
from sagapost.core.databases import aware
from sagapost.inbox import BusinessFailure, Context, Inbox, Reject, RetryPolicy
from sagapost.inbox.declared import observations as obs
from sagapost.outbox import Outbox
from sagapost.sagas import CompensationContext, Compensator, Deadline, Sagas, StepContext
from sagapost.sagas.events import RollbackRequested
from sagapost.sagas.testing import Rehearsal
from tests.sagas.recovery import SAGA, OrderPacked, OrderShipped, ShippingFailed, Warehouse, an_event, made


@event("warehouse.pickup-overdue.v1")
class PickupOverdue(dict[str, str]):
    """Published when the deadline passes."""


PICKUP = Deadline("pickup", PickupOverdue, after=timedelta(days=1))
ANOTHER = Deadline("another", PickupOverdue, after=timedelta(days=1))


@pytest.fixture(params=["sqlite", "postgresql"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Warehouse, None]:
    """A service on each database."""
    async with made(request, tmp_path) as service:
        yield service


async def undo_all(service: Warehouse) -> None:
    compensator = Compensator(service.sagas, service.engine)
    while await compensator.step():
        pass


def packing(service: Warehouse) -> list[str]:
    """Declare a step that asks before it acts, and its compensation; return what was done."""
    done: list[str] = []

    @service.sagas.compensation()
    async def unpack(ctx: CompensationContext, *, order: str) -> None:
        done.append(f"unpacked {order}")

    @service.inbox.on(OrderPacked)
    @service.sagas.step(compensation=unpack)
    async def pack(packed: OrderPacked, ctx: StepContext) -> None:
        if await ctx.rolling_back():
            done.append(f"too late for {packed.order_id}")
            return
        goes_on = await ctx.on_rollback(unpack, order=packed.order_id)
        done.append(f"packed {packed.order_id}, {goes_on}")

    service.sagas.rolls_back_on(service.inbox, ShippingFailed)
    return done


async def test_pitfall_37_a_late_step_can_ask_before_it_acts(service: Warehouse) -> None:
    """False while the saga runs, True once it is rolled back, also where nothing of it had been done here."""
    done = packing(service)
    async with service.consuming() as seen:
        await service.send(an_event(OrderPacked("1")))
        await seen.until(obs.Handled)
        await service.send(an_event(ShippingFailed("1")), an_event(ShippingFailed("2"), saga="other"))
        await seen.until(obs.Handled, 3)
        await service.send(
            an_event(OrderPacked("2"), saga="other"), an_event(OrderPacked("3"), causationid="a step's")
        )
        await seen.until(obs.Handled, 5)
    assert sorted(done) == ["packed 1, True", "too late for 2", "too late for 3"]


@pytest.mark.parametrize("answer", [BusinessFailure(OrderShipped("1")), Reject("no"), RuntimeError("no mail server")])
async def test_pitfall_36_no_answer_of_a_handler_undoes_what_the_library_does(
    service: Warehouse, answer: Exception
) -> None:
    """Whatever a handler of the same event answers, the rollback begins and the point of no return is passed."""
    done = packing(service)

    @service.inbox.on(ShippingFailed, OrderShipped, retry=RetryPolicy(quick=0, attempts=1))
    async def notify(_event: object, _ctx: Context) -> None:
        raise answer

    service.sagas.pivots_on(service.inbox, OrderShipped)
    async with service.consuming() as seen:
        await service.send(an_event(OrderPacked("1")), an_event(OrderPacked("2"), saga="other"))
        await seen.until(obs.Handled, 2)
        await service.send(an_event(ShippingFailed("1")), an_event(OrderShipped("2"), saga="other"))
        # Those of one acknowledgement are one observation.
        await seen.until_true(lambda: sum(each.messages for each in seen.of(obs.Acknowledged)) == 4)
    await undo_all(service)
    assert sorted(done) == ["packed 1, True", "packed 2, True", "unpacked 1"]
    states = {row.saga: row.pivoted_at for row in await service.rows(service.saga_tables.states)}
    assert states["other"] is not None


async def test_pitfall_37_a_second_attempt_under_the_id_of_a_saga_that_is_over_is_refused_aloud(
    service: Warehouse,
) -> None:
    """It is a dead letter that says what to do, and not undone in silence; an id of its own is a new saga."""
    done = packing(service)
    async with service.consuming() as seen:
        await service.send(an_event(OrderPacked("1")))
        await seen.until(obs.Handled)
        await service.send(an_event(ShippingFailed("1")))
        await seen.until(obs.Handled, 2)
        await undo_all(service)
        await service.send(an_event(OrderPacked("again")))
        await seen.until(obs.Parked)
        await service.send(an_event(OrderPacked("anew"), saga="attempt-2"))
        await seen.until(obs.Handled, 3)
    [parked] = await service.rows(service.tables.parked)
    assert (parked.state, parked.reason) == ("dead", "rejected")
    assert f"The saga '{SAGA}' was rolled back in the service 'warehouse'" in parked.error
    assert done == ["packed 1, True", "unpacked 1", "packed anew, True"]


async def test_pitfall_37_a_second_attempt_is_refused_also_where_the_first_had_done_nothing(
    service: Warehouse,
) -> None:
    """A declined card leaves no intent; the next attempt under the same id is not undone in silence for that."""
    done = packing(service)
    async with service.consuming() as seen:
        await service.send(an_event(ShippingFailed("1"), causationid="a step's"))
        await seen.until(obs.Handled)
        [state] = await service.rows(service.saga_tables.states)
        later = aware(state.rollback_started_at) + timedelta(seconds=30)
        await service.send(an_event(OrderPacked("again"), time=later))
        await seen.until(obs.Parked)
        # Its own cancellation overtook it, and the clocks differ.
        overtaken = aware(state.rollback_started_at) + timedelta(milliseconds=20)
        await service.send(an_event(OrderPacked("first"), time=overtaken))
        await seen.until(obs.Handled, 2)
    [parked] = await service.rows(service.tables.parked)
    assert "was rolled back in the service 'warehouse'" in parked.error
    assert done == ["too late for first"]


async def test_pitfall_37_a_rollback_takes_the_deadlines_of_its_saga_back(service: Warehouse) -> None:
    """Those of this service, also one that the same transaction has set; those of others stay."""

    @service.inbox.on(OrderPacked)
    async def pack(packed: OrderPacked, ctx: StepContext) -> None:
        await ctx.deadline(PICKUP, PickupOverdue())
        await ctx.publish(OrderShipped("1"), deliver_at=service.clock.now() + timedelta(days=9), name="no deadline")

    @service.inbox.on(OrderShipped)
    async def fail(shipped: OrderShipped, ctx: StepContext) -> None:
        await ctx.deadline(ANOTHER, PickupOverdue())
        assert await ctx.roll_back("it cannot be shipped")

    async with service.consuming() as seen:
        await service.send(an_event(OrderPacked("1")), an_event(OrderPacked("2"), saga="other"))
        await seen.until(obs.Handled, 2)
        await service.send(an_event(OrderShipped("1")))
        await seen.until(obs.Handled, 3)
    scheduled = await service.rows(service.outbox.tables.scheduled)
    assert sorted((row.correlationid, row.name) for row in scheduled) == sorted(
        [(SAGA, "no deadline"), ("other", "no deadline"), ("other", "warehouse: pickup")]
    )


@pytest.fixture(params=["sqlite", "postgresql"])
async def ordered_service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Warehouse, None]:
    """A service whose inbox is ordered, on each database."""
    async with made(request, tmp_path, ordered=True) as service:
        yield service


@pytest.mark.parametrize(
    "asked", [RollbackRequested("it takes too long", "kim"), ShippingFailed("1")], ids=["operator", "event"]
)
async def test_pitfall_37_a_rollback_never_waits_behind_the_step_it_is_about(
    ordered_service: Warehouse, asked: object
) -> None:
    """In an ordered inbox, under the key of a step that is dead; what else has the key waits as before."""
    service = ordered_service

    @service.inbox.on(OrderPacked)
    async def pack(_packed: OrderPacked, _ctx: StepContext) -> None:
        raise RuntimeError("the machine is broken")

    @service.inbox.on(OrderShipped)
    async def ship(_shipped: OrderShipped, _ctx: StepContext) -> None: ...

    service.sagas.rolls_back_on(service.inbox, ShippingFailed)
    async with service.consuming() as seen:
        await service.send(an_event(OrderPacked("1"), key=SAGA))
        await seen.until(obs.Parked)
        await service.send(an_event(OrderShipped("1"), key=SAGA), an_event(asked, key=SAGA))
        await seen.until(obs.Handled)
        await seen.until(obs.Parked, 2)
    parked = [(row.type, row.state) for row in await service.rows(service.tables.parked)]
    assert parked == [("warehouse.order-packed.v1", "dead"), ("warehouse.order-shipped.v1", "behind")]
    assert await service.saga_state() == "rolled_back"


async def test_pitfall_37_a_late_step_sets_no_deadline(service: Warehouse) -> None:
    """Nobody would take it back; what belongs to the rollback itself says so."""

    @service.inbox.on(OrderPacked)
    async def pack(_packed: OrderPacked, ctx: StepContext) -> None:
        assert await ctx.deadline(PICKUP, PickupOverdue()) is None
        assert await ctx.deadline(ANOTHER, PickupOverdue(), rolling_back=True) is not None

    service.sagas.rolls_back_on(service.inbox, ShippingFailed)
    async with service.consuming() as seen:
        await service.send(an_event(ShippingFailed("1")))
        await seen.until(obs.Handled)
        await service.send(an_event(OrderPacked("1"), causationid="a step's"))
        await seen.until(obs.Handled, 2)
    assert [row.name for row in await service.rows(service.outbox.tables.scheduled)] == ["warehouse: another"]


async def test_pitfall_37_a_saga_that_has_completed_is_over(service: Warehouse) -> None:
    """Its deadlines end, none is set any more, a second beginning is refused, and a rollback asks a person first."""
    undone: list[str] = []

    @service.sagas.compensation()
    async def unpack(_ctx: CompensationContext, *, order: str) -> None:
        undone.append(order)

    @service.inbox.on(OrderPacked)
    async def pack(packed: OrderPacked, ctx: StepContext) -> None:
        late = await ctx.deadline(PICKUP, PickupOverdue()) is None
        assert await ctx.on_rollback(unpack, order=f"{packed.order_id}{', late' if late else ''}")
        assert not await ctx.rolling_back()

    service.sagas.completes_on(service.inbox, OrderShipped)
    service.sagas.rolls_back_on(service.inbox, ShippingFailed)
    async with service.consuming() as seen:
        for number, each in enumerate(
            (
                an_event(OrderPacked("1")),
                an_event(OrderShipped("1"), causationid="a step's"),
                an_event(OrderPacked("2"), causationid="a step's"),
                an_event(ShippingFailed("1"), causationid="a step's"),
            ),
            start=1,
        ):
            await service.send(each)
            await seen.until(obs.Handled, number)
        await service.send(an_event(OrderPacked("again")))
        await seen.until(obs.Parked)
    [parked] = await service.rows(service.tables.parked)
    assert f"The saga '{SAGA}' has completed in the service 'warehouse'" in parked.error
    assert await service.rows(service.outbox.tables.scheduled) == []
    await undo_all(service)
    assert undone == []
    [task] = await service.desk.list()
    assert "the saga has completed" in task.title
    await service.desk.resolve(task.id, "roll-back-anyway", by="kim", note="the customer sent it back")
    await undo_all(service)
    assert undone == ["2, late", "1"]


async def test_pitfall_37_a_compensation_publishes_under_the_key_of_its_step(service: Warehouse) -> None:
    """Else the refund could overtake the payment; a key of its own, or none, is the compensation's choice."""

    @service.sagas.compensation()
    async def unpack(ctx: CompensationContext) -> None:
        await ctx.publish(OrderShipped("back"))
        await ctx.publish(OrderShipped("back"), key="another")
        await ctx.publish(OrderShipped("back"), key=None)

    @service.inbox.on(OrderPacked)
    async def pack(_packed: OrderPacked, ctx: StepContext) -> None:
        await ctx.on_rollback(unpack)

    service.sagas.rolls_back_on(service.inbox, ShippingFailed)
    async with service.consuming() as seen:
        await service.send(an_event(OrderPacked("1"), key="shelf 7"), an_event(ShippingFailed("1")))
        await seen.until(obs.Handled, 2)
    await undo_all(service)
    keys = [row.partitionkey for row in await service.rows(service.outbox.tables.outbox)]
    assert keys == ["shelf 7", "another", None]


async def test_pitfall_37_named_events_of_two_services_in_one_database_are_two(service: Warehouse) -> None:
    """What a service has scheduled under a name, another one with the same tables does not take back."""
    stock = Outbox(source="https://stock.example", tables=service.outbox.tables, clock=service.clock)
    later = service.clock.now() + timedelta(days=1)
    async with service.sessions.begin() as session:
        await stock.publish(session, PickupOverdue(), correlationid=SAGA, name="pickup", deliver_at=later)
    async with service.sessions.begin() as session:
        assert await service.outbox.cancel(session, correlationid=SAGA, name="pickup") == 0
        assert await stock.cancel(session, correlationid=SAGA, name="pickup") == 1


async def test_pitfall_37_deadlines_of_two_services_in_one_database_are_two(service: Warehouse) -> None:
    """One name, one saga, one outbox, two services: each sets, moves and takes back its own."""
    stock = Sagas("stock", outbox=service.outbox, tables=service.saga_tables, clock=service.clock)
    inbox = Inbox("stock", outbox=service.outbox, tables=service.tables, context=stock.context)

    async def act(sagas: Sagas, work: str) -> bool:
        async with service.sessions.begin() as session:
            ctx = sagas.context(
                consumer=sagas.service,
                event=an_event(OrderPacked("1")),
                attempt=1,
                outbox=service.outbox,
                session=session,
            )
            if work == "set":
                await ctx.deadline(PICKUP, PickupOverdue())
            return work == "set" or await ctx.cancel_deadline(PICKUP)

    assert inbox.name == "stock"
    for sagas in (service.sagas, stock, stock):
        assert await act(sagas, "set")
    assert [row.name for row in await service.rows(service.outbox.tables.scheduled)] == [
        "warehouse: pickup",
        "stock: pickup",
    ]
    assert await act(service.sagas, "cancel")
    assert not await act(service.sagas, "cancel")
    assert await act(stock, "cancel")


async def test_pitfall_37_a_deadline_is_reckoned_by_the_clock_of_the_database(postgresql_url: str) -> None:
    """A host whose clock is a week behind sets a deadline of an hour: it is due in an hour."""

    class Behind(SystemClock):
        def now(self) -> datetime:
            return super().now() - timedelta(days=7)

    engine = create_async_engine(postgresql_url)
    service = Warehouse(engine, Behind())  # type: ignore[arg-type]  # any clock does
    await service.install()
    async with AsyncSession(engine) as session, session.begin():
        ctx = service.sagas.context(
            consumer="warehouse", event=an_event(OrderPacked("1")), attempt=1, outbox=service.outbox, session=session
        )
        set_ = await ctx.deadline(PICKUP, PickupOverdue(), after=timedelta(hours=1))
        table = service.outbox.tables.scheduled
        left = (await session.execute(select(table.c.deliver_at - func.clock_timestamp()))).scalar_one()
        assert timedelta(minutes=59) < left <= timedelta(hours=1)
        assert set_ is not None
        assert set_.correlationid == SAGA
    await engine.dispose()


async def test_pitfall_37_a_saga_begun_in_a_handler_names_its_cause_and_is_in_the_trace() -> None:
    """Its own id, the handled event as its cause, and the trace of what was handled; by `start` and by `join`."""
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    outbox = Outbox(source="https://shop.example")
    inbox = Inbox("shop", outbox=outbox)

    @inbox.on(OrderPacked)
    async def begin(packed: OrderPacked, ctx: Context) -> None:
        with saga_module.start("return-1", keys={"order": 1}):
            await ctx.publish(OrderShipped("start"))
        with saga_module.join("return-2"):
            await ctx.publish(OrderShipped("join"))

    async with Rehearsal() as stage:
        shop = await stage.add(inbox)
        async with shop.sessions.begin() as session:
            web = Outbox(source="https://web.example", trace=lambda: (parent, None))
            await web.publish(session, OrderPacked("1"), correlationid="order-1")
        await stage.run()
        packed, *begun = stage.events
        assert [(e.correlationid, e.causationid, e.traceparent) for e in begun] == [
            ("return-1", packed.id, parent),
            ("return-2", packed.id, parent),
        ]


async def test_what_a_compensation_publishes_is_in_the_trace_of_its_rollback() -> None:
    """The trace of the event that began the rollback goes on in what its compensations publish."""
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    outbox = Outbox(source="https://shop.example")
    sagas = Sagas("shop", outbox=outbox)
    inbox = Inbox("shop", outbox=outbox, context=sagas.context)

    @sagas.compensation()
    async def unpack(ctx: CompensationContext) -> None:
        await ctx.publish(OrderShipped("back"))

    @inbox.on(OrderPacked)
    async def pack(packed: OrderPacked, ctx: StepContext) -> None:
        await ctx.on_rollback(unpack)

    sagas.rolls_back_on(inbox, ShippingFailed)
    async with Rehearsal() as stage:
        shop = await stage.add(inbox)
        for payload in (OrderPacked("1"), ShippingFailed("1")):
            async with shop.sessions.begin() as session:
                web = Outbox(source="https://web.example", trace=lambda: (parent, "vendor=1"))
                await web.publish(session, payload, correlationid=SAGA)
            await stage.run()
        _, failed, back = stage.events
        assert (back.causationid, back.traceparent, back.tracestate) == (failed.id, parent, "vendor=1")
