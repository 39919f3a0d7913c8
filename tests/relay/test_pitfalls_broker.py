"""What went wrong between other relays and their brokers (docs/pitfalls.md), done to this one on a real RabbitMQ."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from urllib.parse import unquote, urlsplit

import aiormq
import anyio
import anyio.to_thread
import msgspec
import pytest
from sqlalchemy.engine import make_url

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Queue
from sagapost.core.ids import new_uuid
from sagapost.inbox import Context
from sagapost.inbox.declared import observations as inbox
from sagapost.outbox.relay import Routing
from sagapost.outbox.relay import observations as obs
from tests.faults.proxy import FaultProxy
from tests.inbox.harness import Service
from tests.inbox.harness import running as consuming
from tests.processes.shared import run_module
from tests.relay.shop import EVERYTHING, FAST, Shop, Watch, numbers, received, running
from tests.relay.victim import Plan
from tests.servers.brokers import RabbitMQServer
from tests.servers.rabbitmq_admin import AdministeredRabbitMQ


@pytest.mark.parametrize("moment", ["Sent", "Published"])
async def test_pitfall_03_a_relay_killed_before_it_settles_costs_duplicates_that_are_recognised(
    shop: Shop, amqp_url: str, moment: str
) -> None:
    """Its successor publishes the same rows under the same ids; the inbox has one effect of each, in order."""
    service = Service(ordered=True)

    @service.inbox.on("shop.said.v1")
    async def note(event: dict[str, int], ctx: Context) -> None:
        await ctx.session.execute(service.write(str(event["n"])))

    await service.install(shop.engine)
    broker, watch = RabbitMQBroker(amqp_url), Watch()
    await broker.declare(service.inbox.queue, EVERYTHING)
    await shop.say(*range(20))
    plan = msgspec.json.encode(Plan(shop.url, amqp_url, moment)).decode()
    died = await run_module("tests.relay.victim", plan)
    assert died.returncode == -9, died.stderr
    assert await shop.one("SELECT count(*) FROM outbox") == 20
    async with running(shop.relay(broker, watch)):
        await watch.until(lambda: watch.settled == 20)
    async with consuming(service, shop.engine, broker) as consumer:
        await consumer.seen.until_true(lambda: consumer.statistics.handled == 20)
        if moment == "Published":
            # Some were confirmed, so some came twice. (Killed while sending, the broker may have got none.)
            await consumer.seen.until_true(
                lambda: (
                    bool(consumer.seen.of(inbox.Duplicate))
                    or any(screened.duplicates for screened in consumer.seen.of(inbox.Screened))
                )
            )
    assert await service.written(shop.engine) == [str(n) for n in range(20)]


async def test_pitfall_03_the_duplicate_has_the_id_of_the_first(shop: Shop, amqp_url: str) -> None:
    """Confirms are lost on their way back and the connection is cut: what is sent again carries the ids it had."""
    url = make_url(amqp_url)
    watch = Watch()
    await RabbitMQBroker(amqp_url).declare(EVERYTHING)
    async with FaultProxy(url.host or "", url.port or 5672) as proxy:
        broker = RabbitMQBroker(url.set(host=proxy.host, port=proxy.port).render_as_string(hide_password=False))
        async with running(shop.relay(broker, watch)):
            await shop.say(0)
            await watch.until(lambda: watch.settled == 1)
            proxy.swallow("to_client")
            await shop.say(1, 2, 3)
            await watch.until(lambda: sum(e.rows for e in watch.events if isinstance(e, obs.Sent)) == 4)
            # The broker has taken them in when another consumer has them.
            first = await received(RabbitMQBroker(amqp_url), 4)
            await proxy.cut()
            await proxy.heal()
            await watch.until(lambda: watch.settled == 4, within=60)
    again = await received(RabbitMQBroker(amqp_url), 3)
    assert [event.id for event in again] == [event.id for event in first[1:]]
    assert numbers(again) == [1, 2, 3]
    assert watch.count(obs.Held) == 0


async def test_pitfall_13_a_broker_gone_without_a_word_is_noticed_and_left(shop: Shop, amqp_url: str) -> None:
    """Half-open TCP: nothing hangs, no attempt is burned, and a new connection carries on in order, once each."""
    url = make_url(amqp_url)
    watch, direct = Watch(), RabbitMQBroker(amqp_url)
    await direct.declare(EVERYTHING)
    async with FaultProxy(url.host or "", url.port or 5672) as proxy:
        broker = RabbitMQBroker(
            url.set(host=proxy.host, port=proxy.port).render_as_string(hide_password=False),
            heartbeat=timedelta(seconds=1),
            confirm_timeout=timedelta(seconds=20),
        )
        async with running(shop.relay(broker, watch)):
            await shop.say(0)
            await watch.until(lambda: watch.settled == 1)
            assert proxy.strand() >= 1
            await shop.say(*range(1, 50))
            await watch.until(lambda: watch.settled == 50, within=60)
        assert watch.lost("broker") >= 1
        assert watch.count(obs.Held) == 0
    assert numbers(await received(direct, 50)) == list(range(50))


@pytest.mark.parametrize("forbidden", ["topic", "exchange", "everything"])
async def test_pitfall_33_a_refused_event_is_held_with_the_reason_and_the_others_flow(
    shop: Shop, rabbitmq: RabbitMQServer, amqp_url: str, forbidden: str
) -> None:
    """Rights that are missing for some events: no outage, no duplicate, their keys wait, and go on once allowed."""
    if not isinstance(rabbitmq, AdministeredRabbitMQ):
        pytest.skip("needs a broker of the run's own, to set rights inside it")
    parts = urlsplit(amqp_url)
    vhost, user = unquote(parts.path[1:]), f"u{new_uuid().hex}"
    url = parts._replace(netloc=f"{user}:{user}@{parts.netloc.rpartition('@')[2]}").geturl()

    async def allow(write: str, topics: str | None = None) -> None:
        rights = {"configure": ".*", "write": write, "read": ".*"}
        await anyio.to_thread.run_sync(lambda: rabbitmq.create_user(user, vhost, **rights))
        await anyio.to_thread.run_sync(rabbitmq.set_topic_right, user, vhost, "sagapost", topics)

    routing = Routing(destinations={"shop.bad.v1": "audit"} if forbidden == "exchange" else {})
    watch, direct = Watch(), RabbitMQBroker(amqp_url)
    await direct.declare(EVERYTHING)
    await _exchange_bound(amqp_url, "audit", EVERYTHING.name)
    match forbidden:
        case "topic":
            await allow(".*", "^(?!shop.bad)")
        case "exchange":
            await allow("^sagapost$|^everything")
        case _:
            await allow("^everything")
    good = list(range(300))
    try:
        async with running(shop.relay(RabbitMQBroker(url), watch, replace(FAST, routing=routing))):
            for n in (100, 200, 300):
                await shop.say(*good[n - 100 : n], key=None)
                await shop.say(1000 + n, 2000 + n, key=f"bad-{n}", type_="shop.bad.v1")
                await shop.say(3000 + n, key=f"bad-{n}")
            flowing = 0 if forbidden == "everything" else 300
            keys = 303 if forbidden == "everything" else 3
            await watch.until(lambda: watch.settled == flowing and _held(watch) == keys, within=60)
            assert watch.lost("broker") == 0
            reasons = {event.reason for event in watch.events if isinstance(event, obs.Held)}
            assert reasons
            assert all("403 ACCESS_REFUSED" in reason for reason in reasons)
            assert await _waiting(amqp_url, EVERYTHING.name) == flowing
            assert await shop.one("SELECT count(*) FROM outbox WHERE last_error LIKE '%403%'") == keys
            await allow(".*")
            await watch.until(lambda: watch.settled == 309, within=60)
            assert watch.lost("broker") == 0
            assert await _waiting(amqp_url, EVERYTHING.name) == 309
    finally:
        await anyio.to_thread.run_sync(rabbitmq.delete_user, user)
    arrived = numbers(await received(direct, 309))
    for n in (100, 200, 300):
        assert [m for m in arrived if m in {1000 + n, 2000 + n, 3000 + n}] == [1000 + n, 2000 + n, 3000 + n]


def _held(watch: Watch) -> int:
    """How many rows were held at least once."""
    return len({event.position for event in watch.events if isinstance(event, obs.Held)})


async def _exchange_bound(amqp_url: str, exchange: str, queue: str) -> None:
    async with aiormq.Connection(amqp_url) as connection:
        channel = await connection.channel()
        await channel.exchange_declare(exchange, exchange_type="topic", durable=True)
        await channel.queue_bind(queue, exchange, routing_key="#")


async def _waiting(amqp_url: str, queue: str) -> int:
    async with aiormq.Connection(amqp_url) as connection:
        channel = await connection.channel()
        return (await channel.queue_declare(queue, passive=True)).message_count or 0


async def test_pitfall_01_a_binding_removed_under_load_loses_nothing(shop: Shop, amqp_url: str) -> None:
    """Events that find no queue any more stay, and arrive when there is one again: each of them, of every key."""
    broker, watch = RabbitMQBroker(amqp_url), Watch()
    first, second = Queue("first", EVERYTHING.topics), Queue("second", EVERYTHING.topics)
    await broker.declare(first)
    total, keys = 300, 7
    arrived: list[int] = []
    async with running(shop.relay(broker, watch, replace(FAST, batch_rows=10, max_in_flight=40))):
        async with anyio.create_task_group() as tasks:

            async def write() -> None:
                for number in range(total):
                    await shop.say(number, key=f"key-{number % keys}")

            tasks.start_soon(write)
            await watch.until(lambda: watch.settled > 30)
            arrived += await _taken_and_deleted(amqp_url, first.name)
            await watch.until(lambda: watch.count(obs.Held) >= keys)
        await broker.declare(second)
        await watch.until(lambda: watch.settled == total, within=60)
    later = numbers(await received(broker, total - len(arrived), second))
    assert Counter(arrived + later) == Counter(range(total))
    for key in range(keys):
        of_key = [n for n in arrived + later if n % keys == key]
        assert of_key == sorted(of_key)


async def _taken_and_deleted(amqp_url: str, queue: str) -> list[int]:
    """Remove a queue's bindings, take what it has, and delete it."""
    connection = await aiormq.connect(amqp_url)
    try:
        channel = await connection.channel()
        await channel.queue_unbind(queue, "sagapost.listeners", routing_key="#")
        taken: list[int] = []
        while (message := await channel.basic_get(queue, no_ack=True)).body or message.delivery_tag:
            taken.append(msgspec.json.decode(message.body)["n"])
        await channel.queue_delete(queue)
        return taken
    finally:
        await connection.close()
