"""The tracker as a consumer: it handles everything, and killed at any point it loses nothing and doubles no action."""

from __future__ import annotations

import random
from collections.abc import Sequence

import anyio
import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Broker, Outgoing, Queue
from sagapost.core.envelope import Event
from sagapost.core.naming import event_type_of
from sagapost.core.schema import install_schema
from sagapost.outbox import OutboxTables
from sagapost.sagas.choreography import Choreography
from sagapost.sagas.events import CompensationStuck, RollbackRequested
from sagapost.sagas.tracker import Tracker, TrackerConsumer, TrackerSettings, fold
from tests.processes.shared import running_module
from tests.sagas.choreographies import healthy
from tests.sagas.tracker.histories import Story

pytestmark = pytest.mark.anyio

CHOREOGRAPHY = Choreography(healthy())
BOUND = 90.0


def many(count: int) -> list[Event]:
    events: list[Event] = []
    for n in range(count):
        story = Story(f"saga-{n:03}")
        story.says("orders", "order-placed", data={"order_id": str(n)})
        story.says("payment", "payment-taken")
        if n % 2:
            story.says("payment", CompensationStuck("payment", "refund", "no answer", 3))
        events += story.events
    return events


async def publish(broker: Broker, events: Sequence[Event]) -> None:
    async with broker.publisher() as publisher:
        confirmation = await publisher.send([Outgoing(event, event.type) for event in events])
        await confirmation.wait()


async def until_folded(tracker: Tracker, events: Sequence[Event]) -> None:
    """Wait until every event is in its saga's history."""
    wanted = {(event.correlationid, event.id) for event in events}
    with anyio.fail_after(BOUND):
        while wanted:
            for saga in {saga for saga, _ in wanted}:
                assert saga is not None
                view = await tracker.show(saga)
                if view is not None:
                    wanted -= {(saga, entry.id) for entry in view.history}
            await anyio.sleep(0.02)


async def test_what_is_published_is_folded_and_a_stop_drains(engine: AsyncEngine) -> None:
    """Every topic is handled; after the stop `run` returns with everything acknowledged."""
    broker, tracker = MemoryBroker(), Tracker(engine, CHOREOGRAPHY, settings=TrackerSettings(keys=("order_id",)))
    await tracker.install()
    consumer, events = TrackerConsumer(tracker, broker), many(20)
    await broker.declare(consumer.queue)
    await publish(broker, events)
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            await until_folded(tracker, events)
            consumer.stop()
    expected = fold(events, CHOREOGRAPHY, keys=["order_id"])
    assert {saga: await tracker.show(saga) for saga in expected} == expected


async def test_an_outage_of_the_broker_is_waited_out(engine: AsyncEngine) -> None:
    """Connections that drop come back, and nothing is missing."""
    broker, tracker = MemoryBroker(), Tracker(engine, CHOREOGRAPHY)
    await tracker.install()
    consumer, events = TrackerConsumer(tracker, broker), many(20)
    await broker.declare(consumer.queue)
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            await publish(broker, events[:20])
            await until_folded(tracker, events[:20])
            broker.disconnect()
            await publish(broker, events[20:])
            await until_folded(tracker, events)
            consumer.stop()


async def test_killed_again_and_again_it_loses_nothing_and_acts_once(postgresql_url: str, amqp_url: str) -> None:
    """Three kills while it folds and acts: every event in its saga, exactly one rollback asked for per stuck saga."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    engine, broker = create_async_engine(postgresql_url), RabbitMQBroker(amqp_url)
    tracker, outbox = Tracker(engine, CHOREOGRAPHY), OutboxTables()
    await tracker.install()
    async with engine.begin() as connection:
        await connection.run_sync(install_schema, outbox.versions, [outbox.part])
    asked = Queue("asked", frozenset({event_type_of(RollbackRequested)}))
    await broker.declare(TrackerConsumer(tracker, broker).queue, asked)
    events = many(60)
    # A history that nothing may depend on the order of.
    rng.shuffle(events)
    for n in range(4):
        with running_module("tests.sagas.tracker.tracker_victim", postgresql_url, amqp_url):
            part = events[n * 38 : (n + 1) * 38]
            await publish(broker, part)
            if n < 3:
                # Killed somewhere between the first event of the part and the last.
                await until_folded(tracker, part[: rng.randint(1, len(part))])
            else:
                await until_folded(tracker, events)
                await until_asked(tracker, 30)
                await until_relayed(engine, outbox)
    stuck = {f"saga-{n:03}" for n in range(1, 60, 2)}
    assert sorted(await ids_asked(broker, asked, stuck)) == sorted(stuck)
    expected = fold(events, CHOREOGRAPHY)
    for saga, view in expected.items():
        found = await tracker.show(saga)
        assert found is not None
        assert {entry.id for entry in view.history} <= {entry.id for entry in found.history}
        assert len(found.history) - len(view.history) in ({0, 1} if saga in stuck else {0})
    await engine.dispose()


async def until_asked(tracker: Tracker, count: int) -> None:
    """Wait until so many actions are recorded."""
    statement = select(func.count()).select_from(tracker.tables.actions)
    with anyio.fail_after(BOUND):
        while True:
            if await tracker.database.run(lambda connection: connection.execute(statement).scalar_one()) >= count:
                return
            await anyio.sleep(0.02)


async def until_relayed(engine: AsyncEngine, outbox: OutboxTables) -> None:
    """Wait until the outbox is empty."""
    with anyio.fail_after(BOUND):
        while True:
            async with engine.connect() as connection:
                if not (await connection.execute(select(func.count()).select_from(outbox.outbox))).scalar_one():
                    return
            await anyio.sleep(0.02)


async def ids_asked(broker: Broker, queue: Queue, expected: set[str]) -> list[str]:
    """Return the sagas of the distinct requests; a request that is published twice has one id."""
    found: dict[str, str] = {}
    with anyio.fail_after(BOUND):
        async with broker.subscribe(queue, prefetch=100) as subscription:
            async for delivery in subscription:
                assert isinstance(delivery.content, Event)
                found[delivery.content.id] = delivery.content.correlationid or ""
                await subscription.ack(delivery)
                if set(found.values()) >= expected:
                    break
    return list(found.values())
