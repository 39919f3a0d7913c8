"""Foreign messages in an inbox with a policy of its own: read, handled once, and parked alone where that fails."""

from __future__ import annotations

import asyncio
import json

import aiormq
import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.foreign import CapReader, MassTransitReader
from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.audit import Decision
from sagapost.core.foreign import ForeignMessages, Incoming, Reading
from sagapost.inbox import Context
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.operated.redrive import ParkedMessages
from sagapost.inbox.operated.selection import PARKED
from tests.inbox.harness import OrderPlaced, Service, an_event, running, send

TYPE = "Shop.Contracts:OrderPlaced"
OURS = "orders.order-placed.v1"
MEDIA_TYPE = "application/vnd.masstransit+json"


class ShopOrder(msgspec.Struct):
    """What MassTransit sends."""

    orderId: str  # noqa: N815 - as it is on the wire


def a_service(**options: object) -> Service:
    """A service whose handlers write down orders of sagapost and of MassTransit."""
    service = Service(**options)  # type: ignore[arg-type]  # passed on as they are

    @service.inbox.on(OrderPlaced)
    async def own(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))

    @service.inbox.on(TYPE, payload=ShopOrder)
    async def foreign(event: ShopOrder, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.orderId, f"{ctx.event.source} {ctx.event.correlationid}"))

    return service


def order(number: str, **changes: object) -> bytes:
    """Return the bytes of MassTransit's envelope."""
    return json.dumps(
        {
            "messageId": f"id-{number}",
            "conversationId": "c-1",
            "sourceAddress": "rabbitmq://localhost/shop",
            "messageType": [f"urn:message:{TYPE}"],
            "message": {"orderId": number},
            **changes,
        }
    ).encode()


async def test_pitfall_46_messages_of_masstransit_are_handled_once(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Beside sagapost's own; a second delivery is a duplicate, one that cannot be read is parked with the cause."""
    service = a_service(foreign=ForeignMessages(reader=MassTransitReader()))
    await service.install(engine)
    await broker.declare(service.inbox.queue)
    for body in (order("1"), order("1"), order("2", messageType=[]), order("3")):
        broker.inject(TYPE, body, content_type=MEDIA_TYPE)
    await send(broker, service, an_event(OrderPlaced("own")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(5)
        assert consumer.statistics.duplicates == 1
    rows = await service.rows(engine, service.effects)
    assert sorted(row.order_id for row in rows) == ["1", "3", "own"]
    assert {row.note for row in rows if row.order_id != "own"} == {"rabbitmq://localhost/shop c-1"}
    (parked,) = await service.parked(engine)
    assert (parked.state, parked.reason) == ("dead", "undecodable")
    assert "names no messageType" in parked.error


class _FailingReader:
    """Users' code that fails in a way of its own for the order `bad`."""

    def __init__(self, raised: BaseException | None) -> None:
        self._raised = raised

    def __call__(self, message: Incoming) -> Reading:
        number = message.body.decode()
        if number == "bad":
            if self._raised is not None:
                raise self._raised
            return "nonsense"  # type: ignore[return-value]  # pyright: ignore
        return Reading(data=b'{"orderId":"%b"}' % message.body, id=number, type=TYPE, source="erp")


@pytest.mark.parametrize("raised", [SystemExit(3), asyncio.CancelledError(), RuntimeError("secret"), None], ids=repr)
async def test_pitfall_46_a_reader_that_fails_ends_no_neighbour(
    engine: AsyncEngine, broker: MemoryBroker, raised: BaseException | None
) -> None:
    """Its message is parked with the reason, the consumer goes on, and all others are handled."""
    service = a_service(foreign=ForeignMessages(reader=_FailingReader(raised)))
    await service.install(engine)
    await broker.declare(service.inbox.queue)
    for number in (b"1", b"bad", b"2"):
        broker.inject(TYPE, number)
    await send(broker, service, an_event(OrderPlaced("own")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(4)
    assert sorted(await service.written(engine)) == ["1", "2", "own"]
    (parked,) = await service.parked(engine)
    assert (parked.state, parked.reason) == ("dead", "undecodable")
    assert ("returned str" if raised is None else f"raised {type(raised).__name__}") in parked.error
    assert "secret" not in parked.error


async def test_what_a_reader_could_not_read_is_read_by_the_next(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """A redrive reads it by the policy that the inbox has then."""
    service = a_service(foreign=ForeignMessages(reader=_FailingReader(RuntimeError())))
    await service.install(engine)
    await broker.declare(service.inbox.queue)
    broker.inject(TYPE, b"bad")
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    service.inbox.foreign = ForeignMessages(
        reader=lambda message: Reading(data=b'{"orderId":"%b"}' % message.body, id="1", type=TYPE, source="erp")
    )
    operator = ParkedMessages(engine, service.tables, service.inbox.name)
    await operator.redrive(PARKED.select(), Decision("ada", "the reader is mended"))
    async with running(service, engine, broker) as consumer:
        await consumer.seen.until(obs.Handled)
    assert await service.written(engine) == ["bad"]
    assert await service.parked(engine) == []


async def test_pitfall_46_two_that_are_equal_and_have_no_id_are_two(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """They cannot be told from a redelivery: both are parked, and neither is taken for a duplicate of the other."""
    service = a_service()
    await service.install(engine)
    await broker.declare(service.inbox.queue)
    for _ in range(2):
        broker.inject(TYPE, b"{}")
    async with running(service, engine, broker) as consumer:
        await consumer.settled(2)
        assert consumer.statistics.duplicates == 0
    assert len(await service.parked(engine)) == 2


async def test_sagaposts_own_messages_never_meet_the_policy(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """A reader that would break everything is not asked about a CloudEvent, in whichever mode it comes."""
    service = a_service(foreign=ForeignMessages(reader=_FailingReader(SystemExit())))
    await service.install(engine)
    await broker.declare(service.inbox.queue)
    structured = {"specversion": "1.0", "id": "8", "source": "urn:erp", "type": OURS, "data": {"order_id": "whole"}}
    broker.inject(OURS, json.dumps(structured).encode(), content_type="application/cloudevents+json")
    headers = {"ce_specversion": "1.0", "ce_id": "9", "ce_source": "urn:erp", "ce_type": OURS}
    broker.inject(OURS, b'{"order_id":"parts"}', headers=headers)
    async with running(service, engine, broker) as consumer:
        await consumer.settled(2)
    assert sorted(await service.written(engine)) == ["parts", "whole"]


async def test_the_policy_of_an_inbox_is_that_of_its_queue_on_rabbitmq(
    postgresql_engine: AsyncEngine, amqp_url: str
) -> None:
    """Body and headers come from a client that knows nothing of sagapost, by way of a real broker."""
    service = a_service(
        foreign=ForeignMessages(reader=(MassTransitReader(), CapReader()), source_from=lambda _: "shop")
    )
    await service.install(postgresql_engine)
    broker = RabbitMQBroker(amqp_url)
    await broker.declare(service.inbox.queue)
    cap: dict[str, aiormq.abc.FieldValue] = {"cap-msg-id": "7", "cap-msg-name": TYPE, "cap-corr-id": "c-2"}
    connection = await aiormq.connect(amqp_url)
    try:
        channel = await connection.channel()
        for body, properties in (
            (order("1"), aiormq.spec.Basic.Properties(content_type=MEDIA_TYPE)),
            (b'{"orderId":"2"}', aiormq.spec.Basic.Properties(headers=cap)),
            (b'{"orderId":"2"}', aiormq.spec.Basic.Properties(headers=cap)),
        ):
            await channel.basic_publish(body, exchange="sagapost", routing_key=TYPE, properties=properties)
    finally:
        await connection.close()
    async with running(service, postgresql_engine, broker) as consumer:
        await consumer.settled(3)
        assert consumer.statistics.duplicates == 1
    rows = await service.rows(postgresql_engine, service.effects)
    assert sorted((row.order_id, row.note) for row in rows) == [("1", "shop c-1"), ("2", "shop c-2")]
