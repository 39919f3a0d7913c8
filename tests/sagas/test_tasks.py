"""Human tasks: opened with the step, resolved exactly once, withdrawn by a rollback; and the point of no return."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from datetime import date, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from uuid import UUID

import anyio
import msgspec
import pytest
from sqlalchemy import select

from sagapost.core import event
from sagapost.core.codec import decode_data
from sagapost.core.errors import ConfigurationError, ConflictError
from sagapost.inbox import RetryPolicy
from sagapost.inbox.declared import observations as obs
from sagapost.outbox import Outbox
from sagapost.sagas import (
    Close,
    CompensationContext,
    Compensator,
    Deadline,
    Emit,
    Escalate,
    RetryStep,
    RollBack,
    Sagas,
    StepContext,
)
from tests.sagas.recovery import SAGA, OrderPacked, OrderShipped, ShippingFailed, Warehouse, an_event, made


@pytest.fixture(params=["sqlite", "postgresql"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Warehouse, None]:
    """A service on each database."""
    async with made(request, tmp_path) as service:
        yield service


@pytest.fixture
async def on_sqlite(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Warehouse, None]:
    """A service on SQLite, for what no database decides."""
    request.param = "sqlite"
    async with made(request, tmp_path) as service:
        yield service


@pytest.fixture
async def on_postgresql(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Warehouse, None]:
    """A service on PostgreSQL, where two transactions really run at the same time."""
    async with made(request, tmp_path) as service:
        yield service


class Box(StrEnum):
    SMALL = "small"
    LARGE = "large"


@event("warehouse.parcel-measured.v1")
class ParcelMeasured(msgspec.Struct):
    parcels: Annotated[int, msgspec.Meta(ge=1)]
    box: Box
    pallet: UUID
    sent: date | None = None
    weights: tuple[float, ...] = ()


def escalating(service: Warehouse, *, after: int = 1) -> list[str]:
    """Declare a step that hands over to a person on its first `after` tries; return the log of its tries."""
    tried: list[str] = []

    @service.inbox.on(OrderPacked, emits=[OrderShipped, ShippingFailed])
    async def dispatch(event: OrderPacked, ctx: StepContext) -> None:
        tried.append(event.order_id)
        await service.write(ctx.session, "dispatched")
        if len(tried) <= after:
            raise Escalate(
                "dispatch-by-hand",
                title=f"The courier refuses order {event.order_id}",
                details={"order": event.order_id},
                outcomes={
                    "shipped": Emit(OrderShipped(event.order_id), asks=("courier",)),
                    "retry": RetryStep(),
                    "give-up": RollBack(ShippingFailed(event.order_id)),
                    "close": Close(),
                },
                due=timedelta(hours=4),
            )
        await ctx.publish(OrderShipped(event.order_id, "the usual one"))

    return tried


async def escalated(service: Warehouse, *, key: str | None = None) -> int:
    """Let a step open its task; return the task's number."""
    async with service.consuming() as seen:
        await service.send(an_event(OrderPacked("4711"), key=key))
        await seen.until(obs.Handled)
    [task] = await service.desk.list()
    return task.id


async def test_an_escalated_step_is_undone_and_its_task_shows_what_to_decide(service: Warehouse) -> None:
    """The step's writes are gone, the message is handled, and the task has title, details, outcomes and a due time."""
    escalating(service)
    number = await escalated(service)
    assert await service.effects_had() == []
    assert await service.rows(service.tables.parked) == []
    task = await service.desk.show(number)
    assert (task.service, task.saga, task.name, task.state) == ("warehouse", SAGA, "dispatch-by-hand", "open")
    assert task.title == "The courier refuses order 4711"
    assert task.details == {"order": "4711"}
    assert set(task.outcomes) == {"shipped", "retry", "give-up", "close"}
    assert task.asks == {"shipped": ("courier",)}
    assert task.due_at is not None
    assert task.due_at - task.opened_at == pytest.approx(timedelta(hours=4), abs=timedelta(minutes=1))


async def test_an_outcome_publishes_the_prepared_event_with_what_the_person_filled_in(service: Warehouse) -> None:
    """The event is in the saga, caused by the event the step had handled, under its key; the record is signed."""
    escalating(service)
    number = await escalated(service, key="4711")
    with pytest.raises(ConfigurationError, match="asks for courier; given: none"):
        await service.desk.resolve(number, "shipped", by="ada", note="called them")
    with pytest.raises(ConfigurationError, match="has no outcome 'shippd'; it has: close, give-up, retry, shipped"):
        await service.desk.resolve(number, "shippd", by="ada", note="called them")
    with pytest.raises(ConfigurationError, match="a name and a note"):
        await service.desk.resolve(number, "shipped", by="ada", note=" ")
    done = await service.desk.resolve(number, "shipped", by="ada", note="called them", fields={"courier": "pigeon"})
    [row] = await service.rows(service.outbox.tables.outbox)
    [task] = await service.rows(service.saga_tables.tasks)
    assert done.event_id == str(row.event_id)
    assert (row.type, row.correlationid, row.causationid) == ("warehouse.order-shipped.v1", SAGA, task.step_event)
    assert json.loads(row.data) == {"order_id": "4711", "courier": "pigeon"}
    resolved = await service.desk.show(number)
    assert (resolved.state, resolved.outcome, resolved.decided_by, resolved.note) == (
        "resolved",
        "shipped",
        "ada",
        "called them",
    )
    with pytest.raises(ConflictError, match="resolved as 'shipped' by ada"):
        await service.desk.resolve(number, "retry", by="bob", note="me too")
    assert len(await service.published()) == 1


async def test_an_answer_that_the_event_cannot_hold_is_refused_at_the_desk(on_sqlite: Warehouse) -> None:
    """Where it can be corrected, and not where the event is read; the task stays open, and nothing is published."""
    service = on_sqlite

    @service.inbox.on(OrderPacked)
    async def ask(event: OrderPacked, ctx: StepContext) -> None:
        measured = Emit(
            ParcelMeasured(1, Box.SMALL, UUID(int=7)), asks=("parcels", "box", "pallet", "sent", "weights")
        )
        await ctx.open_task(
            "measure", title="?", outcomes={"done": measured, "typo": Emit(measured.event, ("parcel",))}
        )

    number = await escalated(service)
    right: dict[str, object] = {
        "parcels": 2,
        "box": "large",
        "pallet": str(UUID(int=8)),
        "sent": "2026-11-27",
        "weights": [1.5, 2],
    }
    wrong = [
        ("parcels", "two"),
        ("parcels", True),
        ("parcels", 2.5),
        ("parcels", 0),
        ("parcels", None),
        ("box", "huge"),
        ("pallet", "7"),
        ("sent", "tomorrow"),
        ("weights", 3),
        ("weights", ["heavy"]),
    ]
    for field, value in wrong:
        with pytest.raises(ConfigurationError, match=f"stays open: the field '{field}'"):
            await service.desk.resolve(number, "done", by="ada", note="n", fields={**right, field: value})
    with pytest.raises(ConfigurationError, match="has no such field; it has: box, pallet, parcels, sent, weights"):
        await service.desk.resolve(number, "typo", by="ada", note="n", fields={"parcel": 2})
    assert await service.published() == []
    await service.desk.resolve(number, "done", by="ada", note="n", fields=right)
    [row] = await service.rows(service.outbox.tables.outbox)
    read = decode_data(row.data, ParcelMeasured, event_id="", event_type="")
    assert read == ParcelMeasured(2, Box.LARGE, UUID(int=8), date(2026, 11, 27), (1.5, 2.0))


def test_a_plain_function_cannot_be_a_step_that_records_something() -> None:
    """Refused where it is declared: at run time its context could not record anything."""
    sagas = Sagas("warehouse", outbox=Outbox(source="https://warehouse.example"))

    @sagas.compensation()
    async def undo(ctx: CompensationContext) -> None: ...

    def pack(event: OrderPacked, ctx: object) -> None: ...

    with pytest.raises(ConfigurationError, match=r"pack is a plain `def` and a step with compensation"):
        sagas.step(compensation=undo)(pack)
    late = Deadline("pack", OrderShipped, after=timedelta(hours=1))
    with pytest.raises(ConfigurationError, match=r"a step with deadlines"):
        sagas.step(deadlines=[late])(pack)
    sagas.step(changes_nothing=True)(pack)


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_retried_step_handles_its_event_again_at_the_time_that_was_said(
    request: pytest.FixtureRequest, tmp_path: Path, ordered: bool
) -> None:
    """The event comes from the task, once, not before its time; a copy from the broker stays a duplicate."""
    async with made(request, tmp_path, ordered=ordered) as service:
        tried = escalating(service)
        number = await escalated(service, key="4711")
        await service.desk.resolve(
            number, "retry", by="ada", note="tomorrow", until=service.clock.now() + timedelta(days=1)
        )
        async with service.consuming() as seen:
            # What comes meanwhile is not held up.
            await service.send(an_event(OrderPacked("4712"), key="4711"))
            await seen.until(obs.Handled, 2)
        assert tried == ["4711", "4712"]
        await service.clock.pass_(timedelta(days=1))
        async with service.consuming() as seen:
            await seen.until(obs.Handled, 3)
        assert tried == ["4711", "4712", "4711"]
        assert await service.effects_had() == ["dispatched", "dispatched"]
        assert await service.rows(service.tables.parked) == []
        assert await service.desk.list() == []


async def test_a_step_that_escalates_again_opens_another_task(on_sqlite: Warehouse) -> None:
    """A decision to retry settles its own task and no later one."""
    service = on_sqlite
    escalating(service, after=2)
    first = await escalated(service)
    await service.desk.resolve(first, "retry", by="ada", note="once more")
    async with service.consuming() as seen:
        await seen.until(obs.Handled, 2)
    [second] = await service.desk.list()
    assert second.id != first
    assert len(await service.desk.list(state=None)) == 2


async def test_a_task_lives_and_dies_with_its_step(service: Warehouse) -> None:
    """A task opened by a step that then fails is not there; one of a step that succeeds is, beside its effect."""

    @service.inbox.on(OrderPacked)
    async def dispatch(event: OrderPacked, ctx: StepContext) -> None:
        await service.write(ctx.session, event.order_id)
        await ctx.open_task("check-address", title="Is that a street?", outcomes={"yes": Close()})
        if event.order_id == "bad":
            raise RuntimeError("failed after all")

    async with service.consuming() as seen:
        await service.send(an_event(OrderPacked("bad")), an_event(OrderPacked("good")))
        await seen.until(obs.Handled)
        await seen.until(obs.Parked)
    assert len(await service.desk.list(state=None)) == 1
    assert await service.effects_had() == ["good"]


async def test_pitfall_36_a_task_beside_an_effect_offers_no_second_one(service: Warehouse) -> None:
    """What the step did is kept, so by default nobody is asked whether to do it again."""

    @service.inbox.on(OrderPacked)
    async def dispatch(event: OrderPacked, ctx: StepContext) -> None:
        await service.write(ctx.session, event.order_id)
        await ctx.open_task("check-address", title="Is that a street?")

    number = await escalated(service)
    assert set((await service.desk.show(number)).outcomes) == {"roll-back", "close"}


@pytest.mark.parametrize("transaction", ["", "by hand"])
async def test_a_retry_is_for_the_handlers_that_the_task_came_from(on_sqlite: Warehouse, transaction: str) -> None:
    """Those that share its transaction, and no others of the event."""
    service, log = on_sqlite, list[str]()

    @service.inbox.on(OrderPacked, transaction=transaction)
    async def dispatch(_event: OrderPacked, _ctx: StepContext) -> None:
        log.append("dispatched")
        if log.count("dispatched") == 1:
            raise Escalate("dispatch-by-hand", title="The courier refuses")

    @service.inbox.on(OrderPacked, transaction="count")
    async def count(_event: OrderPacked, _ctx: StepContext) -> None:
        log.append("counted")

    async with service.consuming() as seen:
        await service.send(an_event(OrderPacked("4711")))
        await seen.until(obs.Handled, 2)
        [task] = await service.desk.list()
        await service.desk.resolve(task.id, "retry", by="ada", note="called them")
        await seen.until(obs.Handled, 3)
    assert sorted(log) == ["counted", "dispatched", "dispatched"]


async def test_used_up_tries_open_a_task_with_the_last_error(on_sqlite: Warehouse) -> None:
    """`Sagas.escalation` is the last resort of a step with a schedule."""
    service = on_sqlite
    escalation = service.sagas.escalation(
        "dispatch-by-hand",
        title="No courier comes",
        outcomes=lambda event: {"shipped": Emit(OrderShipped(event.order_id)), "retry": RetryStep()},
        details=lambda event: {"order": event.order_id},
    )

    @service.inbox.on(OrderPacked, retry=RetryPolicy(quick=0, attempts=1), on_exhausted=escalation)
    async def dispatch(event: OrderPacked, ctx: StepContext) -> None:
        raise ConnectionError("line is dead")

    number = await escalated(service)
    task = await service.desk.show(number)
    assert task.details["order"] == "4711"
    assert task.details["attempts"] == 1
    assert "line is dead" in task.details["error"]
    await service.desk.resolve(number, "shipped", by="ada", note="brought it myself")
    assert await service.published() == ["warehouse.order-shipped.v1"]


async def test_giving_up_starts_the_rollback_and_tells_the_others(service: Warehouse) -> None:
    """One decision: this service's part is rolling back, the failure event is out, other open tasks are withdrawn."""
    undone: list[str] = []

    @service.sagas.compensation()
    async def unpack(ctx: CompensationContext, *, order_id: str) -> None:
        undone.append(order_id)

    escalating(service)
    number = await escalated(service)
    async with service.sessions.begin() as session:
        await service.sagas.record(session, SAGA, unpack, {"order_id": "4711"}, step_event=None)
    async with service.consuming() as seen:
        service.inbox.on("warehouse.other.v1", payload=dict)(_opens_another)
        await service.send(an_event(OrderShipped("4711"), event_type="warehouse.other.v1"))
        await seen.until(obs.Handled, 2)
    assert len(await service.desk.list()) == 2
    await service.desk.resolve(number, "give-up", by="ada", note="customer does not answer")
    assert await service.saga_state() == "rolling_back"
    assert await service.published() == ["warehouse.shipping-failed.v1"]
    assert await service.desk.list() == []
    withdrawn = list(await service.desk.list(state="withdrawn"))
    assert [task.name for task in withdrawn] == ["another"]
    assert "customer does not answer" in (withdrawn[0].note or "")
    compensator = Compensator(service.sagas, service.engine)
    while await compensator.step():
        pass
    assert undone == ["4711"]
    with pytest.raises(ConflictError, match="it was withdrawn"):
        await service.desk.resolve(withdrawn[0].id, "close", by="ada", note="x")


async def _opens_another(_event: object, ctx: StepContext) -> None:
    await ctx.open_task("another", title="Another one", outcomes={"close": Close()})


async def test_a_task_of_a_late_step_is_withdrawn_at_once(on_sqlite: Warehouse) -> None:
    """A saga that has been rolled back asks nobody how to go on."""
    service = on_sqlite
    escalating(service)
    async with service.sessions.begin() as session:
        assert await service.sagas.begin_rollback(session, SAGA, reason="payment declined", cause=None)
    async with service.consuming() as seen:
        await service.send(an_event(OrderPacked("4711")))
        await seen.until(obs.Handled)
    assert await service.desk.list() == []
    [task] = await service.desk.list(state=None)
    assert task.state == "withdrawn"


async def test_after_the_point_of_no_return_a_rollback_asks_a_person(service: Warehouse) -> None:
    """Fail back before dispatch, fail forward after: the same request undoes before, and opens one task after."""

    @service.inbox.on(OrderPacked)
    async def dispatch(_event: OrderPacked, ctx: StepContext) -> None:
        assert await ctx.pivot("the parcel is with the courier")

    service.sagas.rolls_back_on(service.inbox, ShippingFailed)
    async with service.consuming() as seen:
        await service.send(an_event(ShippingFailed("1"), saga="order-1"))
        await seen.until(obs.Handled)
        await service.send(an_event(OrderPacked("4711")))
        await seen.until(obs.Handled, 2)
        await service.send(an_event(ShippingFailed("4711")), an_event(ShippingFailed("4711")))
        await seen.until(obs.Handled, 4)
    states = {row.saga: row.state for row in await service.rows(service.saga_tables.states)}
    assert states == {"order-1": "rolled_back", SAGA: "running"}
    [task] = await service.desk.list()
    assert "the parcel is with the courier" in task.title
    assert set(task.outcomes) == {"go-on", "roll-back-anyway"}
    await service.desk.resolve(task.id, "roll-back-anyway", by="ada", note="the courier lost it")
    states = {row.saga: row.state for row in await service.rows(service.saga_tables.states)}
    assert states[SAGA] == "rolled_back"


async def test_a_pivot_that_comes_after_the_rollback_is_told_so(on_sqlite: Warehouse) -> None:
    """The step learns in its own transaction that it must not do what cannot be undone."""
    service = on_sqlite
    async with service.sessions.begin() as session:
        await service.sagas.begin_rollback(session, SAGA, reason="declined", cause=None)
        assert not await service.sagas.pivot(session, SAGA, reason="too late")


async def test_of_two_people_one_decides(on_postgresql: Warehouse) -> None:
    """Ten resolve at the same time, with different outcomes: one does, nine are told so, one event is published."""
    service = on_postgresql
    escalating(service)
    number = await escalated(service)
    results: list[str] = []

    async def decide(person: int) -> None:
        outcome = ("shipped", "give-up", "retry", "close")[person % 4]
        fields = {"courier": "pigeon"} if outcome == "shipped" else None
        try:
            await service.desk.resolve(number, outcome, by=f"person {person}", note="mine", fields=fields)
            results.append(outcome)
        except ConflictError as error:
            results.append("late" if "not open any more" in str(error) else str(error))

    async with anyio.create_task_group() as tasks:
        for person in range(10):
            tasks.start_soon(decide, person)
    assert results.count("late") == 9
    [task] = await service.desk.list(state=None)
    assert task.outcome in results
    published = await service.published()
    assert len(published) == (1 if task.outcome in {"shipped", "give-up"} else 0)


async def test_a_decision_and_a_rollback_at_the_same_time_end_in_one_of_the_two(on_postgresql: Warehouse) -> None:
    """Resolved first: the event is out and the rollback finds it decided. Withdrawn first: the person is told. No
    deadlock either way, over many sagas.
    """
    service = on_postgresql
    escalating(service, after=100)
    sagas = [f"order-{n}" for n in range(20)]
    async with service.consuming(concurrency=8) as seen:
        await service.send(*(an_event(OrderPacked(saga), saga=saga) for saga in sagas))
        await seen.until(obs.Handled, len(sagas))
    outcomes: dict[str, str] = {}

    async def decide(number: int, saga: str) -> None:
        try:
            await service.desk.resolve(number, "shipped", by="ada", note="x", fields={"courier": "c"})
            outcomes[saga] = "resolved"
        except ConflictError:
            outcomes[saga] = "withdrawn"

    async def roll_back(saga: str) -> None:
        async with service.sessions.begin() as session:
            assert await service.sagas.begin_rollback(session, saga, reason="declined", cause=None)

    async with anyio.create_task_group() as tasks:
        for index, task in enumerate(await service.desk.list()):
            if index % 2:
                tasks.start_soon(decide, task.id, task.saga)
            tasks.start_soon(roll_back, task.saga)
            if not index % 2:
                tasks.start_soon(decide, task.id, task.saga)
    table = service.saga_tables.tasks
    async with service.engine.connect() as connection:
        states = {row.saga: row.state for row in await connection.execute(select(table.c.saga, table.c.state))}
    assert states == outcomes
    shipped = [row for row in await service.published() if row == "warehouse.order-shipped.v1"]
    assert len(shipped) == list(outcomes.values()).count("resolved")
