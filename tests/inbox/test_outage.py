"""Databases and brokers that go away: nothing is acknowledged that is not committed, and work resumes by itself."""

from __future__ import annotations

from datetime import timedelta

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.errors import ConfigurationError, SchemaError, TopologyConflictError
from sagapost.core.identity import dedup_key
from sagapost.core.life import ServerReady
from sagapost.inbox import Consumer, Context
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.kept.registry import register_consumer
from tests.inbox.harness import FAST, NEVER, OrderPlaced, Recorder, Service, an_event, quick_settings, running, send
from tests.servers.fixtures import OwnPostgreSQL


def writing(service: Service) -> None:
    """Give the service a handler that writes its orders down."""

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))


# --- the database ---


async def test_nothing_is_acknowledged_when_the_connection_ends_before_the_commit(
    postgresql_engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """The backend is terminated under the handler: no attempt is lost, the message is handled again, once."""
    service = Service()
    engine = postgresql_engine
    killed = 0

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        nonlocal killed
        await ctx.session.execute(service.write(event.order_id))
        if not killed:
            killed = (await ctx.session.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            async with engine.connect() as other:
                await other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": killed})

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker, retry=FAST) as consumer:
        await consumer.settled(1)
        steps = [type(event).__name__ for event in consumer.seen.of(obs.DeliveryStep)]
    assert killed
    assert await service.written(engine) == ["o-1"]
    assert steps.index("Acknowledged") > max(
        index for index, name in enumerate(steps) if name in ("Handled", "Parked")
    )


async def test_a_commit_that_is_refused_is_a_failure_of_the_handler(
    postgresql_engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """A deferred constraint fails the commit itself: nothing remains, the message is parked, then acknowledged."""
    service = Service()
    engine = postgresql_engine
    writing(service)
    await service.install(engine)
    async with engine.begin() as connection:
        await connection.execute(
            text("ALTER TABLE effects ADD CONSTRAINT once UNIQUE (order_id) DEFERRABLE INITIALLY DEFERRED")
        )
    await send(broker, service, an_event(OrderPlaced("o-1")), an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker, concurrency=1) as consumer:
        await consumer.settled(2)
    assert await service.written(engine) == ["o-1"]
    (parked,) = await service.parked(engine)
    assert parked.reason == "failed"
    assert "IntegrityError" in parked.error
    assert await service.count(engine, service.tables.seen) == 2


async def test_an_outage_of_the_database_burns_no_attempt_and_loses_nothing(
    own_postgresql: OwnPostgreSQL, broker: MemoryBroker
) -> None:
    """Stopped under load and started again: nothing parked although nothing may be retried, one effect each."""
    server = own_postgresql(durable=True)
    engine = create_async_engine(server.url(), pool_size=15)
    service = Service()
    writing(service)
    await service.install(engine)
    events = [an_event(OrderPlaced(f"{n:04}")) for n in range(400)]
    await send(broker, service, *events)
    async with running(service, engine, broker, retry=NEVER) as consumer:
        await consumer.settled(50)
        await anyio.to_thread.run_sync(server.kill)
        await consumer.seen.until_lost("database", 2)
        acknowledged = consumer.statistics.acknowledged
        handled = consumer.statistics.handled
        assert acknowledged <= handled + 10
        await anyio.to_thread.run_sync(server.start)
        await consumer.settled(400)
        assert consumer.seen.of(ServerReady)
        assert consumer.seen.of(obs.Parked) == []
    assert sorted(await service.written(engine)) == [f"{n:04}" for n in range(400)]
    await engine.dispose()


async def test_an_outage_that_lasts_gives_the_messages_back(
    own_postgresql: OwnPostgreSQL, broker: MemoryBroker
) -> None:
    """Before the broker's own limit on unacknowledged messages the consumer lets go, and subscribes again later."""
    server = own_postgresql(durable=True)
    engine = create_async_engine(server.url(), pool_size=15)
    service = Service()
    writing(service)
    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("first")))
    async with running(service, engine, broker, release_after=timedelta(milliseconds=200)) as consumer:
        await consumer.settled(1)
        await anyio.to_thread.run_sync(server.kill)
        await send(broker, service, *(an_event(OrderPlaced(f"{n:02}")) for n in range(20)))
        await consumer.seen.until(obs.GivenBack)
        with anyio.fail_after(10):
            while len(broker.waiting("warehouse")) < 20:  # noqa: ASYNC110 - the broker has no signal for it
                await anyio.sleep(0.01)
        await anyio.to_thread.run_sync(server.start)
        await consumer.seen.until(obs.ConsumerReady, 2)
        await consumer.settled(21)
    assert sorted(await service.written(engine)) == [*(f"{n:02}" for n in range(20)), "first"]
    await engine.dispose()


async def test_a_frozen_database_is_noticed(own_postgresql: OwnPostgreSQL, broker: MemoryBroker) -> None:
    """A server that accepts and does not answer: noticed within the limits, and work resumes when it does."""
    server = own_postgresql(durable=True)
    engine = create_async_engine(server.url(), pool_size=15)
    service = Service()
    writing(service)
    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("first")))
    limit = timedelta(milliseconds=500)
    async with running(service, engine, broker, handler_timeout=limit, database_timeout=limit, retry=FAST) as consumer:
        await consumer.settled(1)
        await anyio.to_thread.run_sync(server.pause)
        await send(broker, service, an_event(OrderPlaced("second")))
        await consumer.seen.until_lost("database")
        await anyio.to_thread.run_sync(server.resume)
        await consumer.settled(2)
        await consumer.seen.until_true(lambda: consumer.statistics.handled == 2)
    assert sorted(await service.written(engine)) == ["first", "second"]
    await engine.dispose()


async def test_an_unreachable_database_is_waited_for_at_the_start(
    own_postgresql: OwnPostgreSQL, broker: MemoryBroker
) -> None:
    """A consumer that starts before its database begins when it is there."""
    server = own_postgresql(durable=True)
    engine = create_async_engine(server.url())
    service = Service()
    writing(service)
    await service.install(engine)
    await engine.dispose()
    await anyio.to_thread.run_sync(server.kill)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker) as consumer:
        await consumer.seen.until_lost("database")
        await anyio.to_thread.run_sync(server.start)
        await consumer.settled(1)
    await engine.dispose()


async def test_stopping_during_an_outage_ends_at_once(own_postgresql: OwnPostgreSQL, broker: MemoryBroker) -> None:
    """No drain budget is spent on a database that is not there; the messages stay with the broker."""
    server = own_postgresql(durable=True)
    engine = create_async_engine(server.url())
    service = Service()
    writing(service)
    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("first")))
    async with running(service, engine, broker, drain_timeout=timedelta(seconds=60)) as consumer:
        await consumer.settled(1)
        await anyio.to_thread.run_sync(server.kill)
        await send(broker, service, an_event(OrderPlaced("o-1")))
        await consumer.seen.until_lost("database")
        began = anyio.current_time()
    assert anyio.current_time() - began < 10
    assert len(broker.waiting("warehouse")) == 1
    await engine.dispose()


# --- the broker ---


async def test_a_lost_subscription_is_opened_again(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Connections drop again and again under load: what was not acknowledged comes again, one effect each."""
    service = Service()
    writing(service)
    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(f"{n:03}")) for n in range(200)))
    async with running(service, engine, broker) as consumer:
        for _ in range(4):
            seen = consumer.statistics.handled
            await consumer.seen.until_true(lambda seen=seen: consumer.statistics.handled > seen + 20)  # type: ignore[misc]
            broker.disconnect()
        await consumer.seen.until_lost("broker", 4)
        await consumer.seen.until_true(lambda: consumer.statistics.handled >= 200)
    assert sorted(await service.written(engine)) == [f"{n:03}" for n in range(200)]
    assert await service.count(engine, service.tables.attempts) == 0


async def test_a_broker_that_is_down_is_waited_for(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Down at the start and down again later; parked messages are handled meanwhile, which needs no broker."""
    service = Service()
    attempts = 0

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        nonlocal attempts
        attempts += 1
        if event.order_id == "later" and attempts < 4:
            raise ConnectionError
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("later")))
    broker.go_down()
    async with running(service, engine, broker, retry=FAST) as consumer:
        await consumer.seen.until_lost("broker", 2)
        broker.come_up()
        await consumer.seen.until(obs.Parked)
        broker.go_down()
        await consumer.seen.until(obs.Handled)
    assert await service.written(engine) == ["later"]


async def test_a_deleted_queue_is_declared_again(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The consumer is cancelled by the broker, says so, and goes on with a new queue."""
    service = Service()
    writing(service)
    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("before")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
        broker.delete_queue("warehouse")
        (lost,) = await consumer.seen.until_lost("broker")
        assert "the queue was deleted" in lost.reason
        await consumer.seen.until(obs.ConsumerReady, 2)
        await send(broker, service, an_event(OrderPlaced("after")))
        await consumer.settled(2)
    assert await service.written(engine) == ["before", "after"]


# --- stop ---


async def test_stop_finishes_what_runs_and_gives_back_the_rest(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The running handler commits and is acknowledged; the others are with the broker again, untouched."""
    service = Service()
    started, go_on = anyio.Event(), anyio.Event()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        started.set()
        await go_on.wait()

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(str(n))) for n in range(5)))
    async with running(service, engine, broker, concurrency=1) as consumer:
        await started.wait()
        await consumer.seen.until(obs.Received, 5)
        consumer.consumer.stop()
        go_on.set()
        (stopped,) = await consumer.seen.until(obs.ConsumerStopped)
    assert stopped.unfinished == 0
    assert await service.written(engine) == ["0"]
    assert len(broker.waiting("warehouse")) == 4
    (released,) = consumer.seen.of(obs.GivenBack)
    assert released.messages == 4


async def test_what_waits_for_a_lock_when_stopped_has_the_drain_budget(
    postgresql_engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """A replica nobody learns of any more holds the dedup key: the database answers, so that is no outage."""
    service, engine = Service(), postgresql_engine
    writing(service)
    await service.install(engine)
    async with engine.begin() as connection:
        number = await connection.run_sync(register_consumer, service.tables, service.inbox.name)
    event = an_event(OrderPlaced("o-1"))
    await send(broker, service, event)
    short = timedelta(milliseconds=300)
    async with engine.connect() as elsewhere:
        await elsewhere.execute(service.tables.seen.insert().values(consumer=number, key=dedup_key(event)))
        async with running(service, engine, broker, handler_timeout=short, database_timeout=short) as consumer:
            await consumer.seen.until_lost("database")
            consumer.consumer.stop()
            tries = len(consumer.seen.of(obs.Started))
            await consumer.seen.until(obs.Started, tries + 1)
            await elsewhere.rollback()
            (stopped,) = await consumer.seen.until(obs.ConsumerStopped)
    assert stopped.unfinished == 0
    assert await service.written(engine) == ["o-1"]


async def test_a_handler_over_the_drain_budget_is_called_off(
    postgresql_engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Its transaction is undone and its message given back; the count of unfinished ones is reported."""
    service = Service()
    engine = postgresql_engine
    started = anyio.Event()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        started.set()
        await anyio.sleep_forever()

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker, drain_timeout=timedelta(milliseconds=100)) as consumer:
        await started.wait()
        consumer.consumer.stop()
        (stopped,) = await consumer.seen.until(obs.ConsumerStopped)
    assert stopped.unfinished == 1
    assert await service.written(engine) == []
    assert len(broker.waiting("warehouse")) == 1


async def test_a_cancelled_consumer_leaves_no_trace_of_what_it_had_begun(
    postgresql_engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """A second signal stops at once: nothing half done, the message is with the broker, no connection leaks."""
    service = Service()
    engine = postgresql_engine
    started = anyio.Event()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        started.set()
        await anyio.sleep_forever()

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    consumer = Consumer(service.inbox, engine=engine, broker=broker, settings=quick_settings())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await started.wait()
        tasks.cancel_scope.cancel()
    assert len(broker.waiting("warehouse")) == 1
    assert await service.written(engine) == []
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # of QueuePool


async def test_a_round_that_is_called_off_counts_nothing(postgresql_engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Stopping in order during the round of a parked message is neither an attempt nor a crash."""
    service = Service()
    engine = postgresql_engine
    started = anyio.Event()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ConnectionError
        started.set()
        await anyio.sleep_forever()

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker, retry=FAST, drain_timeout=timedelta(milliseconds=50)):
        await started.wait()
    (parked,) = await service.parked(engine)
    assert (parked.state, parked.attempts, parked.crashes, parked.claimed) == ("waiting", 1, 0, 0)


# --- bounds and beginnings ---


async def test_bytes_in_hand_are_bounded(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Large messages: what is in flight stays within the bound and one message, whatever the prefetch would allow."""
    service = Service()
    most = 0
    seen = Recorder()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        nonlocal most
        await anyio.lowlevel.checkpoint()
        most = max(most, consumer.statistics.bytes_in_hand)

    await service.install(engine)
    await send(broker, service, *(an_event(OrderPlaced(str(n), note="x" * 10_000)) for n in range(60)))
    async with running(
        service, engine, broker, max_bytes_in_hand=50_000, prefetch=60, concurrency=2, seen=seen
    ) as consumer:
        await consumer.settled(60)
    assert 20_000 < most <= 50_000 + 10_100


async def test_missing_tables_are_said_so(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """A consumer without its tables does not start, and says what to run."""
    service = Service()
    writing(service)
    consumer = Consumer(service.inbox, engine=engine, broker=broker)
    with pytest.raises(SchemaError, match="sagapost db upgrade"):
        await consumer.run()


async def test_a_queue_with_other_arguments_is_said_so(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The conflict is raised as it is, and not in a group."""
    service = Service()
    writing(service)
    await service.install(engine)
    await broker.declare(service.inbox.queue)
    other = Service(ordered=True)
    writing(other)
    with pytest.raises(TopologyConflictError, match="ordered"):
        await Consumer(other.inbox, engine=engine, broker=broker).run()


def test_a_pool_that_is_too_small_is_said_so(broker: MemoryBroker) -> None:
    """Otherwise transactions would wait for each other's connections."""
    service = Service()
    writing(service)
    engine = create_async_engine("postgresql+asyncpg://nobody@127.0.0.1/nothing", pool_size=3, max_overflow=2)
    with pytest.raises(ConfigurationError, match="pool_size=13"):
        Consumer(service.inbox, engine=engine, broker=broker)


def test_an_inbox_without_handlers_is_said_so(broker: MemoryBroker) -> None:
    """Most likely the module with the handlers was not imported."""
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(ConfigurationError, match="import the module"):
        Consumer(Service().inbox, engine=engine, broker=broker)
