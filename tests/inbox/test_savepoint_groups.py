"""Groups with savepoints: one transaction for what waits, and for each message its own end."""

from __future__ import annotations

import math
from collections import Counter

import anyio
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.clock import SystemClock
from sagapost.inbox import BusinessFailure, Consumer, Context, Instead, Reject, Retry, SyncContext
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.declared.settings import GROUPS
from sagapost.inbox.handling import pace
from tests.inbox.harness import (
    FAST,
    OrderPlaced,
    Recorder,
    Service,
    StockReserved,
    StockShort,
    an_event,
    quick_settings,
    running,
    send,
)


def _most(_: pace.Pace) -> int:
    """Return the size of the largest group, whatever was measured."""
    return pace.MOST


@pytest.fixture(autouse=True)
def groups_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers count as quick from the first call on, however slow this machine is."""
    monkeypatch.setattr(pace, "_QUICK", math.inf)
    monkeypatch.setattr(pace.Pace, "size", _most)


def grouped(seen: Recorder) -> int:
    """Return how many messages were committed in groups."""
    return sum(group.messages for group in seen.of(obs.GroupCommitted))


@pytest.mark.parametrize("ordered", [False, True])
async def test_each_answer_in_a_group_is_what_it_is_alone_and_is_asked_for_once(
    engine: AsyncEngine, broker: MemoryBroker, ordered: bool
) -> None:
    """An error, a rejection, a retry, a business failure and something else instead, among messages that are well."""
    service, calls = Service(ordered=ordered), Counter[str]()

    @service.inbox.on(OrderPlaced, emits=[StockReserved, StockShort])
    async def reserve(placed: OrderPlaced, ctx: Context) -> None:
        async def work(ctx: Context) -> None:
            await ctx.session.execute(service.write(placed.order_id, "instead"))

        calls[placed.order_id] += 1
        await ctx.session.execute(service.write(placed.order_id))
        await ctx.publish(StockReserved(placed.order_id))
        match placed.order_id:
            case "03":
                raise ValueError("boom")
            case "05":
                raise Reject("no")
            case "07":
                raise BusinessFailure(StockShort(placed.order_id))
            case "08":
                raise Retry(reason="later")
            case "10":
                raise Instead(work, reason="something else")
            case _:
                return

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(f"{n:02}"), key=f"k{n}") for n in range(14)))
    async with running(service, engine, broker, batch=GROUPS, concurrency=1) as consumer:
        await consumer.settled(14)
        assert grouped(consumer.seen)
        assert not consumer.seen.of(obs.GroupUndone)
    written = {row.order_id: row.note for row in await service.rows(engine, service.effects)}
    assert written == {f"{n:02}": "instead" if n == 10 else "" for n in range(14) if n not in {3, 5, 7, 8}}
    assert Counter(await service.published(engine)) == {
        "warehouse.stock-reserved.v1": 9,
        "warehouse.stock-short.v1": 1,
    }
    parked = {row.reason: row for row in await service.parked(engine)}
    assert {reason: row.attempts for reason, row in parked.items()} == {"failed": 1, "rejected": 1, "retry": 1}
    assert set(calls.values()) == {1}


async def test_what_comes_after_a_failure_in_order_waits_for_it(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """In an ordered inbox: later messages of the key are left with it, those of others go on."""
    service, tries = Service(ordered=True), Counter[str]()

    @service.inbox.on(OrderPlaced)
    async def reserve(placed: OrderPlaced, ctx: Context) -> None:
        tries[placed.order_id] += 1
        if placed.order_id in {"a-02", "a-05"} and tries[placed.order_id] < 3:
            raise ConnectionError
        await ctx.session.execute(service.write(placed.order_id))

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(f"{key}-{n:02}"), key=key) for n in range(10) for key in "ab"))
    async with running(service, engine, broker, batch=GROUPS, concurrency=2, retry=FAST) as consumer:
        await consumer.seen.until_true(lambda: consumer.statistics.handled == 20)
        assert grouped(consumer.seen)
    written = await service.written(engine)
    for key in "ab":
        assert [order for order in written if order.startswith(key)] == [f"{key}-{n:02}" for n in range(10)]


async def test_duplicates_in_and_across_groups(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Copies within one group, and copies of what an earlier one committed, have no second effect."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    def reserve(placed: OrderPlaced, ctx: SyncContext) -> None:
        ctx.session.execute(service.write(placed.order_id))

    await service.install(engine)
    events = [an_event(OrderPlaced(f"{n:02}")) for n in range(10)]
    await send(broker, service, *events, *events)
    async with running(service, engine, broker, batch=GROUPS, concurrency=1) as consumer:
        await consumer.settled(20)
        await send(broker, service, *events)
        await consumer.settled(30)
        assert (consumer.statistics.handled, consumer.statistics.duplicates) == (10, 20)
    assert sorted(await service.written(engine)) == [f"{n:02}" for n in range(10)]


async def test_a_deadlock_of_two_groups_costs_no_message_its_effect(
    postgresql_engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Two groups update two rows in opposite order: one is undone, its messages are handled alone."""
    service, first_locks = Service(), anyio.Event()
    both = Counter[str]()

    @service.inbox.on(OrderPlaced)
    async def reserve(placed: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": int(placed.note)})
        both[placed.note] += 1
        if len(both) == 2:
            first_locks.set()
        if not first_locks.is_set():
            with anyio.move_on_after(5):
                await first_locks.wait()
        await ctx.session.execute(service.write(placed.order_id))

    await service.install(postgresql_engine)
    orders = [("a", "1"), ("b", "2"), ("c", "2"), ("d", "1")]
    await send(broker, service, *(an_event(OrderPlaced(name, note=note)) for name, note in orders))
    async with running(service, postgresql_engine, broker, batch=GROUPS, concurrency=2) as consumer:
        await consumer.settled(4)
    assert sorted(await service.written(postgresql_engine)) == ["a", "b", "c", "d"]
    assert await service.parked(postgresql_engine) == []


class Listened(Session):
    """A session class of the service's own, with listeners."""


async def test_listeners_of_the_session_run_before_and_after_the_commit(
    postgresql_engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """`before_commit` writes within the message's savepoint; `after_commit` sees what is committed, once for each."""
    service, committed = Service(), list[int]()

    @service.inbox.on(OrderPlaced)
    async def reserve(placed: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(placed.order_id))
        if placed.order_id == "3":
            raise Reject("no")

    def before(session: Session) -> None:
        session.execute(service.write("written before the commit"))

    seen = Recorder()

    def after(_session: Session) -> None:
        committed.append(len(seen.of(obs.GroupCommitted)))

    event.listen(Listened, "before_commit", before)
    event.listen(Listened, "after_commit", after)
    await service.install(postgresql_engine)
    await send(broker, service, *(an_event(OrderPlaced(f"{n}")) for n in range(8)))
    sessions = async_sessionmaker(class_=AsyncSession, sync_session_class=Listened, expire_on_commit=False)
    consumer = Consumer(
        service.inbox,
        engine=postgresql_engine,
        broker=broker,
        settings=quick_settings(batch=GROUPS, concurrency=1),
        sessions=sessions,
        observer=seen,
        clock=SystemClock(),
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await seen.until_true(lambda: consumer.statistics.acknowledged == 8)
        consumer.stop()
    assert (await service.written(postgresql_engine)).count("written before the commit") == 7
    alone = len(seen.of(obs.Handled)) - grouped(seen)
    assert len(committed) == 7
    assert committed.count(0) <= alone


def test_handlers_are_quick_by_what_they_took_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown ones are not; a stall shows at once and is forgotten; what cost a group its transaction stays alone."""
    monkeypatch.undo()
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(_placed: OrderPlaced, _ctx: Context) -> None: ...

    placed = an_event(OrderPlaced("1"))
    message = Message(placed, placed.type, b"key", service.inbox.calls(placed.type, placed.type), None)
    paces = pace.Pace()
    assert (paces.is_quick(message), paces.size()) == (False, 1)
    for _ in range(10):
        paces.took(message, 0.001)
    assert (paces.is_quick(message), paces.size()) == (True, pace.MOST)
    paces.took(message, 3.0)
    assert not paces.is_quick(message)
    assert paces.size() < pace.MOST
    for _ in range(10):
        paces.took(message, 0.03)
    assert paces.is_quick(message)
    assert 4 <= paces.size() <= 8
    paces.disturbed([message])
    assert not paces.is_quick(message)
