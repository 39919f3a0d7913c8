"""Orchestrated islands: forward in order and in parallel, back in reverse, timed, retried, decided by the database."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from sqlalchemy import update

from sagapost.core.errors import ConfigurationError
from sagapost.inbox import Inbox, RetryPolicy, Schedule
from sagapost.inbox.declared import observations as obs
from sagapost.sagas.orchestration import Island
from sagapost.sagas.orchestration.messages import StepTimedOut
from tests.sagas import fulfilment as f
from tests.sagas.fulfilment import Fulfilment, OrderPaid
from tests.sagas.recovery import SAGA, OrderShipped, ShippingFailed, Warehouse, an_event, made


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
    """A service on PostgreSQL, where the clock of the database can be set."""
    async with made(request, tmp_path) as service:
        yield service


async def test_steps_run_in_order_and_parallel_ones_together(service: Warehouse) -> None:
    """Each stage begins when all of the one before answered; answers are noted in the state; the end is published."""
    island = Fulfilment(service)
    async with island:
        await island.pay()
        assert await island.until_ended() == [OrderShipped(SAGA, "DHL")]
    effects = await service.effects_had()
    assert effects[0] == "PickItems"
    assert sorted(effects[1:3]) == ["Insure", "PrintLabel"]
    assert effects[3:] == ["BookCourier"]
    assert await island.run_states() == ["completed"]
    assert set((await island.step_states()).values()) == {"done"}
    # Deadlines of steps that were answered are taken back.
    assert await service.rows(service.outbox.tables.scheduled) == []
    [run] = await service.rows(service.saga_tables.islands.runs)
    assert run.data == {"order_id": SAGA, "insured": True, "shelf": "A7", "courier": "DHL"}


async def test_a_step_can_be_left_out(on_sqlite: Warehouse) -> None:
    """What `when` says no to is skipped, and neither waited for nor undone."""
    service = on_sqlite
    island = Fulfilment(service)
    async with island:
        await island.pay(insured=False)
        await island.until_ended()
    assert "Insure" not in await service.effects_had()
    assert (await island.step_states())["insure"] == "skipped"


async def test_a_failure_undoes_what_was_done_in_reverse_order(service: Warehouse) -> None:
    """The parallel sibling that is done and the step before are undone, newest first; then comes the failure."""
    island = Fulfilment(service)
    island.refuses(f.Insure, lambda command: f.InsuranceDenied(command.order_id))
    async with island:
        await island.pay()
        assert await island.until_ended() == [ShippingFailed(SAGA)]
        await island.until_handled("warehouse.void-label.v1")
    effects = await service.effects_had()
    assert effects.count("CancelInsurance") == effects.count("BookCourier") == 0
    assert effects.index("PrintLabel") < effects.index("PutItemsBack")
    assert set(effects) == {"PickItems", "PrintLabel", "VoidLabel", "PutItemsBack"}
    assert await island.step_states() == {
        "pick": "rolled_back",
        "label": "rolled_back",
        "insure": "failed",
        "courier": "pending",
    }
    assert await island.run_states() == ["rolled_back"]


async def test_the_first_step_that_fails_leaves_nothing_to_undo(on_sqlite: Warehouse) -> None:
    """The failure of the business is published, and no command of undoing is sent."""
    service = on_sqlite
    island = Fulfilment(service)
    island.refuses(f.PickItems, lambda command: f.ItemMissing(command.order_id))
    async with island:
        await island.pay()
        assert await island.until_ended() == [ShippingFailed(SAGA)]
    assert await service.effects_had() == []


async def test_pitfall_35_an_answer_to_a_step_that_was_renamed_is_kept(on_sqlite: Warehouse) -> None:
    """Answers, with their command as the cause or without, and deadlines wait for a release that knows the step."""
    service = on_sqlite
    island = Fulfilment(service)
    island.keeps_silent(f.PickItems)
    async with island:
        await island.pay()
        await island.until_handled("warehouse.pick-items.v1")
    islands = service.saga_tables.islands
    [command] = await service.rows(islands.commands)
    async with service.engine.begin() as connection:
        await connection.execute(update(islands.steps).where(islands.steps.c.step == "pick").values(step="collect"))
        await connection.execute(update(islands.commands).values(step="collect"))
    answer = f.ItemsPicked(SAGA, "A7")
    timeout = StepTimedOut(command.run, "collect", 1, undo=False)
    async with service.consuming() as seen:
        await service.send(
            an_event(answer, causationid=command.id),
            an_event(answer),
            an_event(timeout, event_type=island.island.timeout_type),
        )
        await seen.until(obs.Parked, 3)
    parked = await service.rows(service.tables.parked)
    assert ["has the step 'collect', which this version does not declare" in row.error for row in parked] == [True] * 3
    assert {(row.state, row.reason, row.attempts) for row in parked} == {("waiting", "unknown-name", 0)}
    assert (await island.step_states())["collect"] == "waiting"


async def test_a_run_starts_once_in_a_saga(service: Warehouse) -> None:
    """A second event that would start it changes nothing; another saga has its own run."""
    island = Fulfilment(service)
    async with island:
        await island.pay()
        await island.pay()
        await island.pay("order-2")
        await island.until_ended(2)
    assert len(await island.run_states()) == 2
    assert (await service.effects_had()).count("PickItems") == 2


async def test_a_courier_that_cannot_come_is_asked_again_tomorrow(on_postgresql: Warehouse) -> None:
    """`retry_on` sends the command again by the step's schedule; nothing is undone."""
    service, island = on_postgresql, Fulfilment(on_postgresql)
    island.refuses(f.BookCourier, lambda command: f.CourierUnavailable(command.order_id))
    async with island:
        await island.pay()
        await island.until_handled("warehouse.courier-unavailable.v1")
    [scheduled] = await service.rows(service.outbox.tables.scheduled)
    assert scheduled.type == "warehouse.book-courier.v1"
    assert scheduled.deliver_at - service.clock.now() > timedelta(hours=6)

    async def books(command: f.BookCourier, ctx: object) -> f.CourierBooked:
        return f.CourierBooked(command.order_id, "the next day's")

    island.answers[f.BookCourier] = books
    await service.clock.pass_(scheduled.deliver_at - service.clock.now())
    async with island:
        assert await island.until_ended() == [OrderShipped(SAGA, "the next day's")]


async def test_a_step_without_an_answer_in_time_is_tried_again_and_then_undone(on_postgresql: Warehouse) -> None:
    """Nobody knows what the silent worker did, so its step is undone like one that was done."""
    service = on_postgresql
    retry = RetryPolicy(quick=0, schedule=Schedule(timedelta(0)))
    island = Fulfilment(service, pick_retry=retry)
    island.keeps_silent(f.PickItems)
    async with island:
        await island.pay()
        for attempt in (1, 2):
            await service.seen.until(obs.Handled, attempt, lambda seen: seen.event_type == "warehouse.pick-items.v1")
            await service.clock.pass_(timedelta(minutes=31))
        assert await island.until_ended() == [ShippingFailed(SAGA)]
    assert await service.effects_had() == ["PickItems", "PickItems", "PutItemsBack"]
    [run] = await service.rows(service.saga_tables.islands.runs)
    assert "no answer to try 2 in time" in run.reason


async def test_pitfall_37_the_end_of_a_steps_time_waits_behind_no_command(on_sqlite: Warehouse) -> None:
    """Else a command that no queue takes would hold back, under its key, the very deadline that it misses."""
    service, island = on_sqlite, Fulfilment(on_sqlite)
    island.keeps_silent(f.PickItems)
    async with island:
        await island.pay()
        await service.seen.until(obs.Handled, 1, lambda seen: seen.event_type == "warehouse.pick-items.v1")
    [timeout] = await service.rows(service.outbox.tables.scheduled)
    assert (timeout.type, timeout.partitionkey) == ("warehouse.fulfilment.step-timed-out.v1", None)


async def test_an_answer_to_an_earlier_try_counts(on_postgresql: Warehouse) -> None:
    """The first try is answered after the second has begun: the step is done; the second answer changes nothing."""
    service = on_postgresql
    island = Fulfilment(service, pick_retry=RetryPolicy(quick=0, schedule=Schedule(timedelta(0))))
    island.keeps_silent(f.PickItems)
    async with island:
        await island.pay()
        await service.seen.until(obs.Handled, 1, lambda seen: seen.event_type == "warehouse.pick-items.v1")
        await service.clock.pass_(timedelta(minutes=31))
        await service.seen.until(obs.Handled, 2, lambda seen: seen.event_type == "warehouse.pick-items.v1")
        commands = await service.rows(service.saga_tables.islands.commands)
        for count, (shelf, command) in enumerate(zip(("B1", "B2"), commands, strict=True), 1):
            await service.send(an_event(f.ItemsPicked(SAGA, shelf), causationid=command.id))
            await island.until_handled_times("warehouse.items-picked.v1", count)
        await island.until_ended()
    [run] = await service.rows(service.saga_tables.islands.runs)
    assert run.data["shelf"] == "B1"
    assert (await service.effects_had()).count("PrintLabel") == 1


async def test_an_answer_from_a_screen_finds_the_step_that_waits(on_sqlite: Warehouse) -> None:
    """It names no command as its cause, only the saga: the one step that waits for it takes it."""
    service = on_sqlite
    island = Fulfilment(service)
    island.keeps_silent(f.PickItems)
    async with island:
        await island.pay()
        await island.until_handled("warehouse.pick-items.v1")
        await service.send(an_event(f.ItemsPicked(SAGA, "from the scanner")))
        await island.until_ended()
    [run] = await service.rows(service.saga_tables.islands.runs)
    assert run.data["shelf"] == "from the scanner"


async def test_a_rollback_of_the_saga_undoes_the_island_first(service: Warehouse) -> None:
    """The ledger waits for the island's last undoing before it goes on to older steps; no failure is published."""
    island = Fulfilment(service)
    older: list[list[str]] = []

    @service.sagas.compensation()
    async def refund(ctx: object, *, cents: int) -> None:
        older.append(await service.effects_had())

    async with service.sessions.begin() as session:
        await service.sagas.record(session, SAGA, refund, {"cents": 5}, step_event=None)
    async with island, anyio.create_task_group() as tasks:
        await island.pay()
        await island.until_ended()
        compensator = island.compensator()
        tasks.start_soon(compensator.run)
        async with service.sessions.begin() as session:
            assert await service.sagas.begin_rollback(session, SAGA, reason="customer cancelled", cause=None)
        from sagapost.sagas.observations import SagaRolledBack

        await service.seen.until(SagaRolledBack)
        compensator.stop()
    effects = await service.effects_had()
    back = [effect for effect in effects if effect in {"CancelInsurance", "VoidLabel", "PutItemsBack"}]
    assert sorted(back) == ["CancelInsurance", "PutItemsBack", "VoidLabel"]
    assert back.index("CancelInsurance") < back.index("PutItemsBack")
    assert len(older) == 1
    assert "PutItemsBack" in older[0]
    assert await island.run_states() == ["rolled_back"]
    assert island.ended == [OrderShipped(SAGA, "DHL")]


async def test_an_island_does_not_start_in_a_saga_that_is_rolled_back(on_sqlite: Warehouse) -> None:
    """A late start finds the saga's row, and does nothing."""
    service = on_sqlite
    island = Fulfilment(service)
    async with service.sessions.begin() as session:
        await service.sagas.begin_rollback(session, SAGA, reason="declined", cause=None)
    async with island:
        await island.pay()
        await island.until_handled("payment.order-paid.v1")
    assert await island.run_states() == []
    assert await service.effects_had() == []


@pytest.mark.parametrize("decision", ["retry", "done", "give-up"])
async def test_a_step_that_escalates_waits_for_a_person(on_postgresql: Warehouse, decision: str) -> None:
    """After the last try a task asks; its outcome tries again, takes the step as done, or undoes the run."""
    service = on_postgresql
    island = Fulfilment(service, escalate=True)
    island.keeps_silent(f.PickItems, times=1)
    async with island:
        await island.pay()
        await island.until_handled("warehouse.pick-items.v1")
        await service.clock.pass_(timedelta(minutes=31))
        await island.until_handled("warehouse.fulfilment.step-timed-out.v1")
        [task] = await service.desk.list()
        assert task.name == "fulfilment.pick"
        assert (await island.step_states())["pick"] == "stuck"
        await service.desk.resolve(task.id, decision, by="ada", note="looked at the shelf")
        [end] = await island.until_ended()
    assert isinstance(end, ShippingFailed if decision == "give-up" else OrderShipped)
    assert (await service.effects_had()).count("PickItems") == (2 if decision == "retry" else 1)
    # What may have been picked is put back.
    assert ("PutItemsBack" in await service.effects_had()) == (decision == "give-up")
    assert await service.desk.list() == []


async def test_an_answer_settles_the_task_that_was_opened_for_want_of_it(on_postgresql: Warehouse) -> None:
    """The late answer is taken, and nobody needs to decide any more."""
    service = on_postgresql
    island = Fulfilment(service, escalate=True)
    island.keeps_silent(f.PickItems)
    async with island:
        await island.pay()
        await island.until_handled("warehouse.pick-items.v1")
        await service.clock.pass_(timedelta(minutes=31))
        await island.until_handled("warehouse.fulfilment.step-timed-out.v1")
        await service.send(an_event(f.ItemsPicked(SAGA, "late")))
        await island.until_ended()
    [task] = await service.desk.list(state=None)
    assert task.state == "withdrawn"


async def test_past_the_pivot_a_failure_asks_a_person_and_undoes_nothing(on_postgresql: Warehouse) -> None:
    """Fail forward: the saga is past the point of no return in this service too."""
    service = on_postgresql
    island = Fulfilment(service, pivot=True)
    island.refuses(f.Insure, lambda command: f.InsuranceDenied(command.order_id))
    async with island:
        await island.pay()
        await island.until_handled("warehouse.insurance-denied.v1", "warehouse.label-printed.v1")
        [task] = await service.desk.list()
        assert set(task.outcomes) == {"retry", "done"}
        async with service.sessions.begin() as session:
            assert not await service.sagas.begin_rollback(session, SAGA, reason="cancelled", cause=None)
        await service.desk.resolve(task.id, "done", by="ada", note="shipped uninsured")
        await island.until_ended()
    assert "PutItemsBack" not in await service.effects_had()


async def test_an_undoing_that_is_not_answered_asks_a_person_even_while_rolling_back(
    on_postgresql: Warehouse,
) -> None:
    """Its task is about the rollback itself, so the rollback does not withdraw it."""
    service = on_postgresql
    island = Fulfilment(service)
    island.refuses(f.Insure, lambda command: f.InsuranceDenied(command.order_id))
    island.keeps_silent(f.PutItemsBack)
    async with island:
        await island.pay()
        await island.until_handled("warehouse.put-items-back.v1")
        await service.clock.pass_(timedelta(minutes=31))
        await service.seen.until(
            obs.Handled, 1, lambda seen: seen.event_type == "warehouse.fulfilment.step-timed-out.v1"
        )
        [task] = await service.desk.list()
        # The decision waits behind no event of the saga's key.
        [row] = await service.rows(service.saga_tables.tasks)
        assert {name: outcome["key"] for name, outcome in row.outcomes.items()} == {"retry": None, "done": None}
        async with service.sessions.begin() as session:
            await service.sagas.begin_rollback(session, SAGA, reason="cancelled", cause=None)
        assert [each.id for each in await service.desk.list()] == [task.id]
        await service.desk.resolve(task.id, "done", by="ada", note="put it back myself")
        assert await island.until_ended() == [ShippingFailed(SAGA)]
    assert await island.run_states() == ["rolled_back"]


async def test_answer_and_timeout_at_the_same_time_are_decided_by_the_database(on_postgresql: Warehouse) -> None:
    """Forty sagas, each with its answer and its timeout delivered together to concurrent transactions: every run ends
    shipped or undone, never both, and what was picked is put back exactly where it was not shipped.
    """
    service = on_postgresql
    island = Fulfilment(service)
    island.keeps_silent(f.PickItems)
    sagas = [f"order-{n}" for n in range(40)]
    async with island:
        for saga in sagas:
            await island.pay(saga)
        await service.seen.until(obs.Handled, len(sagas), lambda seen: seen.event_type == "warehouse.pick-items.v1")
        commands = await service.rows(service.saga_tables.islands.commands)
        runs = {row.id: row.saga for row in await service.rows(service.saga_tables.islands.runs)}
        timeouts = {row.correlationid: row for row in await service.rows(service.outbox.tables.scheduled)}
        pairs = []
        for index, command in enumerate(commands):
            saga = runs[command.run]
            answer = an_event(f.ItemsPicked(saga, "x"), saga=saga, causationid=command.id)
            timeout = an_event(
                f.StepTimedOut(command.run, "pick", 1, False), saga=saga, event_type=timeouts[saga].type
            )
            pairs += [answer, timeout] if index % 2 else [timeout, answer]
        await service.send(*pairs)
        await island.until_ended(len(sagas))
    ends = {end.order_id: type(end) for end in island.ended if isinstance(end, OrderShipped | ShippingFailed)}
    assert len(island.ended) == len(ends) == len(sagas)
    states = {row.saga: row.state for row in await service.rows(service.saga_tables.islands.runs)}
    assert states == {saga: "completed" if end is OrderShipped else "rolled_back" for saga, end in ends.items()}
    effects = await service.effects_had()
    assert effects.count("PutItemsBack") == list(ends.values()).count(ShippingFailed)
    assert effects.count("BookCourier") == list(ends.values()).count(OrderShipped)
    assert not service.seen.of(obs.Parked)


async def test_lifecycle_is_told_within_the_saga_where_a_tracker_listens(on_sqlite: Warehouse) -> None:
    """Start, each change of a step, and the end, with the saga's id: the island is part of the larger saga."""
    service = on_sqlite
    service.sagas.announce = True
    island = Fulfilment(service)
    told: list[tuple[str, object]] = []

    async def track(payload: dict[str, object], ctx: object) -> None:
        told.append((str(payload.get("step") or payload.get("island")), payload.get("state")))

    for name in ("island-started", "island-step", "island-ended"):
        service.inbox.on(f"sagapost.saga.{name}.v1", payload=dict)(track)
    async with island:
        await island.pay()
        await island.until_ended()
        await service.seen.until(obs.Handled, 1, lambda seen: seen.event_type == "sagapost.saga.island-ended.v1")
    assert told[0] == ("fulfilment", None)
    assert ("pick", "waiting") in told
    assert ("courier", "done") in told
    assert ("fulfilment", "completed") in told


def test_what_cannot_work_is_refused_when_it_is_declared() -> None:
    """Names taken, commands without a class, parallel steps without a deadline, an inbox without the Sagas."""
    from sagapost.outbox import Outbox
    from sagapost.sagas import Sagas

    outbox = Outbox(source="https://warehouse.example")
    sagas = Sagas("warehouse", outbox=outbox)
    inbox = Inbox("warehouse", outbox=outbox, context=sagas.context)
    with pytest.raises(ConfigurationError, match="does not know the Sagas"):
        Island("x", state=f.State, sagas=sagas, inbox=Inbox("other", outbox=outbox))
    island = Island("x", state=f.State, sagas=sagas, inbox=inbox)
    with pytest.raises(ConfigurationError, match="already has an island"):
        Island("x", state=f.State, sagas=sagas, inbox=inbox)

    def silent(state: f.State):  # type: ignore[no-untyped-def]  # the mistake under test
        return f.PickItems(state.order_id)

    with pytest.raises(ConfigurationError, match="does not say what it sends"):
        island.step(reply=f.ItemsPicked)(silent)

    def pick(state: f.State) -> f.PickItems:
        return f.PickItems(state.order_id)

    with island.parallel(), pytest.raises(ConfigurationError, match="needs a deadline"):
        island.step(reply=f.ItemsPicked)(pick)
    island.step(reply=f.ItemsPicked)(pick)
    with pytest.raises(ConfigurationError, match="already has a step named 'pick'"):
        island.step(reply=f.ItemsPicked)(pick)


def test_the_map_shows_the_island_within_its_service() -> None:
    """The manifest has a step for each of the island's, with command, undoing and deadline, chained by the answers."""
    from sagapost.outbox import Outbox
    from sagapost.sagas import Sagas, manifest_of

    outbox = Outbox(source="https://warehouse.example")
    sagas = Sagas("warehouse", outbox=outbox)
    inbox = Inbox("warehouse", outbox=outbox, context=sagas.context)
    island = Island("fulfilment", state=f.State, sagas=sagas, inbox=inbox)

    @island.starts_on(OrderPaid)
    def begin(paid: OrderPaid) -> f.State:
        return f.State(paid.order_id, paid.insured)

    @island.step(reply=f.ItemsPicked, failures=[f.ItemMissing], deadline=timedelta(minutes=30))
    def pick(state: f.State) -> f.PickItems:
        return f.PickItems(state.order_id)

    @pick.compensation(undone=f.ItemsPutBack)
    def put_back(state: f.State) -> f.PutItemsBack:
        return f.PutItemsBack(state.order_id, state.shelf)

    @island.completes
    def shipped(state: f.State) -> OrderShipped:
        return OrderShipped(state.order_id)

    @island.fails
    def failed(state: f.State, reason: str) -> ShippingFailed:
        return ShippingFailed(state.order_id)

    assert begin is not None
    assert put_back is not None
    assert shipped is not None
    assert failed is not None
    steps = {step.name: step for step in manifest_of(inbox).steps}
    assert set(steps) == {"fulfilment.pick", "fulfilment.end", "fulfilment.undo"}
    first = steps["fulfilment.pick"]
    assert (first.handles, first.emits) == (("payment.order-paid.v1",), ("warehouse.pick-items.v1",))
    assert first.compensation is not None
    assert first.compensation.emits == ("warehouse.put-items-back.v1",)
    assert first.sets[0].after_seconds == 1800
    assert steps["fulfilment.end"].handles == ("warehouse.items-picked.v1",)
    assert steps["fulfilment.end"].emits == ("warehouse.order-shipped.v1",)
    assert "warehouse.item-missing.v1" in steps["fulfilment.undo"].handles
    assert steps["fulfilment.undo"].fails_with == ("warehouse.shipping-failed.v1",)
