"""What an operator can see and do, and that every decision leaves a trace."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio
import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.audit import Decision
from sagapost.core.broker import Malformed
from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError, ConflictError, NotFoundError
from sagapost.core.where import Selection
from sagapost.inbox import Context
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.kept.envelope import restore
from sagapost.inbox.operated.redrive import ParkedMessages
from sagapost.inbox.operated.selection import PARKED
from tests.inbox.harness import FAST, OrderPlaced, Recorder, Service, an_event, running, send


class Repairable:
    """A service whose handler fails for every order until it is repaired."""

    def __init__(self) -> None:
        self.service = Service()
        self.repaired = False

        @self.service.inbox.on(OrderPlaced)
        async def reserve(event: OrderPlaced, ctx: Context) -> None:
            if not self.repaired:
                raise ConnectionError
            await ctx.session.execute(self.service.write(event.order_id))

    async def with_parked(self, engine: AsyncEngine, broker: MemoryBroker, *orders: str) -> ParkedMessages:
        """Park these orders as dead letters, one per ordering key and saga."""
        await self.service.install(engine)
        events = [an_event(OrderPlaced(order), id=order, key=f"k-{order}", correlationid="saga") for order in orders]
        await send(broker, self.service, *events)
        async with running(self.service, engine, broker, concurrency=1) as consumer:
            await consumer.settled(len(orders))
        return ParkedMessages(engine, self.service.tables, "warehouse")


async def test_looking(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Pages in the order of parking, filters, counts; the event comes back as it was sent."""
    operator = await Repairable().with_parked(engine, broker, "a", "b", "c")
    listed = await operator.list(limit=2)
    assert [message.content.id for message in listed if isinstance(message.content, Event)] == ["a", "b"]
    rest = await operator.list(after=listed[-1].id)
    assert len(rest) == 1
    assert (rest[0].state, rest[0].reason, rest[0].attempts) == ("dead", "failed", 1)
    (found,) = await operator.list(PARKED.equal(key="k-b"))
    assert isinstance(found.content, Event)
    assert (found.content.data, found.content.partitionkey) == (b'{"order_id":"b","note":""}', "k-b")
    assert found.traceback is not None
    counts = await operator.counts()
    assert (counts.total, counts.by_state, counts.by_reason) == (3, {"dead": 3}, {"failed": 3})
    assert counts.oldest is not None


async def test_nothing_is_parked_for_a_consumer_that_never_ran(engine: AsyncEngine) -> None:
    """Asking about an unknown name is no error and creates nothing."""
    service = Service()
    await service.install(engine)
    operator = ParkedMessages(engine, service.tables, "nobody")
    assert await operator.list() == ()
    assert (await operator.counts()).total == 0
    assert await operator.discard(PARKED.select(), Decision("ada", "x")) == 0
    assert await service.count(engine, service.tables.consumers) == 0


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (PARKED.equal(event_id="b"), {"b"}),
        (PARKED.equal(key="k-c"), {"c"}),
        (PARKED.equal(correlationid="saga", state="dead"), {"a", "b", "c"}),
        (PARKED.equal(reason="rejected"), set[str]()),
        (PARKED.select(), {"a", "b", "c"}),
    ],
)
async def test_redrive_of_one_a_key_a_filter_or_all(
    engine: AsyncEngine, broker: MemoryBroker, selection: Selection, expected: set[str]
) -> None:
    """Exactly what is meant is handled again; the rest stays; one audit row per message; a dry run changes nothing."""
    repairable = Repairable()
    service = repairable.service
    operator = await repairable.with_parked(engine, broker, "a", "b", "c")
    dry = await operator.redrive(selection, Decision("ada", "looking"), dry_run=True)
    assert dry.waiting == len(expected)
    assert await repairable.service.decisions(engine) == []
    repairable.repaired = True
    done = await operator.redrive(selection, Decision("ada", "printer on again"))
    assert done == dry
    async with running(service, engine, broker) as consumer:
        await consumer.seen.until(obs.Handled, len(expected))
    assert set(await service.written(engine)) == expected
    assert len(await service.parked(engine)) == 3 - len(expected)
    entries = await repairable.service.decisions(engine)
    assert {entry.event_id for entry in entries} == expected
    assert {(entry.action, entry.actor, entry.reason) for entry in entries} <= {("redrive", "ada", "printer on again")}


async def test_a_redriven_message_has_a_fresh_budget(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Failing again it is parked again, counting from one."""
    repairable = Repairable()
    operator = await repairable.with_parked(engine, broker, "a")
    await operator.redrive(PARKED.select(), Decision("ada", "try"))
    async with running(repairable.service, engine, broker) as consumer:
        (parked,) = await consumer.seen.until(obs.Parked)
    assert (parked.state, parked.attempts) == ("dead", 1)


async def test_a_rate_spreads_a_redrive_over_time(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """At fifty a second the sixth message starts a tenth of a second after the first."""
    repairable = Repairable()
    operator = await repairable.with_parked(engine, broker, *"abcdef")
    await operator.redrive(PARKED.select(), Decision("ada", "gently"), per_second=50)
    due = [message.next_attempt_at for message in await operator.list()]
    moments = [moment for moment in due if moment is not None]
    assert moments == sorted(moments)
    assert 0.09 < (moments[-1] - moments[0]).total_seconds() < 5
    with pytest.raises(ConfigurationError, match="positive"):
        await operator.redrive(PARKED.select(), Decision("ada", "x"), per_second=0)


async def test_many_are_redriven_in_chunks(
    postgresql_engine: AsyncEngine, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More messages than fit one transaction, all of them, none twice."""
    monkeypatch.setattr("sagapost.inbox.operated.redrive._CHUNK", 30)
    repairable = Repairable()
    names = [f"{n:04}" for n in range(100)]
    operator = await repairable.with_parked(postgresql_engine, broker, *names)
    redrive = await operator.redrive(PARKED.select(), Decision("ada", "all"))
    assert redrive.waiting == 100
    repairable.repaired = True
    async with running(repairable.service, postgresql_engine, broker, retry=FAST) as consumer:
        await consumer.seen.until(obs.Handled, 100)
    assert sorted(await repairable.service.written(postgresql_engine)) == names
    assert len(await repairable.service.decisions(postgresql_engine)) == 100


async def test_discard_keeps_the_message_in_the_audit_and_its_key_known(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """What is given up can still be read, and does not come back with a redelivery."""
    repairable = Repairable()
    service = repairable.service
    operator = await repairable.with_parked(engine, broker, "a", "b")
    assert await operator.discard(PARKED.equal(event_id="a"), Decision("ada", "a test"), dry_run=True) == 1
    assert len(await service.parked(engine)) == 2
    assert await operator.discard(PARKED.equal(event_id="a"), Decision("ada", "a test")) == 1
    (entry,) = await service.decisions(engine)
    assert (entry.action, entry.reason) == ("discard", "a test")
    assert (entry.desk, entry.place, entry.event_id, entry.key) == ("parked", "warehouse", "a", "k-a")
    assert entry.original is not None
    assert entry.data is not None
    original = restore(entry.original, entry.data)
    assert isinstance(original, Event)
    assert original.data == b'{"order_id":"a","note":""}'
    repairable.repaired = True
    await send(broker, service, an_event(OrderPlaced("a"), id="a"))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
        assert consumer.statistics.duplicates == 1
    assert await service.written(engine) == []


async def test_edit_and_redrive_keeps_the_original(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The corrected message is handled; the audit holds what it was before."""
    repairable = Repairable()
    seen = Recorder()
    operator = await repairable.with_parked(engine, broker, "a")
    operator = ParkedMessages(engine, repairable.service.tables, "warehouse", observer=seen)
    (message,) = await operator.list()
    await operator.edit(message.id, Decision("ada", "typo"), data=b'{"order_id":"corrected"}')
    await operator.redrive(PARKED.equal(id=message.id), Decision("ada", "typo"))
    repairable.repaired = True
    async with running(repairable.service, engine, broker) as consumer:
        await consumer.seen.until(obs.Handled)
    assert await repairable.service.written(engine) == ["corrected"]
    entries = await repairable.service.decisions(engine)
    assert [entry.action for entry in entries] == ["redrive", "edit"]
    assert entries[1].data == b'{"order_id":"a","note":""}'
    assert [type(event).__name__ for event in seen.events] == ["Edited", "Redriven"]


async def test_a_message_that_is_no_event_becomes_one_by_editing(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Read again as it is, it is parked anew; once it is given the attributes it lacks, it is handled."""
    repairable = Repairable()
    service = repairable.service
    repairable.repaired = True
    await service.install(engine)
    await broker.declare(service.inbox.queue)
    broker.inject("orders.order-placed.v1", b'{"order_id":"o-1"}')
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
        operator = ParkedMessages(engine, service.tables, "warehouse")
        (message,) = await operator.list()
        assert isinstance(message.content, Malformed)
        redrive = await operator.redrive(PARKED.select(), Decision("ada", "try"))
        assert (redrive.waiting, redrive.unreadable) == (1, 1)
        await consumer.seen.until(obs.Parked, 2)
        assert [(each.state, each.reason) for each in await operator.list()] == [("dead", "undecodable")]
        with pytest.raises(ConfigurationError, match="id, source, type"):
            await operator.edit(message.id, Decision("ada", "complete it"))
        with pytest.raises(ConfigurationError, match="partitionkey cannot be edited"):
            await operator.edit(message.id, Decision("ada", "x"), attributes={"partitionkey": "k"})
        attributes = {"id": "1", "source": "urn:erp", "type": "orders.order-placed.v1"}
        await operator.edit(message.id, Decision("ada", "complete it"), attributes=attributes)
        redrive = await operator.redrive(PARKED.select(), Decision("ada", "complete now"))
        assert (redrive.waiting, redrive.unreadable) == (1, 0)
        await consumer.seen.until(obs.Handled)
    assert await service.written(engine) == ["o-1"]


def test_who_and_why_are_asked_for() -> None:
    """No decision without a name and a reason that a database keeps."""
    for actor, reason in ((" ", "x"), ("ada", "")):
        with pytest.raises(ConfigurationError, match="who decides"):
            Decision(actor, reason)
    for odd in ("a\x00b", "a\udcffb"):
        with pytest.raises(ConfigurationError, match="NUL character or bytes that are no UTF-8"):
            Decision("ada", odd)


async def test_a_message_whose_round_is_running_is_left_alone(
    postgresql_engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """A redrive and a discard pass over what a consumer is handling at the moment, and say so."""
    service = Service()
    started, go_on = anyio.Event(), anyio.Event()
    first = True

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        nonlocal first
        if first:
            first = False
            raise ConnectionError
        started.set()
        await go_on.wait()
        await ctx.session.execute(service.write(event.order_id))

    await service.install(postgresql_engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, postgresql_engine, broker, retry=FAST) as consumer:
        with anyio.fail_after(10):
            await started.wait()
        operator = ParkedMessages(postgresql_engine, service.tables, "warehouse")
        redrive = await operator.redrive(PARKED.select(), Decision("ada", "hurry"))
        assert (redrive.waiting, redrive.in_work) == (0, 1)
        assert await operator.discard(PARKED.select(), Decision("ada", "hurry")) == 0
        go_on.set()
        await consumer.seen.until(obs.Handled)
    assert await service.written(postgresql_engine) == ["o-1"]


async def test_an_edit_says_whether_the_message_is_there(postgresql_engine: AsyncEngine, broker: MemoryBroker) -> None:
    """A number that names nothing is not found; one that is being handled is a conflict, and nothing is written."""
    repairable = Repairable()
    operator = await repairable.with_parked(postgresql_engine, broker, "a")
    (message,) = await operator.list()
    with pytest.raises(NotFoundError, match="no parked message 99"):
        await operator.edit(99, Decision("ada", "typo"), data=b"{}")
    tables = repairable.service.tables
    async with postgresql_engine.begin() as connection:
        later = {"state": "waiting", "claimed": 1, "next_attempt_at": datetime.now(UTC) + timedelta(hours=1)}
        await connection.execute(update(tables.parked).values(later))
    with pytest.raises(ConflictError, match="is being handled just now"):
        await operator.edit(message.id, Decision("ada", "typo"), data=b"{}")
    async with postgresql_engine.connect() as connection:
        assert (await connection.execute(select(tables.audit.decisions))).all() == []
