"""Every way in which RabbitMQ refuses one message: the answer is that message's, and its neighbours flow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiormq
import anyio
import anyio.to_thread
import pytest

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Confirmed, Outgoing, PublishResult, Queue, Rejected, Returned
from tests.adapters.rabbitmq.users import Users
from tests.conformance.broker import answers, make_event, numbers, outgoing, take, word
from tests.servers.rabbitmq_admin import AdministeredRabbitMQ

if TYPE_CHECKING:
    from tests.servers.brokers import RabbitMQServer

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

ROUNDS = 5
"""How often the refused messages are sent, as a relay retries them."""
LIMIT = 30.0
"""Seconds in which all rounds must be answered."""


@dataclass
class Bed:
    """The broker of one test, as its owner and as a user that may do nearly everything."""

    owner: str
    user: str
    exchange: str
    topic: str
    """Bound to the queue of the good ones."""
    channel: aiormq.abc.AbstractChannel
    forbid_topic: Callable[[str], Awaitable[None]]


async def _no_right_on_the_exchange(bed: Bed) -> tuple[str, str | None, bytes]:
    await bed.channel.exchange_declare("forbidden", exchange_type="fanout", durable=True)
    return bed.topic, "forbidden", b"{}"


async def _internal_exchange(bed: Bed) -> tuple[str, str | None, bytes]:
    await bed.channel.exchange_declare("internal", exchange_type="fanout", durable=True, internal=True)
    return bed.topic, "internal", b"{}"


async def _missing_exchange(bed: Bed) -> tuple[str, str | None, bytes]:
    return bed.topic, "missing", b"{}"


async def _no_right_on_the_topic(bed: Bed) -> tuple[str, str | None, bytes]:
    await bed.forbid_topic("secret")
    return "secret", None, b"{}"


async def _too_large(bed: Bed) -> tuple[str, str | None, bytes]:
    return bed.topic, None, b"x" * 200_000


async def _full_queue(bed: Bed) -> tuple[str, str | None, bytes]:
    arguments: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish", "x-queue-type": "classic"}
    full = f"full-{bed.topic}"
    await bed.channel.queue_declare(full, durable=True, arguments=arguments)
    await bed.channel.basic_publish(b"{}", routing_key=full)
    return full, "", b"{}"


async def _nobody_there(bed: Bed) -> tuple[str, str | None, bytes]:
    return "nobody-there", "", b"{}"


@pytest.mark.parametrize(
    ("arrange", "kind", "reason"),
    [
        (_no_right_on_the_exchange, Rejected, "403 ACCESS_REFUSED - access to exchange 'forbidden'"),
        (_internal_exchange, Rejected, "403 ACCESS_REFUSED - cannot publish to internal exchange"),
        (_missing_exchange, Rejected, "404 NOT_FOUND - no exchange 'missing'"),
        (_no_right_on_the_topic, Rejected, "403 ACCESS_REFUSED - access to topic 'secret'"),
        (_too_large, Rejected, "200,000 bytes are over the broker's limit"),
        (_full_queue, Rejected, "a queue is full"),
        (_nobody_there, Returned, "312 NO_ROUTE"),
    ],
)
async def test_pitfall_33_a_refusal_is_the_answer_to_its_message_alone(
    rabbitmq: RabbitMQServer,
    amqp_url: str,
    user: Users,
    arrange: Callable[[Bed], Awaitable[tuple[str, str | None, bytes]]],
    kind: type[PublishResult],
    reason: str,
) -> None:
    """Sent again and again among good ones, over one connection: no good one is lost, late or there twice."""
    if not isinstance(rabbitmq, AdministeredRabbitMQ):
        pytest.skip("needs a broker of the run's own, to set rights inside it")
    url = await user(write=r"^(?!forbidden$)")
    name, vhost = url.split("//")[1].split(":")[0], url.rpartition("/")[2]
    queue = Queue(word(), frozenset({topic := word()}))

    async def forbid_topic(forbidden: str) -> None:
        write = f"^(?!{forbidden}$)"
        await anyio.to_thread.run_sync(rabbitmq.set_topic_right, name, vhost, exchange, write)

    exchange = word()
    owner = RabbitMQBroker(amqp_url, exchange=exchange)
    await owner.declare(queue)
    mine = RabbitMQBroker(url, exchange=exchange, max_message_bytes=100_000)
    async with aiormq.Connection(amqp_url) as connection:
        channel = await connection.channel()
        bed = Bed(amqp_url, url, exchange, topic, channel, forbid_topic)
        bad_topic, destination, body = await arrange(bed)
        with anyio.fail_after(LIMIT):
            async with mine.publisher() as publisher:
                for round_ in range(ROUNDS):
                    good = outgoing(topic, *range(round_ * 20, round_ * 20 + 20))
                    bad = Outgoing(make_event(body), bad_topic, destination=destination)
                    results = await answers(await publisher.send([*good[:10], bad, *good[10:]]))
                    refused = results.pop(10)
                    assert results == [Confirmed()] * 20
                    assert isinstance(refused, kind)
                    assert reason in getattr(refused, "reason", "")
        async with owner.subscribe(queue, prefetch=1_000) as subscription:
            assert numbers(await take(subscription, ROUNDS * 20)) == list(range(ROUNDS * 20))
        assert (await owner.depths(queue.name))[0].messages == ROUNDS * 20


async def test_a_queue_is_reached_by_its_name_over_the_default_exchange(amqp_url: str) -> None:
    """The destination "" is RabbitMQ's own: the topic is the name of a queue, as with Celery and with RPC."""
    broker = RabbitMQBroker(amqp_url, exchange=word())
    async with aiormq.Connection(amqp_url) as connection, broker.publisher() as publisher:
        channel = await connection.channel()
        await channel.queue_declare(name := word(), durable=True)
        batch = [Outgoing(make_event(), topic, destination="") for topic in (name, "nobody-there", name)]
        kinds = [type(result) for result in await answers(await publisher.send(batch))]
        assert kinds == [Confirmed, Returned, Confirmed]
        assert (await channel.queue_declare(name, passive=True)).message_count == 2
