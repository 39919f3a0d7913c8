"""Messages of other producers, of other versions, of no known type, and messages that are nothing at all."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core import event
from sagapost.core.foreign import ForeignMessages
from sagapost.inbox import Context
from sagapost.inbox.declared import observations as obs
from tests.inbox.harness import OrderPlaced, Service, an_event, running, send


def a_service(**options: object) -> Service:
    """A service whose handler writes down the order and the ids it saw."""
    service = Service(**options)  # type: ignore[arg-type]  # passed on as they are

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id, note=f"{ctx.event.source} {ctx.event.id}"))

    return service


BODY = b'{"order_id":"o-1","note":""}'
TYPE = "orders.order-placed.v1"


@pytest.mark.parametrize("prefix", ["ce-", "ce_", "cloudEvents_", "cloudEvents:"])
async def test_binary_mode_with_any_prefix_in_use(engine: AsyncEngine, broker: MemoryBroker, prefix: str) -> None:
    """The identity is taken from the headers whatever their prefix, so a copy with another prefix is a duplicate."""
    service = a_service()
    await service.install(engine)
    await broker.declare(service.inbox.queue)
    for each in (prefix, "ce-"):
        broker.inject(
            TYPE,
            BODY,
            headers={
                f"{each}{name}": value
                for name, value in {"specversion": "1.0", "id": "7", "source": "urn:erp", "type": TYPE}.items()
            },
            content_type="application/json",
        )
    async with running(service, engine, broker) as consumer:
        await consumer.settled(2)
        assert consumer.statistics.duplicates == 1
    (row,) = await service.rows(engine, service.effects)
    assert row.note == "urn:erp 7"


async def test_structured_mode(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The whole envelope in the body."""
    service = a_service()
    await service.install(engine)
    await broker.declare(service.inbox.queue)
    body = {"specversion": "1.0", "id": "8", "source": "urn:erp", "type": TYPE, "data": {"order_id": "o-1"}}
    broker.inject(TYPE, msgspec.json.encode(body), content_type="application/cloudevents+json; charset=utf-8")
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    (row,) = await service.rows(engine, service.effects)
    assert (row.order_id, row.note) == ("o-1", "urn:erp 8")


async def test_a_plain_message_with_a_message_id(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Its message id, application and type property make its identity."""
    service = a_service()
    await service.install(engine)
    await broker.declare(service.inbox.queue)
    for _ in range(2):
        broker.inject(TYPE, BODY, message_id="m-1", app_id="erp", type=TYPE)
    async with running(service, engine, broker) as consumer:
        await consumer.settled(2)
    (row,) = await service.rows(engine, service.effects)
    assert row.note == "erp m-1"


async def test_without_an_id_it_is_parked_or_known_by_its_content(engine: AsyncEngine) -> None:
    """By default nothing that could not be recognised again is handled; by choice the content is the identity."""
    for policy, handled in (("message", 0), ("content", 1)):
        broker = MemoryBroker(foreign_policy=ForeignMessages(id_from=policy))  # type: ignore[arg-type]
        service = a_service(name=f"warehouse-{policy}")
        await service.install(engine)
        await broker.declare(service.inbox.queue)
        for _ in range(2):
            broker.inject(TYPE, BODY, app_id="erp", type=TYPE)
        async with running(service, engine, broker) as consumer:
            await consumer.settled(2)
            assert consumer.statistics.handled == handled
            assert consumer.statistics.duplicates == handled
    # Without an id two that are equal may have been meant to be two: neither is lost.
    reasons = [(each.state, each.reason) for each in await service.parked(engine)]
    assert reasons == [("dead", "undecodable")] * 2


async def test_data_that_does_not_fit_is_parked_with_the_field(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The reason names what is wrong; the message is kept whole; others flow."""
    service = a_service()
    await service.install(engine)
    wrong = an_event({"order": 1}, type=TYPE)
    await send(broker, service, wrong, an_event(OrderPlaced("good")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(2)
    (parked,) = await service.parked(engine)
    assert (parked.state, parked.reason, parked.event_id) == ("dead", "undecodable", wrong.id)
    assert "order_id" in parked.error
    assert parked.data == wrong.data
    assert await service.written(engine) == ["good"]


async def test_what_no_column_takes_is_parked_all_the_same(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """NUL characters and lone surrogates in a stranger's attributes neither fail the INSERT nor are lost."""
    service = a_service()
    await service.install(engine)
    await broker.declare(service.inbox.queue)
    broker.inject(TYPE, b"\x00\xff", message_id="a\x00b\ud800", app_id="c\x00", headers={"x": "\x00"})
    broker.inject(TYPE, b"{", headers={"ce-id": "\x00"}, message_id="d\x00")
    async with running(service, engine, broker) as consumer:
        await consumer.settled(2)
    event_row, malformed_row = await service.parked(engine)
    assert event_row.data == b"\x00\xff"
    assert "\x00" not in event_row.event_id
    assert "a\\u0000b\\ud800" in event_row.envelope
    assert malformed_row.reason == "undecodable"


@pytest.mark.parametrize("policy", ["park", "ignore", "reject"])
async def test_a_type_nobody_takes(engine: AsyncEngine, broker: MemoryBroker, policy: str) -> None:
    """It is parked, acknowledged, or handed to the broker's dead letters, as the inbox chooses."""
    service = a_service(unknown=policy)
    await service.install(engine)
    await send(broker, service, an_event({"a": 1}, type="other.v1"), topic=TYPE)
    async with running(service, engine, broker) as consumer:
        if policy == "park":
            await consumer.settled(1)
            (parked,) = await service.parked(engine)
            assert (parked.state, parked.reason, parked.attempts) == ("waiting", "unknown-type", 0)
            assert "'other.v1'" in parked.error
        else:
            await consumer.seen.until(obs.Ignored)
    assert len(broker.dead_letters("warehouse")) == (1 if policy == "reject" else 0)
    assert broker.waiting("warehouse") == []


@event("orders.order-placed.v0")
class OrderPlacedV0(msgspec.Struct):
    """The older version."""

    id: int


@event("orders.order-placed.v00")
class OrderPlacedV00(msgspec.Struct):
    """The version before that."""

    number: str


async def test_older_versions_are_converted_for_handlers_of_the_newer(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Conversions chain; a handler of the old version keeps getting it as it is; the queue is bound to all of them."""
    service = a_service()

    @service.inbox.upcast(OrderPlacedV0, to=OrderPlaced)
    def from_v0(old: OrderPlacedV0) -> OrderPlaced:
        return OrderPlaced(f"order-{old.id}")

    @service.inbox.upcast(OrderPlacedV00, to=OrderPlacedV0)
    def from_v00(old: OrderPlacedV00) -> OrderPlacedV0:
        return OrderPlacedV0(int(old.number))

    seen: list[object] = []

    @service.inbox.on(OrderPlacedV0)
    async def old_handler(event: OrderPlacedV0, ctx: Context) -> None:
        seen.append(event)

    await service.install(engine)
    assert service.inbox.queue.topics == {TYPE, "orders.order-placed.v0", "orders.order-placed.v00"}
    await send(
        broker, service, an_event(OrderPlaced("new")), an_event(OrderPlacedV0(1)), an_event(OrderPlacedV00("2"))
    )
    async with running(service, engine, broker, concurrency=1) as consumer:
        await consumer.settled(3)
    assert await service.written(engine) == ["new", "order-1", "order-2"]
    assert seen == [OrderPlacedV0(1), OrderPlacedV0(2)]


async def test_a_conversion_that_fails_is_a_reason_to_park(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The reason names the conversion and the kind of error, not the data."""
    service = a_service()

    @service.inbox.upcast(OrderPlacedV00, to=OrderPlaced)
    def convert(old: OrderPlacedV00) -> OrderPlaced:
        return OrderPlaced(str(int(old.number)))

    await service.install(engine)
    await send(broker, service, an_event(OrderPlacedV00("secret")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    (parked,) = await service.parked(engine)
    assert parked.reason == "undecodable"
    assert "conversion to 'orders.order-placed.v1' raised ValueError" in parked.error
    assert "secret" not in parked.error


async def test_patterns_hear_everything_and_get_the_raw_data(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """A handler of `orders.#` beside one of a type: both are called, the pattern's with undecoded bytes."""
    service = a_service()
    heard: list[tuple[str, object]] = []

    @service.inbox.on("orders.#")
    async def listen(data: bytes, ctx: Context) -> None:
        heard.append((ctx.event.type, data))

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")), an_event({"x": 1}, type="orders.other.v3"))
    async with running(service, engine, broker, concurrency=1) as consumer:
        await consumer.settled(2)
    assert heard == [(TYPE, b'{"order_id":"o-1","note":""}'), ("orders.other.v3", b'{"x":1}')]
    assert await service.written(engine) == ["o-1"]
