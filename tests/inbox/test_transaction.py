"""One transaction: the effects, the published events and the dedup key are committed together or not at all."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from sagapost.adapters.memory import MemoryBroker
from sagapost.core import current
from sagapost.inbox import Context, SyncContext
from sagapost.inbox.declared import observations as obs
from tests.inbox.harness import PRODUCER, OrderPlaced, Service, StockReserved, an_event, running, send


async def test_effect_event_and_dedup_key_are_there_after_the_acknowledgement(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """One message: one effect, one outgoing event in the same saga with the cause named, one dedup key, no message."""
    service = Service()

    @service.inbox.on(OrderPlaced, emits=[StockReserved])
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        await ctx.publish(StockReserved(event.order_id), key=event.order_id)

    await service.install(engine)
    placed = an_event(OrderPlaced("o-1"), correlationid="saga-1")
    await send(broker, service, placed)
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    assert await service.written(engine) == ["o-1"]
    (outgoing,) = await service.rows(engine, service.outbox.tables.outbox)
    assert (outgoing.type, outgoing.partitionkey) == ("warehouse.stock-reserved.v1", "o-1")
    assert (outgoing.correlationid, outgoing.causationid) == ("saga-1", placed.id)
    assert await service.count(engine, service.tables.seen) == 1
    assert broker.waiting("warehouse") == []


async def test_a_duplicate_has_no_second_effect(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The same event three times: one effect, and the others are reported as duplicates."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    placed = an_event(OrderPlaced("o-1"))
    await send(broker, service, placed, placed, placed)
    async with running(service, engine, broker) as consumer:
        await consumer.settled(3)
        assert (consumer.statistics.handled, consumer.statistics.duplicates) == (1, 2)
    assert await service.written(engine) == ["o-1"]


async def test_equal_ids_of_different_sources_are_different_events(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Identity is the pair of source and id, as CloudEvents has it."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await send(
        broker,
        service,
        an_event(OrderPlaced("of-a"), id="42", source="https://a.example"),
        an_event(OrderPlaced("of-b"), id="42", source="https://b.example"),
    )
    async with running(service, engine, broker) as consumer:
        await consumer.settled(2)
    assert sorted(await service.written(engine)) == ["of-a", "of-b"]


async def test_two_inboxes_in_one_database_have_their_own_dedup_space(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """The same event has one effect in each of two consumers that share the tables."""
    service = Service()
    await service.install(engine)
    other = Service("loyalty")
    for one in (service, other):

        @one.inbox.on(OrderPlaced)
        async def note(event: OrderPlaced, ctx: Context) -> None:
            await ctx.session.execute(service.write(event.order_id, note=ctx.consumer))

    await broker.declare(other.inbox.queue)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker) as first, running(other, engine, broker) as second:
        await first.settled(1)
        await second.settled(1)
    rows = await service.rows(engine, service.effects)
    assert sorted(row.note for row in rows) == ["loyalty", "warehouse"]


async def test_a_def_handler_works_in_the_same_transaction_from_a_thread(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Its Session sees the async driver's transaction; the saga reaches the thread; its event goes out with it."""
    service = Service()
    seen: dict[str, Any] = {}

    @service.inbox.on(OrderPlaced)
    def reserve(event: OrderPlaced, ctx: SyncContext) -> None:
        assert isinstance(ctx.session, Session)
        ctx.session.execute(service.write(event.order_id))
        seen["visible"] = ctx.session.scalar(select(service.effects.c.order_id))
        saga = current()
        seen["saga"] = saga.correlationid if saga is not None else None
        ctx.publish(StockReserved(event.order_id))

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1"), correlationid="saga-9"))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    assert seen == {"visible": "o-1", "saga": "saga-9"}
    assert await service.written(engine) == ["o-1"]
    assert await service.published(engine) == ["warehouse.stock-reserved.v1"]


async def test_a_def_handler_that_fails_leaves_nothing(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """What a thread wrote and published is rolled back with its transaction."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    def reserve(event: OrderPlaced, ctx: SyncContext) -> None:
        ctx.session.execute(service.write(event.order_id))
        ctx.publish(StockReserved(event.order_id))
        raise LookupError("no such shelf")

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    assert await service.written(engine) == []
    assert await service.published(engine) == []
    (parked,) = await service.parked(engine)
    assert (parked.state, parked.reason) == ("dead", "failed")
    assert "LookupError: no such shelf" in parked.error


async def test_several_handlers_of_a_type_succeed_or_fail_together(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The second of three handlers fails: nothing of the first remains, and the third was not called."""
    service = Service()
    called: list[str] = []

    @service.inbox.on(OrderPlaced)
    async def first(event: OrderPlaced, ctx: Context) -> None:
        called.append("first")
        await ctx.session.execute(service.write(event.order_id))

    @service.inbox.on(OrderPlaced)
    async def second(event: OrderPlaced, ctx: Context) -> None:
        called.append("second")
        if event.order_id == "bad":
            raise ValueError("bad")

    @service.inbox.on(OrderPlaced)
    def third(event: OrderPlaced, ctx: SyncContext) -> None:
        called.append("third")

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("bad")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
        assert called == ["first", "second"]
        await send(broker, service, an_event(OrderPlaced("good")))
        await consumer.settled(2)
    assert called == ["first", "second", "first", "second", "third"]
    assert await service.written(engine) == ["good"]


@pytest.mark.parametrize("call", ["commit", "rollback", "close"])
async def test_a_handler_that_ends_the_session_is_refused_and_nothing_of_it_remains(
    engine: AsyncEngine, broker: MemoryBroker, call: str
) -> None:
    """The transaction is the inbox's: the call fails before it does anything, and the message is parked."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        await getattr(ctx.session, call)()

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    assert await service.written(engine) == []
    (parked,) = await service.parked(engine)
    assert (parked.state, parked.reason) == ("dead", "broke-contract")
    assert f"session.{call}()" in parked.error


async def test_a_handler_that_commits_behind_the_sessions_back_is_found_out(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """A COMMIT as text cannot be prevented; it is noticed, and the message parked although its key is committed."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        await ctx.session.execute(text("COMMIT"))

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    (parked,) = await service.parked(engine)
    assert (parked.state, parked.reason) == ("dead", "broke-contract")
    assert "ended the transaction" in parked.error


async def test_a_handler_that_commits_the_connection_is_found_out(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The same through the session's connection."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        connection = await ctx.session.connection()
        await connection.execute(service.write(event.order_id))
        await connection.commit()

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    (parked,) = await service.parked(engine)
    assert (parked.state, parked.reason) == ("dead", "broke-contract")


async def test_a_session_kept_for_later_is_closed_for_good(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """A handler that leaks its session gets an error when it uses it, not a transaction that nobody ends."""
    service = Service()
    leaked: list[Any] = []

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        leaked.append(ctx.session)

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
        with pytest.raises(Exception, match="closed"):
            await leaked[0].execute(service.write("later"))
    assert await service.written(engine) == ["o-1"]


async def test_a_savepoint_undoes_a_part(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """`begin_nested` is the handler's own: what is rolled back in it is gone, the rest and the dedup key stay."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id, note="kept"))
        nested = await ctx.session.begin_nested()
        await ctx.session.execute(service.write(event.order_id, note="undone"))
        await ctx.publish(StockReserved("undone"))
        await nested.rollback()
        await ctx.publish(StockReserved("kept"))

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    assert [row.note for row in await service.rows(engine, service.effects)] == ["kept"]
    (outgoing,) = await service.rows(engine, service.outbox.tables.outbox)
    assert outgoing.data == b'{"order_id":"kept"}'


async def test_what_a_handler_sets_is_not_seen_by_the_next(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Each message has context variables of its own, empty but for the saga, though one task handles them all."""
    service = Service()
    tenant = contextvars.ContextVar("tenant", default="none")
    found: list[str] = []

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        found.append(tenant.get())
        tenant.set(event.order_id)
        await ctx.session.execute(service.write(event.order_id))
        assert tenant.get() == event.order_id

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(f"o-{n}")) for n in range(3)))
    tenant.set("where the consumer was started")
    async with running(service, engine, broker, concurrency=1) as consumer:
        await consumer.settled(3)
    assert found == ["none"] * 3


async def test_the_log_of_a_handler_carries_the_ids_and_no_data(
    engine: AsyncEngine, broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """Records name event, type, saga and consumer."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        ctx.log.warning("looking at the shelf", extra={"shelf": 7})

    await service.install(engine)
    placed = an_event(OrderPlaced("o-1"), correlationid="saga-1")
    await send(broker, service, placed)
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    (record,) = [record for record in caplog.records if record.name == "sagapost.inbox"]
    fields = {name: getattr(record, name) for name in ("event_id", "event_type", "correlationid", "consumer", "shelf")}
    assert fields == {
        "event_id": placed.id,
        "event_type": placed.type,
        "correlationid": "saga-1",
        "consumer": "warehouse",
        "shelf": 7,
    }


async def test_steps_come_in_their_order(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """An observer can follow a message from the delivery to the acknowledgement."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None: ...

    await service.install(engine)
    placed = an_event(OrderPlaced("o-1"))
    await send(broker, service, placed)
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
        steps = [type(step).__name__ for step in consumer.seen.of(obs.DeliveryStep)]
    assert steps == ["Received", "Started", "Claimed", "HandlerReturned", "Written", "Handled", "Acknowledged"]
    assert placed.source == PRODUCER
