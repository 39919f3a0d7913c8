"""What could not be read as an event is read again by the consumer when it is redriven, with its settings of now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.cloudevents import read_again, read_message
from sagapost.adapters.memory import MemoryBroker
from sagapost.core.audit import Decision
from sagapost.core.broker import Malformed
from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError
from sagapost.core.foreign import ForeignMessages, Incoming
from sagapost.inbox import Context
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.kept.envelope import envelope_of, restore
from sagapost.inbox.operated.redrive import ParkedMessages
from sagapost.inbox.operated.selection import PARKED
from tests.inbox.harness import OrderPlaced, Service, running

TOPIC = "orders.order-placed.v1"
NOW = Decision("ada", "read it now")


def service(*, named: bool = False) -> Service:
    """Return a service that writes each order; `named`: also a second time, in a transaction of its own."""
    made = Service()

    @made.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(made.write(event.order_id))

    if named:

        @made.inbox.on(OrderPlaced, transaction="billing")
        async def bill(event: OrderPlaced, ctx: Context) -> None:
            await ctx.session.execute(made.write(event.order_id, "billed"))

    return made


async def parked(
    made: Service, engine: AsyncEngine, *bodies: bytes, headers: Mapping[str, object] | None = None
) -> None:
    """Let a consumer that wants a message id park messages without one."""
    broker = MemoryBroker()
    await made.install(engine)
    await broker.declare(made.inbox.queue)
    for body in bodies:
        broker.inject(TOPIC, body, headers=headers or {}, content_type="application/json")
    async with running(made, engine, broker) as consumer:
        await consumer.settled(len(bodies))


def digesting() -> MemoryBroker:
    """Return a broker whose consumers take an id from the content."""
    return MemoryBroker(foreign_policy=ForeignMessages(id_from="content"))


async def test_what_was_parked_for_want_of_an_id_is_handled_under_another_setting(engine: AsyncEngine) -> None:
    """A redrive makes it due, the consumer reads it by its own settings; nothing has to be edited."""
    made = service()
    await parked(made, engine, b'{"order_id":"1"}', b'{"order_id":"2"}')
    operator = ParkedMessages(engine, made.tables, "warehouse")
    assert {each.reason for each in await operator.list()} == {"undecodable"}
    tried = await operator.redrive(PARKED.select(), NOW, dry_run=True)
    assert (tried.waiting, tried.unreadable) == (2, 2)
    assert {each.state for each in await operator.list()} == {"dead"}
    await operator.redrive(PARKED.select(), NOW)
    async with running(made, engine, digesting()) as consumer:
        await consumer.seen.until(obs.Handled, 2)
    assert sorted(await made.written(engine)) == ["1", "2"]
    assert await made.parked(engine) == []


async def test_it_has_the_identity_of_an_event_then(engine: AsyncEngine) -> None:
    """A copy that comes later, or was handled meanwhile, is a duplicate: one effect whatever the order."""
    made = service()
    await parked(made, engine, b'{"order_id":"1"}')
    operator = ParkedMessages(engine, made.tables, "warehouse")
    broker = digesting()
    await broker.declare(made.inbox.queue)
    broker.inject(TOPIC, b'{"order_id":"1"}', headers={}, content_type="application/json")
    async with running(made, engine, broker) as consumer:
        await consumer.seen.until(obs.Handled)
        await operator.redrive(PARKED.select(), NOW)
        await consumer.seen.until(obs.Duplicate)
    assert await made.written(engine) == ["1"]
    assert await made.parked(engine) == []


async def test_every_transaction_of_handlers_gets_it(engine: AsyncEngine) -> None:
    """Where handlers have transactions of their own, the message is handled in each, once."""
    made = service(named=True)
    await parked(made, engine, b'{"order_id":"1"}')
    await ParkedMessages(engine, made.tables, "warehouse").redrive(PARKED.select(), NOW)
    async with running(made, engine, digesting()) as consumer:
        await consumer.seen.until(obs.Handled, 2)
    rows = await made.rows(engine, made.effects)
    assert sorted((row.order_id, row.note) for row in rows) == [("1", ""), ("1", "billed")]
    assert await made.parked(engine) == []


@pytest.mark.parametrize(
    ("headers", "attributes"),
    [
        ({}, {"id": "4711"}),
        ({}, {"id": "4711", "source": "erp"}),
        ({"ce-specversion": "1.0", "ce-source": "urn:erp", "ce-type": TOPIC}, {"id": "4711"}),
    ],
)
async def test_an_operator_gives_what_it_lacks(
    engine: AsyncEngine, headers: dict[str, object], attributes: dict[str, str]
) -> None:
    """An id alone is enough where the rest is in the message; where, depends on how its producer wrote it."""
    made = service()
    await parked(made, engine, b'{"order_id":"1"}', headers=headers)
    operator = ParkedMessages(engine, made.tables, "warehouse")
    (message,) = await operator.list()
    await operator.edit(message.id, NOW, attributes=attributes)
    (message,) = await operator.list()
    assert isinstance(message.content, Malformed)
    assert "a redrive lets it be read again" in message.content.reason
    with pytest.raises(ConfigurationError, match="needs some text"):
        await operator.edit(message.id, NOW, attributes={"id": "a\x00"})
    await operator.redrive(PARKED.select(numbers=[message.id]), NOW)
    async with running(made, engine, MemoryBroker()) as consumer:
        (handled,) = await consumer.seen.until(obs.Handled)
    assert handled.event_id.startswith("4711")
    assert await made.written(engine) == ["1"]
    (first, *_) = reversed(await made.decisions(engine))
    assert (first.action, first.original is not None) == ("edit", True)


def test_what_came_beside_the_body_is_kept_for_reading_it_again() -> None:
    """Content type, encoding, application, correlation and time are those of the delivery."""
    sent = datetime(2026, 11, 23, 8, tzinfo=UTC)
    incoming = Incoming(
        body=b'{"order_id":"1"}',
        topic=TOPIC,
        headers={"tenant": "blue"},
        content_type="application/json",
        app_id="erp",
        correlation_id="s-1",
        timestamp=sent,
    )
    message = read_message(incoming, ForeignMessages())
    assert isinstance(message, Malformed)
    kept = restore(envelope_of(message), message.body)
    assert kept == message
    assert isinstance(kept, Malformed)
    policy, later = ForeignMessages(id_from="content"), datetime(2026, 11, 24, tzinfo=UTC)
    event = read_again(kept, TOPIC, policy, received_at=later)
    assert event == read_message(incoming, policy)
    assert isinstance(event, Event)
    assert (event.source, event.correlationid, event.time, event.extensions) == (
        "erp",
        "s-1",
        sent,
        {"tenant": "blue"},
    )
    # Without a time of its own it is from when it came.
    bare = read_message(Incoming(body=b"{}", topic=TOPIC, headers={}), ForeignMessages())
    assert isinstance(bare, Malformed)
    undated = read_again(bare, TOPIC, policy, received_at=later)
    assert isinstance(undated, Event)
    assert undated.time == later
