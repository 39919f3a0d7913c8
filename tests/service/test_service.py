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
    Service,
    StepContext,
    SyncContext,
    event,
)
from sagapost.outbox import OutboxTables
from sagapost.sagas.testing import Rehearsal


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


def test_what_arrives_can_roll_back_or_be_the_point_of_no_return() -> None:
    """One decorator says it of the event that it handles; the map shows it."""
    service = Service("orders", source="urn:orders")

    @service.on(ItemMissing, rolls_back=True)
    async def note(_event: ItemMissing, _ctx: StepContext) -> None: ...

    @service.on(StockReserved, pivots=True)
    async def keep(_event: StockReserved, _ctx: StepContext) -> None: ...

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
