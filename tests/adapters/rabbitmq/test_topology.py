"""Exchanges, queues and bindings on a real RabbitMQ: whose they are, and what happens when they go."""

from __future__ import annotations

import logging

import aiormq
import anyio
import pytest

from sagapost.adapters.rabbitmq import RabbitMQBroker, consumer
from sagapost.core.broker import Confirmed, Queue, Returned
from sagapost.core.errors import BrokerRefusedError
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


# --- whose they are ---


async def test_the_rights_that_the_documentation_names_are_enough(amqp_url: str, user: Users) -> None:
    """docs/operations.md: a user with exactly those of a consumer consumes, one with those of a relay publishes."""
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
        async with relay.publisher() as publisher:
            await publish(publisher, topic, 1)
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
