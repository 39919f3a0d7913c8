"""Exchanges, queues and bindings on a real RabbitMQ: whose they are, and what happens when they go."""

from __future__ import annotations

import logging
from typing import Any

import aiormq
import anyio
import pytest

from sagapost.adapters.rabbitmq import RabbitMQBroker, consumer, topology
from sagapost.core.broker import Confirmed, Queue, Returned
from sagapost.core.errors import BrokerRefusedError, TopologyConflictError
from tests.adapters.rabbitmq.users import Users
from tests.conformance.broker import answers, numbers, outgoing, publish, take, word

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


async def delete_exchange(url: str, name: str) -> None:
    """Delete an exchange, as a clean-up script would."""
    async with aiormq.Connection(url) as connection:
        await (await connection.channel()).exchange_delete(name)


# --- exchanges that come and go ---


async def test_an_exchange_made_anew_has_all_listeners_or_none(amqp_url: str) -> None:
    """Made anew by a publisher it has none, and what is sent is returned; one consumer that starts brings back all."""
    exchange, topic = word(), word()
    broker = RabbitMQBroker(amqp_url, exchange=exchange)
    restarted, running = Queue(word(), frozenset({topic})), Queue(word(), frozenset({topic}))
    await broker.declare(restarted, running)
    await delete_exchange(amqp_url, exchange)
    async with broker.publisher() as publisher:
        (result,) = await answers(await publisher.send(outgoing(topic, 1)))
        assert isinstance(result, Returned)
        async with broker.subscribe(restarted, prefetch=1):
            await publish(publisher, topic, 2)
    async with broker.subscribe(running, prefetch=1) as subscription:
        assert numbers(await take(subscription, 1)) == [2]


@pytest.mark.parametrize("which", ["{}", "{}.listeners"])
async def test_a_consumer_that_runs_on_binds_its_queue_again(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """An exchange is deleted and comes back without bindings; what is published then reaches the running consumer."""
    monkeypatch.setattr(consumer, "_BOUND_EVERY", 0.2)
    monkeypatch.setattr(topology, "LISTENERS_BACK", 0.5)
    topic, exchange = word(), word()
    queue = Queue(word(), frozenset({topic}))
    broker = RabbitMQBroker(amqp_url, exchange=exchange)
    got: list[int] = []

    async def receive() -> None:
        got.extend(numbers(await take(subscription, 1)))

    async with broker.subscribe(queue, prefetch=10) as subscription, anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        await delete_exchange(amqp_url, which.format(exchange))
        result: object = None
        with anyio.fail_after(20):
            while result != Confirmed():
                async with broker.publisher() as publisher:
                    (result,) = await answers(await publisher.send(outgoing(topic, 7)))
    assert got == [7]


async def test_pitfall_34_when_all_bindings_are_gone_all_listeners_are_waited_for(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is back first ties nothing to what is published before the others had the time to be back.

    As after the deletion of a virtual host: neither the exchange nor that of the listeners is there any more.
    """
    monkeypatch.setattr(consumer, "_BOUND_EVERY", 0.2)
    monkeypatch.setattr(topology, "LISTENERS_BACK", 3.0)
    exchange, topic = word(), word()
    one, two = (RabbitMQBroker(amqp_url, exchange=exchange) for _ in range(2))
    first, second = (Queue(word(), frozenset({topic})) for _ in range(2))
    async with one.subscribe(first, prefetch=10), two.subscribe(second, prefetch=10):
        pass
    async with aiormq.Connection(amqp_url) as connection:
        channel = await connection.channel()
        await channel.exchange_delete(exchange)
        await channel.exchange_delete(f"{exchange}.listeners")
    results: list[object] = []
    async with one.subscribe(first, prefetch=10) as back, one.publisher() as publisher:
        results += await answers(await publisher.send(outgoing(topic, 1)))
        async with two.subscribe(second, prefetch=10) as late, anyio.create_task_group() as tasks:

            async def until_confirmed() -> None:
                while not isinstance(results[-1], Confirmed):
                    results.extend(await answers(await publisher.send(outgoing(topic, 1))))

            tasks.start_soon(until_confirmed)
            assert numbers(await take(back, 1)) == numbers(await take(late, 1)) == [1]
    assert isinstance(results[0], Returned)


# --- whose they are ---


async def test_the_rights_that_the_documentation_names_are_enough(amqp_url: str, user: Users) -> None:
    """docs/operations.md: users with exactly those of a relay, a consumer and a tracker do what they are there for."""
    exchange, topic = word(), word()
    queue = Queue(word(), frozenset({topic}))
    consumer = RabbitMQBroker(
        await user(
            configure=rf"^({exchange}(\.listeners|\.dead)?|{queue.name}(\.dead)?)$",
            write=rf"^({exchange}\.(listeners|dead)|{queue.name}(\.dead)?)$",
            read=rf"^({exchange}(\.listeners|\.observed|\.dead)?|{queue.name})$",
        ),
        exchange=exchange,
    )
    async with consumer.subscribe(queue, prefetch=1) as subscription:
        relay = RabbitMQBroker(
            await user(configure=rf"^{exchange}(\.observed)?$", write=rf"^{exchange}(\.observed)?$", read="^$"),
            exchange=exchange,
        )
        tracker = Queue(word(), frozenset({"#"}), observer=True)
        observer = RabbitMQBroker(
            await user(
                configure=rf"^({exchange}\.(observed|dead)|{tracker.name}(\.dead)?)$",
                write=rf"^({exchange}\.dead|{tracker.name}(\.dead)?)$",
                read=rf"^({exchange}(\.listeners|\.observed|\.dead)?|{tracker.name})$",
            ),
            exchange=exchange,
        )
        async with observer.subscribe(tracker, prefetch=10) as looking_on, relay.publisher() as publisher:
            await publish(publisher, topic, 1)
            assert numbers(await take(looking_on, 1)) == [1]
        (delivery,) = await take(subscription, 1)
        await subscription.reject(delivery, requeue=False)


async def test_a_topology_that_somebody_else_owns_is_used_as_it_is(
    amqp_url: str, user: Users, caplog: pytest.LogCaptureFixture
) -> None:
    """Without any right to configure: one that may only write publishes, one that may only read consumes."""
    exchange, topic = word(), word()
    queue = Queue(word(), frozenset({topic}))
    await RabbitMQBroker(amqp_url, exchange=exchange).declare(queue)
    url = await user(configure="^$", write=f"^{exchange}$", read=f"^{queue.name}$")
    mine = RabbitMQBroker(url, exchange=exchange)
    caplog.set_level(logging.WARNING, logger="sagapost.rabbitmq")
    async with mine.subscribe(queue, prefetch=1) as subscription, mine.publisher() as publisher:
        await publish(publisher, topic, 1)
        assert numbers(await take(subscription, 1)) == [1]
    assert f"cannot be bound to '{exchange}.listeners' for {topic!r}" in caplog.text
    for missing in (
        RabbitMQBroker(url, exchange=exchange).declare(Queue("not-there")),
        RabbitMQBroker(url, exchange="not-there").declare(),
    ):
        with pytest.raises(BrokerRefusedError, match=r"has no .*'not-there.* let its owner declare a durable"):
            await missing


async def test_a_queue_is_all_that_a_consumer_needs(amqp_url: str, user: Users) -> None:
    """Its owner made no exchange of ours, and this user may do nothing but read it."""
    await _make(amqp_url, name := word())
    broker = RabbitMQBroker(await user(configure="^$", write="^$", read=f"^{name}$"), exchange=word())
    async with aiormq.Connection(amqp_url) as connection:
        channel = await connection.channel()
        await channel.basic_publish(b"{}", routing_key=name)
    async with broker.subscribe(Queue(name, frozenset({word()})), prefetch=1) as subscription:
        (delivery,) = await take(subscription, 1)
        await subscription.ack(delivery)


async def _make(amqp_url: str, queue: str, arguments: dict[str, Any] | None = None, *, durable: bool = True) -> None:
    """Make a queue as somebody else would."""
    async with aiormq.Connection(amqp_url) as connection:
        channel = await connection.channel()
        await channel.queue_declare(queue, durable=durable, arguments=arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "x-queue-type"),
        ({"x-queue-type": "classic", "x-max-priority": 3}, "x-queue-type"),
        ({"x-queue-type": "quorum"}, "x-dead-letter-exchange"),
        ({"x-queue-type": "quorum", "x-max-length": 1_000, "x-message-ttl": 60_000}, "x-max-length"),
        ({"x-queue-type": "quorum", "x-delivery-limit": 7, "x-dead-letter-exchange": "theirs"}, "x-delivery-limit"),
        ({"x-queue-type": "quorum", "x-single-active-consumer": True}, "x-single-active-consumer"),
    ],
)
async def test_pitfall_45_a_queue_with_other_arguments_is_used_as_it_is(
    amqp_url: str, caplog: pytest.LogCaptureFixture, arguments: dict[str, Any], named: str
) -> None:
    """It is its owner's: what differs is said once, nothing is changed, and messages come."""
    exchange, topic, name = word(), word(), word()
    await _make(amqp_url, name, arguments)
    broker = RabbitMQBroker(amqp_url, exchange=exchange)
    caplog.set_level(logging.WARNING, logger="sagapost.rabbitmq")
    async with broker.subscribe(Queue(name, frozenset({topic})), prefetch=1) as subscription:
        async with broker.publisher() as publisher:
            await publish(publisher, topic, 1)
        (delivery,) = await take(subscription, 1)
        await subscription.ack(delivery)
    (warning,) = (record.getMessage() for record in caplog.records)
    assert name in warning
    assert named in warning
    await _make(amqp_url, name, arguments)  # it is as it was, or this would be refused


async def test_pitfall_45_what_order_depends_on_is_refused(amqp_url: str) -> None:
    """An ordered inbox needs a single active consumer, and a queue that is gone with the broker keeps nothing."""
    exchange, topic = word(), word()
    broker = RabbitMQBroker(amqp_url, exchange=exchange)
    others: list[dict[str, Any]] = [{}, {"x-queue-type": "quorum"}, {"x-queue-type": "quorum", "x-max-length": 5}]
    for arguments in others:
        await _make(amqp_url, name := word(), arguments)
        with pytest.raises(TopologyConflictError, match="exchanged for another") as caught:
            await broker.declare(Queue(name, frozenset({topic}), ordered=True))
        assert (caught.value.entity, caught.value.name) == ("queue", name)
        assert "x-single-active-consumer" in caught.value.argument
    transient = word()
    async with aiormq.Connection(amqp_url) as connection:
        channel = await connection.channel()
        await channel.queue_declare(transient, durable=True, auto_delete=True)
        with pytest.raises(TopologyConflictError, match="auto_delete"):
            await broker.declare(Queue(transient, frozenset({topic})))
        direct = word()
        await channel.exchange_declare(direct, exchange_type="direct", durable=True)
    with pytest.raises(TopologyConflictError) as caught:
        async with RabbitMQBroker(amqp_url, exchange=direct).publisher():
            pass
    assert (caught.value.entity, caught.value.name) == ("exchange", direct)
    assert "type" in caught.value.argument


async def test_pitfall_45_an_exchange_with_other_arguments_is_used_as_it_is(amqp_url: str) -> None:
    """An administrator's alternate exchange is no reason not to publish."""
    exchange, topic = word(), word()
    async with aiormq.Connection(amqp_url) as connection:
        channel = await connection.channel()
        alternate: dict[str, Any] = {"alternate-exchange": "amq.fanout"}
        await channel.exchange_declare(exchange, exchange_type="topic", durable=True, arguments=alternate)
    broker = RabbitMQBroker(amqp_url, exchange=exchange)
    async with broker.subscribe(Queue(word(), frozenset({topic})), prefetch=1) as subscription:
        async with broker.publisher() as publisher:
            await publish(publisher, topic, 1)
        assert numbers(await take(subscription, 1)) == [1]


async def test_pitfall_45_the_brokers_own_topic_exchange(amqp_url: str) -> None:
    """`amq.topic`, where others publish too (MQTT clients), may be consumed from and published to."""
    topic = word()
    broker = RabbitMQBroker(amqp_url, exchange="amq.topic")
    async with broker.subscribe(Queue(word(), frozenset({topic})), prefetch=1) as subscription:
        async with broker.publisher() as publisher:
            await publish(publisher, topic, 1)
        assert numbers(await take(subscription, 1)) == [1]
