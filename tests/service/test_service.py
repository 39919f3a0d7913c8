"""`Service`: one object for outbox, inbox and sagas, on tables that are named once."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from sqlalchemy import Column, MetaData, String, Table, insert, select

from sagapost import (
    BusinessFailure,
    CompensationContext,
    ConfigurationError,
    Deadline,
    Service,
    StepContext,
    SyncContext,
    event,
)
from sagapost.core.errors import ConflictError
from sagapost.outbox import OutboxTables
from sagapost.sagas.testing import Rehearsal, RehearsedService


@event("shop.order-placed.v1")
class OrderPlaced(msgspec.Struct):
    order: str


@event("shop.stock-reserved.v1")
class StockReserved(msgspec.Struct):
    order: str


@event("shop.stock-released.v1")
class StockReleased(msgspec.Struct):
    order: str


@event("shop.item-missing.v1")
class ItemMissing(msgspec.Struct):
    order: str


@event("shop.order-cancelled.v1")
class OrderCancelled(msgspec.Struct):
    order: str


async def test_one_object_publishes_consumes_and_undoes() -> None:
    """An event and its effect, a business failure in its place, and what is undone when the saga is rolled back."""
    metadata = MetaData()
    stock = Table("stock", metadata, Column("order", String, primary_key=True))
    warehouse = Service("warehouse", source="https://warehouse.example", metadata=metadata, starts=[OrderPlaced])

    @warehouse.compensation(emits=[StockReleased])
    async def release(ctx: CompensationContext, *, order: str) -> None:
        await ctx.publish(StockReleased(order))

    @warehouse.on(OrderPlaced, emits=[StockReserved], fails_with=[ItemMissing], compensation=release)
    async def reserve(placed: OrderPlaced, ctx: StepContext) -> None:
        if placed.order == "none":
            raise BusinessFailure(ItemMissing(placed.order))
        await ctx.session.execute(insert(stock).values(order=placed.order))
        await ctx.on_rollback(release, order=placed.order)
        await ctx.publish(StockReserved(placed.order), key=placed.order)

    warehouse.rolls_back_on(OrderCancelled)
    seen: list[str] = []

    @warehouse.on(StockReserved)
    def note(reserved: StockReserved, ctx: SyncContext) -> None:
        seen.append(f"{reserved.order} in {ctx.event.correlationid}")

    async with Rehearsal() as stage:
        service = await stage.add(warehouse.inbox, metadata=metadata)
        with warehouse.start("saga-1"):
            async with service.sessions.begin() as session:
                await warehouse.publish(session, OrderPlaced("o-1"), key="o-1")
        await stage.say(OrderPlaced("none"))
        await stage.run()
        assert seen == ["o-1 in saga-1"]
        assert [failed.order for failed in stage.said(ItemMissing)] == ["none"]
        await stage.say(OrderCancelled("o-1"), saga="saga-1")
        await stage.run()
        assert [released.order for released in stage.said(StockReleased, saga="saga-1")] == ["o-1"]
        async with service.sessions() as session:
            assert (await session.execute(select(stock))).all() == [("o-1",)]
        assert stage.undeclared == []


def test_the_tables_are_named_once() -> None:
    """Schema and prefix go to all of them, into the author's own MetaData, and a second service shares them."""
    metadata = MetaData()
    orders = Service("orders", source="urn:orders", metadata=metadata, schema="shop", prefix="x_")
    payment = Service("payment", source="urn:payment", metadata=metadata, schema="shop", prefix="x_")
    assert {name.split("_")[0] for name in metadata.tables} == {"shop.x"}
    assert {"shop.x_outbox", "shop.x_inbox_seen", "shop.x_saga_states"} <= set(metadata.tables)
    assert orders.tables is payment.tables
    assert orders.outbox.tables is orders.tables.outbox
    assert orders.inbox.tables is orders.tables.inbox
    assert orders.sagas.tables is orders.tables.sagas


def test_a_name_is_declared_once_in_a_metadata() -> None:
    """Two services of one name would take each other's events; elsewhere the name may be used again."""
    metadata = MetaData()
    Service("orders", source="urn:orders", metadata=metadata)
    with pytest.raises(ConfigurationError, match=r"The service 'orders' is declared twice in one MetaData"):
        Service("orders", source="urn:orders", metadata=metadata)
    Service("orders", source="urn:orders", metadata=MetaData())
    Service("orders", source="urn:orders")
    Service("orders", source="urn:orders")


def test_tables_that_are_there_already_are_refused() -> None:
    """A service and a part that claim the same tables are told so, in a sentence of ours."""
    metadata = MetaData()
    OutboxTables(metadata)
    with pytest.raises(ConfigurationError, match=r"A Service makes its tables itself"):
        Service("orders", source="urn:orders", metadata=metadata)


def test_an_option_that_means_nothing_is_refused() -> None:
    """With what was perhaps meant; type checkers say the same."""
    service = Service("orders", source="urn:orders")
    with pytest.raises(ConfigurationError, match=r"orders\.on\(\) has no option emit=\. Did you mean emits=\?"):
        service.on(OrderPlaced, emit=[StockReserved])  # type: ignore[call-overload]  # pyright: ignore


def test_a_handler_that_does_not_fit_is_refused() -> None:
    """What no type checker has seen is seen when the module is imported: the wrong event, the wrong context."""
    service = Service("orders", source="urn:orders")

    async def wrong_event(_event: StockReserved, _ctx: StepContext) -> None: ...

    async def sync_context(_event: OrderPlaced, _ctx: SyncContext) -> None: ...

    def step_context(_event: OrderPlaced, _ctx: StepContext) -> None: ...

    async def compensation_context(_event: OrderPlaced, _ctx: CompensationContext) -> None: ...

    async def too_few(_event: OrderPlaced) -> None: ...

    for handler, said in {
        wrong_event: r"declared for OrderPlaced and says that it takes StockReserved\. Declare it with \.on\(StockRes",
        sync_context: r"is an `async def`, which is given a StepContext, and says that it takes SyncContext\. "
        r"Annotate its second parameter with StepContext, or make it a `def`\.",
        step_context: r"is a `def`, which is given a SyncContext, .* or make it an `async def`\.",
        compensation_context: r"it takes CompensationContext\. Annotate its second parameter with StepContext\.",
        too_few: r"cannot be called as handler\(event, ctx\)",
    }.items():
        with pytest.raises(ConfigurationError, match=said):
            service.on(OrderPlaced)(handler)  # type: ignore[call-overload]  # pyright: ignore
    assert service.inbox.handlers == ()


def test_a_handler_of_several_events_or_of_any_fits() -> None:
    """A union, a base class, an alias of `Any`, and no annotation at all."""
    service = Service("orders", source="urn:orders")

    @service.on(OrderPlaced, StockReserved)
    async def either(_event: OrderPlaced | StockReserved, _ctx: StepContext) -> None: ...

    @service.on(OrderPlaced)
    async def base(_event: msgspec.Struct, _ctx: object) -> None: ...

    @service.on("shop.#")
    async def raw(_event: bytes, _ctx: StepContext) -> None: ...

    assert [len(handler.accepts) for handler in service.inbox.handlers] == [2, 1, 0]


def test_what_arrives_can_roll_back_be_the_point_of_no_return_or_the_end() -> None:
    """One decorator says it of the event that it handles; the map shows it."""
    service = Service("orders", source="urn:orders")

    @service.on(ItemMissing, rolls_back=True)
    async def note(_event: ItemMissing, _ctx: StepContext) -> None: ...

    @service.on(StockReserved, pivots=True)
    async def keep(_event: StockReserved, _ctx: StepContext) -> None: ...

    @service.on(OrderCancelled, completes=True)
    async def file(_event: OrderCancelled, _ctx: StepContext) -> None: ...

    assert sorted(handler.transaction for handler in service.inbox.handlers if handler.transaction) == [
        "saga end",
        "saga pivot",
        "saga rollback",
        "saga rollback",
        "saga rollback",
    ]
    assert service.sagas.rollback_events == ("shop.item-missing.v1",)
    assert [step.name for step in service.manifest.steps if step.rolls_back] == ["roll_back"]
    assert "sagapost.saga.rollback-requested.v1" in service.inbox.queue.topics


def test_an_escalation_and_an_island_are_the_services_own() -> None:
    """They are made by the service, and belong to its part in sagas."""
    service = Service("orders", source="urn:orders")
    island = service.island("packing", state=OrderPlaced)
    assert service.sagas.islands == [island]
    last_resort = service.escalation("call", title="Call the customer", due=timedelta(hours=1))

    @service.on(OrderPlaced, on_exhausted=last_resort)
    async def handle(_event: OrderPlaced, _ctx: StepContext) -> None: ...

    assert service.inbox.handlers[-1].on_exhausted is last_resort


# --- deadlines ---

IN_TIME = Deadline("in-time", OrderCancelled, after=timedelta(days=1))


def test_a_deadline_is_an_object_and_not_its_name() -> None:
    """A name would be misspelt one day; the object cannot be."""
    service = Service("orders", source="urn:orders")
    with pytest.raises(
        ConfigurationError, match=r"orders\.on\(\) was given 'in-time' for a deadline\. Declare it once"
    ):
        service.on(OrderPlaced, cancels=["in-time"])  # type: ignore[list-item]  # pyright: ignore


@pytest.mark.parametrize(
    ("cancelled", "said"),
    [
        (Deadline("in-tyme", OrderCancelled, after=timedelta(days=1)), r"'in-tyme', which no handler sets\. Did you"),
        (Deadline("in-time", OrderCancelled, after=timedelta(days=2)), r"Two deadlines of orders are named 'in-time'"),
    ],
)
async def test_a_deadline_that_is_not_the_one_that_was_set_is_found_before_it_runs(
    cancelled: Deadline[OrderCancelled], said: str
) -> None:
    """Taking it back would take nothing back; a rehearsal and `sagapost consume` say so."""
    service = Service("orders", source="urn:orders")

    @service.on(OrderPlaced, deadlines=[IN_TIME])
    async def begin(_event: OrderPlaced, _ctx: StepContext) -> None: ...

    @service.on(StockReserved, cancels=[IN_TIME])
    async def end(_event: StockReserved, _ctx: StepContext) -> None: ...

    service.check()

    @service.on(StockReleased, cancels=[cancelled])
    async def also_end(_event: StockReleased, _ctx: StepContext) -> None: ...

    with pytest.raises(ConfigurationError, match=said):
        service.check()
    async with Rehearsal() as stage:
        with pytest.raises(ConfigurationError, match=said):
            await stage.add(service)


async def test_a_deadline_publishes_its_own_event_and_is_taken_back_by_what_undoes() -> None:
    """Another class is refused where it is set; a compensation takes the deadline back like a handler."""
    service = Service("orders", source="urn:orders", starts=[OrderPlaced])
    refused: list[str] = []

    @service.compensation()
    async def forget(ctx: CompensationContext) -> None:
        assert await ctx.cancel_deadline(IN_TIME)

    @service.on(OrderPlaced, deadlines=[IN_TIME], compensation=forget)
    async def begin(placed: OrderPlaced, ctx: StepContext) -> None:
        try:
            await ctx.deadline(IN_TIME, StockReserved(placed.order))  # type: ignore[misc]  # pyright: ignore
        except ConfigurationError as error:
            refused.append(str(error))
        await ctx.deadline(IN_TIME, OrderCancelled(placed.order))
        await ctx.on_rollback(forget)

    service.rolls_back_on(ItemMissing)
    async with Rehearsal() as stage:
        await stage.add(service)
        for order in ("late", "failed"):
            await stage.say(OrderPlaced(order), saga=order)
        await stage.say(ItemMissing("failed"), saga="failed")
        await stage.advance(timedelta(days=2))
        assert stage.said(OrderCancelled) == [OrderCancelled("late")]
    assert refused[0] == "The deadline 'in-time' publishes OrderCancelled, not StockReserved."


# --- outside handlers ---


async def test_what_begins_a_saga_can_be_undone_too() -> None:
    """An intent is recorded in the caller's transaction, in the saga that was started; without one it is refused."""
    orders = Service("orders", source="urn:orders", starts=[OrderPlaced], ends=[OrderCancelled])

    @orders.compensation(emits=[OrderCancelled])
    async def cancel(ctx: CompensationContext, *, order: str) -> None:
        await ctx.publish(OrderCancelled(order))

    orders.rolls_back_on(ItemMissing)
    async with Rehearsal() as stage:
        service = await stage.add(orders)
        async with service.sessions.begin() as session:
            with pytest.raises(ConfigurationError, match=r"outside a saga.*`with orders\.start\(\):`"):
                await orders.on_rollback(session, cancel, order="o-1")
            with orders.start("saga-1"):
                await orders.publish(session, OrderPlaced("o-1"))
                await orders.on_rollback(session, cancel, order="o-1")
        await stage.say(ItemMissing("o-1"), saga="saga-1")
        await stage.run()
        assert stage.said(OrderCancelled, saga="saga-1") == [OrderCancelled("o-1")]


@pytest.mark.parametrize("end", [ItemMissing, StockReserved], ids=["rolled back", "completed"])
async def test_pitfall_37_what_begins_a_saga_that_is_over_is_told_at_once(end: type) -> None:
    """Outside a handler too: nothing is recorded that would be undone in silence; the transaction fails."""
    orders = Service("orders", source="urn:orders", starts=[OrderPlaced], ends=[OrderCancelled])

    @orders.compensation(emits=[OrderCancelled])
    async def cancel(ctx: CompensationContext, *, order: str) -> None:
        await ctx.publish(OrderCancelled(order))

    orders.rolls_back_on(ItemMissing)
    orders.completes_on(StockReserved)

    async def place(service: RehearsedService) -> bool:
        async with service.sessions.begin() as session:
            with orders.start("saga-1"):
                await orders.publish(session, OrderPlaced("o-1"))
                return await orders.on_rollback(session, cancel, order="o-1")

    async with Rehearsal() as stage:
        service = await stage.add(orders)
        assert await place(service)
        await stage.say(end("o-1"), saga="saga-1")
        await stage.run()
        with pytest.raises(ConflictError, match=r"'saga-1' is over.*orders\.start\(keys=\.\.\.\)"):
            await place(service)
        await stage.run()
        assert stage.said(OrderPlaced) == [OrderPlaced("o-1")]
        assert len(await service.compensations("saga-1")) == 1


def test_a_service_can_take_the_place_of_another() -> None:
    """The next version of a service, in a program that knows both, on the same tables and under the same name."""
    metadata = MetaData()
    orders = Service("orders", source="urn:orders", metadata=metadata)
    successor = Service("orders", source="urn:orders", replaces=orders, unknown="ignore")
    assert successor.metadata is metadata
    assert successor.tables is orders.tables
    assert successor.inbox is not orders.inbox
