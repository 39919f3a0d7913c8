"""A connection that the service has already: its channels are ours, and the connection is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta

import aio_pika
import anyio
import pytest
from pamqp import commands

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Confirmed, Queue, Rejected, Returned, Unknown
from sagapost.core.errors import BrokerUnavailableError, ConfigurationError
from tests.adapters.rabbitmq.scripted import ScriptedBroker, scripted_broker
from tests.conformance.broker import answers, event_of, numbers, outgoing, publish, take, until, word

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture
async def script() -> AsyncGenerator[ScriptedBroker]:
    """A scripted broker."""
    async with scripted_broker() as broker:
        yield broker


@pytest.fixture
async def connection(script: ScriptedBroker) -> AsyncGenerator[aio_pika.abc.AbstractConnection]:
    """A connection to it that the test has opened."""
    async with await aio_pika.connect(script.url) as connection:
        yield connection


async def test_answers_reach_their_messages(
    script: ScriptedBroker, connection: aio_pika.abc.AbstractConnection
) -> None:
    """Confirms of every shape, returns and refusals, through the driver's own queue of frames."""
    broker = RabbitMQBroker(connection=connection)
    async with broker.publisher() as publisher:
        batch = outgoing("t", *range(5))
        confirmation = await publisher.send(batch)
        await script.received(5)
        await script.return_message(batch[1].event.id, exchange="sagapost", topic="t", body=b"x" * 50)
        await script.ack(2, multiple=True)
        await script.nack(4)
        await script.ack(3)
        await script.ack(5)
        kinds = [type(result) for result in await answers(confirmation)]
        assert kinds == [Confirmed, Returned, Confirmed, Rejected, Confirmed]
        bad = outgoing("forbidden", 1)
        script.refused = {bad[0].event.id: commands.Channel.Close(403, "ACCESS_REFUSED", 60, 40)}
        assert await answers(await publisher.send(bad)) == [Rejected("403 ACCESS_REFUSED")]
    assert script.connections == 1


async def test_a_lost_connection_leaves_the_unanswered_unknown(
    script: ScriptedBroker, connection: aio_pika.abc.AbstractConnection
) -> None:
    """Publisher and subscription learn of it, and nobody opens the connection again."""
    broker = RabbitMQBroker(connection=connection)
    async with broker.publisher() as publisher, broker.subscribe(Queue("q"), prefetch=5) as subscription:
        confirmation = await publisher.send(outgoing("t", 1, 2))
        await script.received(2)
        script.cut()
        assert [type(result) for result in await answers(confirmation)] == [Unknown, Unknown]
        with pytest.raises(BrokerUnavailableError, match="handed to RabbitMQBroker was closed"):
            await publisher.until_lost()
        with pytest.raises(BrokerUnavailableError):
            await take(subscription, 1)
    for attempt in (broker.publisher, lambda: broker.subscribe(Queue("q"), prefetch=1)):
        with pytest.raises(BrokerUnavailableError, match="is not open"):
            async with attempt():
                pass
    assert script.connections == 1


async def test_a_publisher_that_gives_up_leaves_the_connection_open(
    script: ScriptedBroker, connection: aio_pika.abc.AbstractConnection
) -> None:
    """A confirm that never comes ends the publisher and its channels; others go on using the connection."""
    broker = RabbitMQBroker(connection=connection, confirm_timeout=timedelta(milliseconds=300))
    async with broker.publisher() as publisher:
        confirmation = await publisher.send(outgoing("t", 1))
        assert [type(result) for result in await answers(confirmation)] == [Unknown]
        with pytest.raises(BrokerUnavailableError, match="did not confirm"):
            await publisher.send(outgoing("t", 2))
    script.published.clear()
    async with broker.publisher() as publisher:
        confirmation = await publisher.send(outgoing("t", 3))
        await script.received(1)
        await script.ack(1)
        assert await answers(confirmation) == [Confirmed()]
    assert script.connections == 1


async def test_time_limits_stand_still_while_the_broker_blocks(
    script: ScriptedBroker, connection: aio_pika.abc.AbstractConnection
) -> None:
    """The driver keeps an alarm to itself; it is noticed all the same."""
    broker = RabbitMQBroker(connection=connection, confirm_timeout=timedelta(seconds=1))
    async with broker.publisher() as publisher:
        confirmation = await publisher.send(outgoing("t", 1))
        await script.received(1)
        await script.block()
        await until(lambda: publisher.blocked)
        with anyio.move_on_after(1.5) as waited:
            await confirmation.wait()
        assert waited.cancelled_caught
        await script.unblock()
        await script.ack(1)
        assert await answers(confirmation) == [Confirmed()]


async def test_what_the_service_does_on_the_connection_goes_on(amqp_url: str) -> None:
    """Its own channels, consumers and publishes work beside ours on a real broker, before, during and after."""
    topic, name = word(), word()
    async with await aio_pika.connect(amqp_url) as connection:
        broker = RabbitMQBroker(connection=connection, exchange=word())
        channel = await connection.channel()
        own = await channel.declare_queue(exclusive=True)
        async with (
            broker.subscribe(Queue(name, frozenset({topic})), prefetch=10) as subscription,
            broker.publisher() as publisher,
        ):
            for n in range(20):
                await publish(publisher, topic, n)
                await channel.default_exchange.publish(aio_pika.Message(str(n).encode()), own.name)
            seen: list[int] = []
            while len(seen) < 20:
                deliveries = await take(subscription, 1)
                seen += numbers(deliveries)
                await subscription.ack(*deliveries)
            assert seen == list(range(20))
        await channel.default_exchange.publish(aio_pika.Message(b"20"), own.name)
        got = [message.body for _ in range(21) if (message := await own.get(no_ack=True, fail=False)) is not None]
        assert got == [str(n).encode() for n in range(21)]


async def test_headers_of_others_that_cannot_be_written_again_end_nobody(amqp_url: str) -> None:
    """The driver decodes a header that it cannot encode: the message arrives without its headers, the rest flows."""
    topic = word()
    async with await aio_pika.connect(amqp_url) as connection:
        broker = RabbitMQBroker(connection=connection, exchange=(exchange := word()))
        async with broker.subscribe(Queue(word(), frozenset({topic})), prefetch=10) as subscription:
            channel = await connection.channel()
            target = await channel.get_exchange(exchange)
            odd = aio_pika.Message(b"{}", headers={"big": 2**63 - 1, "list": [1, "a", {"b": None}], "nothing": None})
            await target.publish(odd, topic)
            async with broker.publisher() as publisher:
                await publish(publisher, topic, 7)
            first, second = await take(subscription, 2)
            assert first.content is not None
            assert event_of(second).data == b"7"


async def test_a_robust_connection_serves_again_once_it_is_back(
    amqp_url: str, cut_connections: Callable[[], Awaitable[None]]
) -> None:
    """While it reconnects a publisher cannot be opened; afterwards one can, on plain channels of it."""
    topic = word()
    connection = await aio_pika.connect_robust(amqp_url, reconnect_interval=0.1)
    async with connection:
        broker = RabbitMQBroker(connection=connection, exchange=word())
        await broker.declare(Queue(word(), frozenset({topic})))
        async with broker.publisher() as publisher:
            await publish(publisher, topic, 1)
            await cut_connections()
            with pytest.raises(BrokerUnavailableError), anyio.fail_after(20):
                await publisher.until_lost()
        with anyio.fail_after(20):
            while True:
                try:
                    async with broker.publisher() as publisher:
                        await publish(publisher, topic, 2)
                    break
                except BrokerUnavailableError:
                    await anyio.sleep(0.05)


async def test_a_connection_of_another_loop_is_a_mistake(script: ScriptedBroker) -> None:
    """Said at once, in a sentence; a URL and a connection together, or neither, as well."""
    url = script.url
    stopped = asyncio.new_event_loop()
    foreign = aio_pika.Connection(aio_pika.connection.make_url(url), loop=stopped)
    with pytest.raises(ConfigurationError, match="another event loop"):
        await RabbitMQBroker(connection=foreign).declare()
    for both in ({}, {"url": url, "connection": foreign}):
        with pytest.raises(ConfigurationError, match="give one of them"):
            RabbitMQBroker(**both)  # type: ignore[arg-type]
    assert "s3cr3t" not in repr(RabbitMQBroker(connection=foreign))
    stopped.close()
