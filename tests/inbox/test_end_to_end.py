"""From a commit in one service to one effect in each of three others, with everything real, while things break."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta
from urllib.parse import urlsplit, urlunsplit

import aiormq
import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Broker, Confirmed, Outgoing
from sagapost.inbox import Consumer, Context, Reject
from sagapost.inbox.declared import observations as obs
from sagapost.outbox.relay import Relay
from tests.faults.proxy import FaultProxy
from tests.inbox.harness import FAST, OrderPlaced, Recorder, Service, an_event, quick_settings, running

CHAOS_EVENTS = int(os.environ.get("SAGAPOST_CHAOS_EVENTS", "1500"))
FAULTS = CHAOS_EVENTS // 20
"""So many and no more: they come by the clock, and on a busy machine would leave no time for the work."""
KEYS = 40


def refused(number: int) -> bool:
    """Tell which orders every service refuses for good."""
    return number % 53 == 7


class Hearing:
    """A service that hears orders: some need a second round, some are refused."""

    def __init__(self, name: str, *, ordered: bool = False, batch: int = 1) -> None:
        self.service = Service(name, schema=f"of_{name}", ordered=ordered)
        self.batch = batch
        self.restarts = 0

        @self.service.inbox.on(OrderPlaced)
        async def hear(event: OrderPlaced, ctx: Context) -> None:
            number = int(event.order_id)
            await ctx.session.execute(self.service.write(event.order_id, note=ctx.event.partitionkey or ""))
            if refused(number):
                raise Reject("an order that nobody wants")
            if number % 41 == 3 and ctx.attempt == 1:
                raise ConnectionError

    async def run(self, engine: AsyncEngine, broker: Broker, rng: random.Random, done: anyio.Event) -> None:
        """Consume until done, now and then in a new consumer."""
        settings = quick_settings(
            retry=FAST,
            batch=self.batch,
            concurrency=4,
            on_dead="skip",
            handler_timeout=timedelta(seconds=10),
            database_timeout=timedelta(seconds=5),
            drain_timeout=timedelta(seconds=2),
        )
        while not done.is_set():
            consumer = Consumer(self.service.inbox, engine=engine, broker=broker, settings=settings)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(consumer.run)
                with anyio.move_on_after(rng.uniform(2.0, 5.0)):
                    await done.wait()
                consumer.stop()
            self.restarts += 1

    async def finished(self, engine: AsyncEngine, orders: int) -> bool:
        """Return whether every order has come to an end here; also with too many effects, which is then found."""
        dead = sum(map(refused, range(orders)))
        effects = await self.service.count(engine, self.service.effects)
        return effects >= orders - dead and await self.service.count(engine, self.service.tables.parked) == dead


async def _place_orders(orders: Service, engine: AsyncEngine, number: int) -> None:
    """Publish in transactions of ten."""
    for start in range(0, number, 10):
        async with engine.begin() as connection:
            for order in range(start, min(start + 10, number)):
                await orders.outbox.publish(connection, OrderPlaced(f"{order:06}"), key=f"k{order % KEYS}")


async def _break_things(
    rng: random.Random, proxy: FaultProxy, admin: AsyncEngine, done: anyio.Event, report: dict[str, int]
) -> None:
    """Until done: cut, stall or slow the broker's connections, terminate database backends."""
    for _ in range(FAULTS):
        if done.is_set():
            break
        with anyio.move_on_after(rng.uniform(0.2, 0.8)):
            await done.wait()
        action = rng.choice(["cut", "stall", "delay", "terminate", "terminate"])
        report[action] = report.get(action, 0) + 1
        match action:
            case "cut":
                await proxy.cut()
            case "stall":
                proxy.stall()
                await anyio.sleep(rng.uniform(0.05, 0.3))
                await proxy.heal()
            case "delay":
                proxy.delay(rng.uniform(0.001, 0.02))
            case _:
                async with admin.connect() as connection:
                    await connection.execute(
                        text(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                            "WHERE datname = current_database() AND application_name = 'victim' "
                            "ORDER BY random() LIMIT 3"
                        )
                    )
    await proxy.heal()


@pytest.fixture
async def victims(postgresql_url: str) -> AsyncIterator[AsyncEngine]:
    """The consumers' engine, whose connections are terminated."""
    settings = {"application_name": "victim"}
    engine = create_async_engine(postgresql_url, pool_size=40, connect_args={"server_settings": settings})
    yield engine
    await engine.dispose()


@pytest.mark.chaos
@pytest.mark.timeout(700)
async def test_one_effect_each_in_three_services_while_everything_breaks(
    postgresql_url: str, postgresql_engine: AsyncEngine, victims: AsyncEngine, amqp_url: str
) -> None:
    """0 lost, 0 doubled, order kept where it is asked for, and every parked message accounted for.

    SAGAPOST_CHAOS_EVENTS sets the number of events.
    """
    seed = int(os.environ.get("SAGAPOST_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    admin = postgresql_engine
    orders = Service("orders")
    hearing = [Hearing("ordered", ordered=True), Hearing("default"), Hearing("grouped", batch=20)]
    for service in (orders, *(one.service for one in hearing)):
        await service.install(admin)
    parts = urlsplit(amqp_url)
    report: dict[str, int] = {}
    done = anyio.Event()
    async with FaultProxy(parts.hostname or "127.0.0.1", parts.port or 5672) as proxy:
        netloc = parts.netloc.replace(f":{parts.port}", f":{proxy.port}").replace(str(parts.hostname), proxy.host)
        broker = RabbitMQBroker(urlunsplit(parts._replace(netloc=netloc)), exchange="chaos")
        await broker.declare(*(one.service.inbox.queue for one in hearing))
        store = PostgreSQLOutboxStore(postgresql_url, tables=orders.outbox.tables)
        relay = Relay(store, broker)
        with anyio.fail_after(600):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(relay.run)
                for one in hearing:
                    tasks.start_soon(one.run, victims, broker, random.Random(rng.random()), done)
                tasks.start_soon(_break_things, rng, proxy, admin, done, report)
                await _place_orders(orders, admin, CHAOS_EVENTS)
                while not all([await one.finished(admin, CHAOS_EVENTS) for one in hearing]):  # noqa: ASYNC110 - tables
                    await anyio.sleep(0.2)
                done.set()
                relay.stop()
    print(f"{report}, consumers replaced {[one.restarts for one in hearing]} times")
    expected = [f"{number:06}" for number in range(CHAOS_EVENTS) if not refused(number)]
    for one in hearing:
        rows = await one.service.rows(admin, one.service.effects)
        written = [row.order_id for row in rows]
        lost, doubled = set(expected) - set(written), len(written) - len(set(written))
        assert (one.service.inbox.name, lost, doubled) == (one.service.inbox.name, set(), 0)
        assert sorted(written) == expected
        parked = await one.service.parked(admin)
        assert {row.reason for row in parked} == {"rejected"}
        if one.service.inbox.ordered:
            by_key: dict[str, list[str]] = defaultdict(list)
            for row in rows:
                by_key[row.note].append(row.order_id)
            assert all(numbers == sorted(numbers) for numbers in by_key.values())


async def _publish(broker: RabbitMQBroker, count: int) -> None:
    events = [an_event(OrderPlaced(f"{number:03}"), key=f"k{number % 3}") for number in range(count)]
    async with broker.publisher() as publisher:
        confirmation = await publisher.send([Outgoing(event, event.type) for event in events])
        assert set(map(type, await confirmation.wait())) == {Confirmed}


async def test_of_several_ordered_replicas_one_is_active_and_another_takes_over(
    postgresql_engine: AsyncEngine, amqp_url: str
) -> None:
    """Two consumers of an ordered inbox on RabbitMQ: one receives; when it stops the other goes on, in order."""
    service = Service(ordered=True)
    engine = postgresql_engine

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await anyio.sleep(0.005)
        await ctx.session.execute(service.write(event.order_id, note=ctx.event.partitionkey or ""))

    await service.install(engine)
    broker = RabbitMQBroker(amqp_url)
    await broker.declare(service.inbox.queue)
    first, second = Recorder(), Recorder()
    async with running(service, engine, broker, seen=second, concurrency=5) as standby:
        async with running(service, engine, broker, seen=first, concurrency=5) as active:
            # Which of them is the active one is the broker's affair.
            await first.until(obs.ConsumerReady)
            await second.until(obs.ConsumerReady)
            await _publish(broker, 150)
            with anyio.fail_after(30):
                while active.statistics.handled + standby.statistics.handled < 20:  # noqa: ASYNC110 - of two observers
                    await anyio.sleep(0.01)
            assert min(active.statistics.received, standby.statistics.received) == 0
        await second.until_true(lambda: active.statistics.handled + standby.statistics.handled >= 150)
    rows = await service.rows(engine, service.effects)
    assert len(rows) == 150
    for key in ("k0", "k1", "k2"):
        numbers = [row.order_id for row in rows if row.note == key]
        assert numbers == sorted(numbers)


async def test_a_queue_that_is_deleted_under_the_consumer(postgresql_engine: AsyncEngine, amqp_url: str) -> None:
    """RabbitMQ cancels the consumer; it says so, declares the queue again and goes on."""
    service = Service()
    engine = postgresql_engine

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    broker = RabbitMQBroker(amqp_url)
    async with running(service, engine, broker) as consumer:
        await consumer.seen.until(obs.ConsumerReady)
        await _publish(broker, 3)
        await consumer.settled(3)
        connection = await aiormq.connect(amqp_url)
        channel = await connection.channel()
        await channel.queue_delete("warehouse")
        await connection.close()
        await consumer.seen.until_lost("broker")
        await consumer.seen.until(obs.ConsumerReady, 2)
        await _publish(broker, 5)
        await consumer.settled(8)
    assert len(await service.written(engine)) == 8
