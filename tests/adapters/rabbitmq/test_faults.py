"""The adapter on a real RabbitMQ while things break: refusals, alarms, frozen peers, restarts, deletions."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import aiormq
import aiormq.exceptions
import anyio
import anyio.to_thread
import pytest

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Confirmed, Outgoing, Queue, Rejected, Returned, Unknown
from sagapost.core.errors import (
    BrokerRefusedError,
    BrokerUnavailableError,
    SagapostError,
)
from tests.adapters.rabbitmq.shown import reasons
from tests.adapters.rabbitmq.users import Users
from tests.conformance.broker import answers, event_of, make_event, numbers, outgoing, publish, take, until, word
from tests.servers.ports import free_ports
from tests.servers.rabbitmq_admin import AdministeredRabbitMQ

if TYPE_CHECKING:
    from tests.servers.brokers import RabbitMQServer
    from tests.servers.fixtures import OwnRabbitMQ

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


# --- refusals ---


async def test_a_queue_that_refuses_is_a_rejection_of_exactly_those(amqp_url: str) -> None:
    """A full queue with `reject-publish` answers with nacks: those messages are rejected, the others confirmed."""
    exchange, topic, other = word(), word(), word()
    broker = RabbitMQBroker(amqp_url, exchange=exchange)
    await broker.declare(Queue(word(), frozenset({other})))
    async with aiormq.Connection(amqp_url) as connection, broker.publisher() as publisher:
        channel = await connection.channel()
        full = word()
        arguments: dict[str, Any] = {"x-max-length": 3, "x-overflow": "reject-publish", "x-queue-type": "classic"}
        await channel.queue_declare(full, durable=True, arguments=arguments)
        await channel.queue_bind(full, exchange, routing_key=topic)
        results: list[object] = []
        for n in range(20):
            batch = [*outgoing(topic, n), *outgoing(other, n), *outgoing("nowhere", n)]
            results += await answers(await publisher.send(batch))
        kinds = [type(result) for result in results]
        assert kinds[1::3] == [Confirmed] * 20
        assert kinds[2::3] == [Returned] * 20
        assert kinds[:9:3] == [Confirmed] * 3
        assert kinds[-3] is Rejected
        waiting = await channel.queue_declare(full, passive=True)
        assert waiting.message_count == kinds[::3].count(Confirmed)


async def test_the_brokers_own_size_limit_is_learned_and_costs_its_neighbours_one_repetition(
    own_rabbitmq: OwnRabbitMQ,
) -> None:
    """A body over `max_message_size` closes the channel once; it alone is rejected, and the connection stays."""
    server = await anyio.to_thread.run_sync(lambda: own_rabbitmq(config=["max_message_size = 100000"]))
    broker = RabbitMQBroker(server.amqp_url())
    topic = word()
    large = [Outgoing(make_event(b"x" * size), topic) for size in (200_000, 150_000)]
    async with (
        broker.subscribe(Queue(word(), frozenset({topic})), prefetch=1000) as subscription,
        broker.publisher() as publisher,
    ):
        await publish(publisher, topic, 0)
        small = outgoing(topic, *range(1, 201))
        pending = [
            await publisher.send([*small[:50], large[0], *small[50:100]]),
            await publisher.send([*small[100:150], large[1], *small[150:]]),
        ]
        for confirmation in pending:
            kinds = [type(result) for result in await answers(confirmation)]
            assert kinds == [Confirmed] * 50 + [Rejected] + [Confirmed] * 50
        assert publisher.max_message_bytes == 149_999
        await publish(publisher, topic, 201)
        seen: list[int] = []
        while not seen or seen[-1] != 201:
            seen += numbers(await take(subscription, 1))
        # What the broker had taken in before it met the large one may be there twice; nothing else, and in order.
        assert list(dict.fromkeys(seen)) == list(range(202))
        assert len(seen) <= 202 + 50
        assert [type(r) for r in await answers(await publisher.send(large))] == [Rejected, Rejected]
    async with broker.publisher() as another:
        assert [type(r) for r in await answers(await another.send(large))] == [Rejected, Rejected]


@pytest.mark.parametrize("what", ["internal", "no right", "deleted"])
async def test_an_exchange_that_takes_nothing_costs_the_others_nothing(amqp_url: str, user: Users, what: str) -> None:
    """Its messages are rejected with the broker's words, before and after it worked; the others flow."""
    exchange, other, topic = word(), word(), word()
    await RabbitMQBroker(amqp_url, exchange=exchange).declare(Queue(queue := word(), frozenset({topic})))
    url = await user(write=f"^{exchange}" if what == "no right" else ".*")
    async with (
        aiormq.Connection(amqp_url) as connection,
        RabbitMQBroker(url, exchange=exchange).publisher() as publisher,
    ):
        channel = await connection.channel()
        await channel.exchange_declare(other, exchange_type="fanout", durable=True, internal=what == "internal")
        await channel.queue_bind(queue, other)
        elsewhere = [Outgoing(make_event(), topic, destination=other) for _ in range(3)]
        here = outgoing(topic, *range(6))
        if what == "deleted":
            assert await answers(await publisher.send(elsewhere)) == [Confirmed()] * 3
            await channel.exchange_delete(other)
        results = await answers(await publisher.send([*here[:3], *elsewhere, *here[3:]]))
        assert [type(r) for r in results] == [Confirmed] * 3 + [Rejected] * 3 + [Confirmed] * 3
        assert ("404" if what == "deleted" else "403") in getattr(results[3], "reason", "")
        assert other in getattr(results[3], "reason", "")
        await publish(publisher, topic, 7)
        if what == "deleted":
            await channel.exchange_declare(other, exchange_type="fanout", durable=True)
            await channel.queue_bind(queue, other)
            assert await answers(await publisher.send(elsewhere)) == [Confirmed()] * 3


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"password": "wr0ng-pass"}, BrokerRefusedError, "Check user, password"),
        ({"user": "nobody"}, BrokerRefusedError, "Check user, password"),
        ({"path": "/no-such-vhost"}, BrokerRefusedError, "virtual host"),
        ({"port": 0}, BrokerUnavailableError, "cannot be reached"),
        ({"scheme": "amqps"}, BrokerRefusedError, "No TLS connection"),
        ({"host": "no-such-host.invalid"}, BrokerUnavailableError, "cannot be reached"),
    ],
)
async def test_what_is_wrong_with_the_address_is_said_without_secrets(
    amqp_url: str, change: dict[str, Any], error: type[SagapostError], words: str
) -> None:
    """Wrong credentials, host, port, virtual host or scheme each end at once in one clear error."""
    parts = urlsplit(amqp_url)
    port = change.get("port", parts.port) or free_ports(1)[0]
    password = change.get("password", parts.password)
    url = (
        f"{change.get('scheme', parts.scheme)}://{change.get('user', parts.username)}:{password}"
        f"@{change.get('host', parts.hostname)}:{port}{change.get('path', parts.path)}"
    )
    broker = RabbitMQBroker(url)
    for attempt in (broker.publisher, lambda: broker.subscribe(Queue("q"), prefetch=1)):
        with pytest.raises(error, match=words) as caught, anyio.fail_after(15):
            async with attempt():
                pass
        assert str(password) not in reasons(caught.value)
        assert broker.address in str(caught.value)
    with pytest.raises(error):
        await broker.declare()
    assert str(password) not in repr(broker)


async def test_a_user_without_permission_is_refused(amqp_url: str, user: Users) -> None:
    """A user that may not declare is told so, as a refusal; one that may not write has its messages rejected."""
    topic = word()
    await RabbitMQBroker(amqp_url).declare(Queue(word(), frozenset({topic})))
    broker = RabbitMQBroker(await user(configure="^sagapost$", write="^$"))
    with pytest.raises(BrokerRefusedError, match="permissions"):
        await broker.declare(Queue("not-mine", frozenset({topic})))
    async with broker.publisher() as publisher:
        for _ in range(2):
            (result,) = await answers(await publisher.send(outgoing(topic, 1)))
            assert isinstance(result, Rejected)
            assert "403 ACCESS_REFUSED" in result.reason


async def test_a_consumer_that_may_not_read_is_refused(amqp_url: str, user: Users) -> None:
    """Declaring is allowed, reading is not: a refusal with the broker's words, for a person, and no outage."""
    queue = Queue(word(), frozenset({word()}))
    await RabbitMQBroker(amqp_url).declare(queue)
    broker = RabbitMQBroker(await user(read=rf"^(sagapost.*|{queue.name}\.dead)$"))
    with pytest.raises(BrokerRefusedError, match=f"403 ACCESS_REFUSED.*{queue.name}"):
        async with broker.subscribe(queue, prefetch=1):
            pass


@pytest.mark.parametrize("name", ["a/b", "a%2Fb", "/team", "ü+ %"])
async def test_a_virtual_host_is_the_one_that_is_named(rabbitmq: RabbitMQServer, name: str) -> None:
    """Whatever has to be escaped in its name: it is reached, and the address names it."""
    if not isinstance(rabbitmq, AdministeredRabbitMQ):
        pytest.skip("needs a broker of the run's own, to make virtual hosts inside it")
    url = rabbitmq.amqp_url(name)
    await anyio.to_thread.run_sync(rabbitmq.create_vhost, name)
    try:
        await RabbitMQBroker(url).declare(Queue(queue := word()))
        async with aiormq.Connection(rabbitmq.amqp_url()) as connection:
            channel = await connection.channel()
            with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
                await channel.queue_declare(queue, passive=True)
        assert RabbitMQBroker(url).address.endswith(f"/{quote(name, safe='')}")
    finally:
        await anyio.to_thread.run_sync(rabbitmq.delete_vhost, name)


# --- while connected ---


async def test_a_deleted_queue_ends_its_consumer_and_can_be_had_again(amqp_url: str) -> None:
    """The consumer is told, its next subscription declares the queue again, and messages flow."""
    topic = word()
    queue = Queue(word(), frozenset({topic}))
    broker = RabbitMQBroker(amqp_url, exchange=word())
    async with broker.publisher() as publisher:
        async with broker.subscribe(queue, prefetch=10) as subscription:
            await publish(publisher, topic, 1)
            (delivery,) = await take(subscription, 1)
            async with aiormq.Connection(amqp_url) as connection:
                channel = await connection.channel()
                await channel.queue_delete(queue.name)
            with pytest.raises(BrokerUnavailableError, match="cancelled the consumer"):
                await take(subscription, 1)
            with pytest.raises(BrokerUnavailableError):
                await subscription.ack(delivery)
        async with broker.subscribe(queue, prefetch=10) as subscription:
            await publish(publisher, topic, 2)
            assert numbers(await take(subscription, 1)) == [2]


async def test_a_consumer_timeout_ends_the_subscription_and_the_message_comes_again(own_rabbitmq: OwnRabbitMQ) -> None:
    """A delivery held longer than the broker allows: the channel is closed, the reason shown, nothing lost."""
    server = await anyio.to_thread.run_sync(lambda: own_rabbitmq(config=["consumer_timeout = 1000"]))
    # The limit is looked at every minute by default; here at once.
    await anyio.to_thread.run_sync(server.evaluate, "application:set_env(rabbit, channel_tick_interval, 500)")
    topic = word()
    queue = Queue(word(), frozenset({topic}))
    broker = RabbitMQBroker(server.amqp_url())
    async with broker.publisher() as publisher:
        async with broker.subscribe(queue, prefetch=1) as subscription:
            await publish(publisher, topic, 1)
            await take(subscription, 1)
            with pytest.raises(BrokerUnavailableError, match="timed out"):
                await take(subscription, 1)
        async with broker.subscribe(queue, prefetch=1) as subscription:
            (again,) = await take(subscription, 1)
            assert (numbers([again]), again.delivery_count) == ([1], 1)


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_an_alarm_blocks_and_nothing_is_lost_or_doubled(own_rabbitmq: OwnRabbitMQ, queue_type: Any) -> None:
    """Under a memory alarm the publisher reports it and waits past its time limit; then everything arrives once.

    Consuming goes on meanwhile, on its own connection.
    """
    server = await anyio.to_thread.run_sync(own_rabbitmq)
    topic = word()
    queue = Queue(word(), frozenset({topic}))
    broker = RabbitMQBroker(server.amqp_url(), queue_type=queue_type, confirm_timeout=timedelta(seconds=3))
    async with broker.publisher() as publisher, broker.subscribe(queue, prefetch=500) as subscription:
        await publish(publisher, topic, 0)
        await anyio.to_thread.run_sync(lambda: server.set_memory_alarm(on=True))
        confirmations = [await publisher.send(outgoing(topic, *range(1, 101)))]
        await until(lambda: publisher.blocked)
        confirmations.append(await publisher.send(outgoing(topic, *range(101, 201))))
        with anyio.move_on_after(4) as waited:
            await confirmations[1].wait()
        assert waited.cancelled_caught
        (first,) = await take(subscription, 1)
        await subscription.ack(first)
        await anyio.to_thread.run_sync(lambda: server.set_memory_alarm(on=False))
        for confirmation in confirmations:
            assert await answers(confirmation) == [Confirmed()] * 100
        await until(lambda: not publisher.blocked)
        assert numbers(await take(subscription, 200)) == list(range(1, 201))


async def test_closing_while_blocked_is_bounded(own_rabbitmq: OwnRabbitMQ) -> None:
    """A broker under alarm reads nothing, the goodbye included: closing takes seconds, not the length of the alarm."""
    server = await anyio.to_thread.run_sync(own_rabbitmq)
    topic = word()
    broker = RabbitMQBroker(server.amqp_url())
    await broker.declare(Queue(word(), frozenset({topic})))
    async with broker.publisher() as publisher:
        await publish(publisher, topic, 1)
        await anyio.to_thread.run_sync(lambda: server.set_memory_alarm(on=True))
        confirmation = await publisher.send(outgoing(topic, 2))
        await until(lambda: publisher.blocked)
        started = anyio.current_time()
    assert anyio.current_time() - started < 6
    assert [type(result) for result in await answers(confirmation)] == [Unknown]
    await anyio.to_thread.run_sync(lambda: server.set_memory_alarm(on=False))


async def test_a_frozen_broker_is_noticed_by_both_sides(own_rabbitmq: OwnRabbitMQ) -> None:
    """Connections stay open and nobody answers: publisher and consumer both end within two heartbeats and a half."""
    server = await anyio.to_thread.run_sync(own_rabbitmq)
    topic = word()
    queue = Queue(word(), frozenset({topic}))
    broker = RabbitMQBroker(server.amqp_url(), heartbeat=timedelta(seconds=1), connect_timeout=timedelta(seconds=2))
    async with broker.publisher() as publisher, broker.subscribe(queue, prefetch=10) as subscription:
        await publish(publisher, topic, 1)
        await take(subscription, 1)
        await anyio.to_thread.run_sync(server.pause)
        started = anyio.current_time()
        confirmation = await publisher.send(outgoing(topic, 2))
        assert [type(result) for result in await answers(confirmation)] == [Unknown]
        with pytest.raises(BrokerUnavailableError, match="silent"):
            await take(subscription, 1)
        assert anyio.current_time() - started < 4
    with pytest.raises(BrokerUnavailableError, match="connect timeout"):
        await broker.declare()
    await anyio.to_thread.run_sync(server.resume)
    async with broker.publisher() as publisher:
        await publish(publisher, topic, 3)


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_a_crash_of_the_broker_keeps_every_confirmed_message(own_rabbitmq: OwnRabbitMQ, queue_type: Any) -> None:
    """SIGKILL in the middle of publishing: what was confirmed is there afterwards, in order, without holes."""
    server = await anyio.to_thread.run_sync(own_rabbitmq)
    topic = word()
    queue = Queue(word(), frozenset({topic}))
    broker = RabbitMQBroker(server.amqp_url(), queue_type=queue_type)
    await broker.declare(queue)
    # RabbitMQ 3.10 writes the name of a new quorum queue to disk half a second late, and a lone node that is killed
    # before forgets it with its messages. That is not what is tested here.
    await anyio.sleep(1.5)
    sent: dict[int, object] = {}
    async with broker.publisher() as publisher, anyio.create_task_group() as tasks:

        async def pump() -> None:
            for start in range(0, 1_000_000, 50):
                bodies = range(start, start + 50)
                try:
                    results = await answers(await publisher.send(outgoing(topic, *bodies)))
                except BrokerUnavailableError:
                    return
                sent.update(zip(bodies, results, strict=True))

        tasks.start_soon(pump)
        await until(lambda: len(sent) >= 500)
        await anyio.to_thread.run_sync(server.kill)
    await anyio.to_thread.run_sync(server.start)
    confirmed = [body for body, result in sent.items() if isinstance(result, Confirmed)]
    got: list[int] = []
    async with broker.subscribe(queue, prefetch=2000) as subscription, broker.publisher() as publisher:
        await publish(publisher, topic, -1)
        while not got or got[-1] != -1:
            (delivery,) = await take(subscription, 1)
            got += numbers([delivery])
            await subscription.ack(delivery)
    arrived = got[:-1]
    assert set(confirmed) <= set(arrived)
    # What arrived is a prefix of what was sent: a publisher's order has no holes, whatever was confirmed.
    assert arrived == list(range(len(arrived)))
    print(f"confirmed {len(confirmed)}, arrived {len(arrived)}")


# --- an independent peer ---


async def test_aio_pika_reads_what_we_write(amqp_url: str) -> None:
    """A consumer on aio-pika sees the event in native properties and headers, persistent."""
    aio_pika = pytest.importorskip("aio_pika")
    topic, name, exchange = word(), word(), word()
    broker = RabbitMQBroker(amqp_url, exchange=exchange)
    await broker.declare(Queue(name, frozenset({topic})))
    event = make_event(b'{"a": 1}', key="k")
    async with broker.publisher() as publisher:
        assert await answers(await publisher.send([Outgoing(event, topic)])) == [Confirmed()]
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(name)
        message = await queue.get(timeout=10)
        await message.ack()
    assert message.body == event.data
    assert (message.message_id, message.type, message.app_id) == (event.id, event.type, event.source)
    assert (message.content_type, message.routing_key) == ("application/json", topic)
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert {name: message.headers[name] for name in ("ce-id", "ce-source", "ce-type", "ce-partitionkey")} == {
        "ce-id": event.id,
        "ce-source": event.source,
        "ce-type": event.type,
        "ce-partitionkey": "k",
    }


async def test_we_read_what_aio_pika_writes(amqp_url: str) -> None:
    """A stranger's message, with typed headers and no envelope, arrives as an event."""
    aio_pika = pytest.importorskip("aio_pika")
    topic, exchange = word(), word()
    broker = RabbitMQBroker(amqp_url, exchange=exchange)
    async with broker.subscribe(Queue(word(), frozenset({topic})), prefetch=10) as subscription:
        async with await aio_pika.connect(amqp_url) as connection:
            channel = await connection.channel(publisher_confirms=True)
            target = await channel.get_exchange(exchange)
            message = aio_pika.Message(
                b"hello",
                message_id="m-1",
                app_id="legacy",
                content_type="text/plain",
                correlation_id="saga-1",
                headers={"retries": 3, "nested": {"a": [1, 2.5, None, True]}, "tenant": "acme"},
            )
            await target.publish(message, routing_key=topic)
        (delivery,) = await take(subscription, 1)
        event = event_of(delivery)
        assert (event.id, event.source, event.type) == ("m-1", "legacy", topic)
        assert (event.data, event.datacontenttype, event.correlationid) == (b"hello", "text/plain", "saga-1")
        assert event.extensions == {"retries": "3", "tenant": "acme"}


async def test_connections_carry_a_name(rabbitmq: RabbitMQServer, amqp_url: str) -> None:
    """An operator sees whose connection it is and what it is for."""
    from tests.servers.rabbitmq import PrivateRabbitMQ

    if not isinstance(rabbitmq, PrivateRabbitMQ):
        pytest.skip("needs a broker of the run's own, to look into it")
    name = word()
    broker = RabbitMQBroker(amqp_url, name=name)
    async with broker.publisher(), broker.subscribe(Queue("warehouse"), prefetch=1):
        names = await anyio.to_thread.run_sync(
            rabbitmq.evaluate,
            "[begin [{_, Properties}] = rabbit_reader:info(P, [client_properties]), "
            'case lists:keyfind(<<"connection_name">>, 1, Properties) of '
            "{_, _, Name} -> binary_to_list(Name); false -> none end end || P <- rabbit_networking:connections()]",
        )
    assert f"{name} publisher" in names
    assert f"{name} consumer of warehouse" in names
