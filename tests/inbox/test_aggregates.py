"""Domain events that ORM aggregates record while a handler works with them: captured, with the handler's saga."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sagapost.adapters.memory import MemoryBroker
from sagapost.core import event
from sagapost.inbox import BusinessFailure, Consumer, Context, SyncContext
from sagapost.inbox.declared import observations as obs
from sagapost.outbox import Outbox, Recorder
from tests.inbox.harness import OrderPlaced, Running, Service, StockShort, an_event, quick_settings, running, send
from tests.inbox.harness import Recorder as Seen


class Models(DeclarativeBase):
    """The models of these tests."""


@event("warehouse.shelf-emptied.v1")
class ShelfEmptied(msgspec.Struct):
    """What the aggregate records."""

    order_id: str


class Shelf(Recorder, Models):
    """An aggregate that records what happens to it, from its constructor on."""

    __tablename__ = "shelves"

    order_id: Mapped[str] = mapped_column(primary_key=True)
    taken: Mapped[int] = mapped_column(default=0)

    @classmethod
    def emptied(cls, order_id: str) -> Shelf:
        """Make one, emptied before it belongs to any session."""
        shelf = cls(order_id=order_id)
        shelf.record(ShelfEmptied(order_id), key=order_id)
        return shelf

    def take(self) -> None:
        """Take something out of it."""
        self.taken += 1
        self.record(ShelfEmptied(self.order_id), key=self.order_id)


async def _install(service: Service, engine: AsyncEngine) -> None:
    await service.install(engine)
    async with engine.begin() as connection:
        await connection.run_sync(Models.metadata.create_all)


def _service(*, sync: bool = False, **inbox: Any) -> Service:
    """A service whose handler publishes nothing itself: its aggregates do."""
    service = Service(**inbox)

    if sync:

        @service.inbox.on(OrderPlaced, emits=[ShelfEmptied])
        def reserve_in_a_thread(event: OrderPlaced, ctx: SyncContext) -> None:
            ctx.session.add(Shelf.emptied(event.order_id))

    else:

        @service.inbox.on(OrderPlaced, emits=[ShelfEmptied, StockShort])
        async def reserve(event: OrderPlaced, ctx: Context) -> None:
            if event.note == "take":
                shelf = (await ctx.session.execute(select(Shelf))).scalars().one()
                shelf.take()
                return
            ctx.session.add(Shelf.emptied(event.order_id))
            if event.note == "short":
                await ctx.session.flush()
                raise BusinessFailure(StockShort(event.order_id))

    return service


async def _published(service: Service, engine: AsyncEngine) -> list[tuple[str, str, str]]:
    """Return type, correlation and cause of what is in the outbox, in order."""
    rows = await service.rows(engine, service.outbox.tables.outbox)
    return [(row.type, row.correlationid, row.causationid) for row in rows]


async def _handled(
    service: Service, engine: AsyncEngine, broker: MemoryBroker, *sent: Any, **settings: Any
) -> Running:
    await send(broker, service, *sent)
    async with running(service, engine, broker, **settings) as consumer:
        await consumer.settled(len(sent))
    return consumer


@pytest.mark.parametrize("sync", [False, True], ids=["async", "def"])
async def test_what_an_aggregate_records_is_captured_with_the_handlers_saga(
    engine: AsyncEngine, broker: MemoryBroker, sync: bool
) -> None:
    """In one transaction with the dedup key; its cause is the event handled, its correlation that event's saga."""
    service = _service(sync=sync)
    await _install(service, engine)
    first = an_event(OrderPlaced("o-1"), correlationid="saga-1")
    second = an_event(OrderPlaced("o-2"))
    await _handled(service, engine, broker, first, second, concurrency=1)
    assert await _published(service, engine) == [
        ("warehouse.shelf-emptied.v1", "saga-1", first.id),
        ("warehouse.shelf-emptied.v1", second.id, second.id),
    ]


async def test_an_aggregate_that_was_loaded_records_as_well(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The usual case: load, change, and the change is published; each with the cause of its own handling."""
    service = _service()
    await _install(service, engine)
    new, taken = an_event(OrderPlaced("o-1")), an_event(OrderPlaced("o-1", "take"), correlationid="saga-2")
    await _handled(service, engine, broker, new, taken, concurrency=1)
    assert await _published(service, engine) == [
        ("warehouse.shelf-emptied.v1", new.id, new.id),
        ("warehouse.shelf-emptied.v1", "saga-2", taken.id),
    ]


async def test_in_a_group_each_recorded_event_names_its_own_cause(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Messages that share a session and a transaction do not share a saga."""
    service = _service()
    await _install(service, engine)
    sent = [an_event(OrderPlaced(f"o-{n}"), correlationid=f"saga-{n}") for n in range(8)]
    consumer = await _handled(service, engine, broker, *sent, batch=8, concurrency=1)
    assert consumer.seen.of(obs.GroupHandled)
    assert sorted(await _published(service, engine)) == sorted(
        ("warehouse.shelf-emptied.v1", f"saga-{n}", sent[n].id) for n in range(8)
    )


async def test_what_was_recorded_is_undone_with_the_handler(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """After a business failure only the failure event is published, although the aggregate's was flushed already."""
    service = _service()
    await _install(service, engine)
    short = an_event(OrderPlaced("o-1", "short"))
    await _handled(service, engine, broker, short)
    assert await _published(service, engine) == [("warehouse.stock-short.v1", short.id, short.id)]


async def test_a_listener_of_the_flush_records_within_the_saga(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """What is recorded by the last flush, after the handler returned, belongs to the message as well."""

    class Flushing(Session):
        pass

    @sqlalchemy_event.listens_for(Flushing, "before_flush")
    def note(session: Session, _context: object, _instances: object) -> None:
        for shelf in [each for each in session.new if isinstance(each, Shelf)]:
            if shelf.taken != 7:
                shelf.taken = 7
                shelf.record(ShelfEmptied(shelf.order_id), key=shelf.order_id)

    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        ctx.session.add(Shelf(order_id=event.order_id))

    await _install(service, engine)
    sent = an_event(OrderPlaced("o-1"), correlationid="saga-1")
    await send(broker, service, sent)
    seen = Seen()
    sessions = async_sessionmaker(engine, sync_session_class=Flushing)
    consumer = Consumer(
        service.inbox, engine=engine, broker=broker, settings=quick_settings(), sessions=sessions, observer=seen
    )
    await _run_until_acknowledged(consumer, seen)
    assert await _published(service, engine) == [("warehouse.shelf-emptied.v1", "saga-1", sent.id)]


async def test_a_factory_that_captures_for_another_outbox_keeps_it(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Whoever gave the factory to an outbox has chosen; the inbox's own is only the default."""
    service = _service()
    await _install(service, engine)
    theirs = Outbox(source="https://other.example", tables=service.outbox.tables)
    sessions = async_sessionmaker(engine)
    theirs.capture(sessions)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    seen = Seen()
    consumer = Consumer(
        service.inbox, engine=engine, broker=broker, settings=quick_settings(), sessions=sessions, observer=seen
    )
    await _run_until_acknowledged(consumer, seen)
    (row,) = await service.rows(engine, service.outbox.tables.outbox)
    assert row.source == "https://other.example"


async def _run_until_acknowledged(consumer: Consumer, seen: Seen) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await seen.until(obs.Acknowledged)
        consumer.stop()
