"""The four services as they run: databases, queues, relays and consumers behind proxies, and the tracker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.schema import install_schema
from sagapost.sagas import manifest_of
from sagapost.sagas.choreography import Choreography
from sagapost.sagas.tracker import Tracker, TrackerConsumer
from tests.chaos import sagas_service as service
from tests.chaos.inbox_plan import CONSUMER, RELAY
from tests.chaos.inbox_processes import ConsumerProcesses
from tests.chaos.inbox_stage import Way
from tests.chaos.relay_processes import RelayProcesses
from tests.faults.proxy import FaultProxy
from tests.processes.nursery import Nursery
from tests.servers.postgresql import PrivatePostgreSQL
from tests.servers.rabbitmq import PrivateRabbitMQ

__all__ = ["ACCOUNTS", "EACH_ACCOUNT", "EACH_ITEM", "ITEMS", "Running", "Stage", "running"]

ITEMS, ACCOUNTS = 20, 200
EACH_ITEM, EACH_ACCOUNT = 1_000_000, 100_000_000
"""Units of an item, and cents of a customer, in the beginning."""
_TRACKER = "tracker"


@dataclass(frozen=True, slots=True)
class Running:
    """The processes of one service, and how they reach the servers."""

    relays: RelayProcesses
    consumers: ConsumerProcesses
    way: Way


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that runs."""

    services: Mapping[str, Running]
    engines: Mapping[str, AsyncEngine]
    """Past the proxies."""
    tracker: Tracker
    listener: TrackerConsumer


@asynccontextmanager
async def running(
    postgresql: PrivatePostgreSQL, rabbitmq: PrivateRabbitMQ, *, consumers: int, batch: int, logs: Path
) -> AsyncGenerator[Stage]:
    """Start the services and the tracker; all are gone after the block."""
    async with AsyncExitStack() as stack:
        engines = {
            name: await _database(stack, postgresql, name, size) for name, size in _sizes(service.SERVICES).items()
        }
        for name in service.SERVICES:
            await _install(engines[name], name)
        broker = RabbitMQBroker(rabbitmq.amqp_url())
        tracker = Tracker(
            engines[_TRACKER], Choreography(manifest_of(each.inbox) for each in service.SERVICES.values())
        )
        await tracker.install()
        listener = TrackerConsumer(tracker, broker)
        for queue in (listener.queue, *(each.inbox.queue for each in service.SERVICES.values())):
            await broker.declare(queue)
        nursery = stack.enter_context(Nursery(postgresql.home.parent, service.__name__))
        started = {
            name: await _start(stack, postgresql, rabbitmq, name, nursery, consumers=consumers, batch=batch, logs=logs)
            for name in service.SERVICES
        }
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.run)
            for each in started.values():
                tasks.start_soon(each.consumers.supervise)
            yield Stage(started, engines, tracker, listener)
            tasks.cancel_scope.cancel()


def _sizes(services: Mapping[str, object]) -> dict[str, int]:
    # The tracker has a connection for folding and one for looking.
    return {**dict.fromkeys(services, 10), _TRACKER: 5}


async def _database(stack: AsyncExitStack, postgresql: PrivatePostgreSQL, name: str, size: int) -> AsyncEngine:
    await anyio.to_thread.run_sync(postgresql.create_database, name)
    engine = create_async_engine(postgresql.url(name), pool_size=size)
    stack.push_async_callback(engine.dispose)
    return engine


async def _install(engine: AsyncEngine, name: str) -> None:
    each = service.SERVICES[name]
    parts = [each.outbox.tables.part, each.inbox.tables.part, each.sagas.tables.part]
    async with engine.begin() as connection:
        await connection.run_sync(install_schema, each.outbox.tables.versions, parts)
        await connection.run_sync(each.base.metadata.create_all)
    async with AsyncSession(engine) as session, session.begin():
        if name == "stock":
            session.add_all(service.Stock(item=item, available=EACH_ITEM) for item in range(ITEMS))
        elif name == "payment":
            session.add_all(service.Account(id=number, cents=EACH_ACCOUNT) for number in range(ACCOUNTS))


ENDS = {"SAGAPOST_RELAY_OPTIONAL": "orders.completed.v1,orders.cancelled.v1"}
"""What only the tracker follows: no service waits for the end of a saga."""


async def _start(
    stack: AsyncExitStack,
    postgresql: PrivatePostgreSQL,
    rabbitmq: PrivateRabbitMQ,
    name: str,
    nursery: Nursery,
    *,
    consumers: int,
    batch: int,
    logs: Path,
) -> Running:
    way = Way(
        await stack.enter_async_context(FaultProxy("127.0.0.1", postgresql.port)),
        await stack.enter_async_context(FaultProxy("127.0.0.1", rabbitmq.port)),
    )
    own = logs / name
    own.mkdir()
    home = postgresql.home.parent
    settings = way.settings(postgresql, rabbitmq, name)
    relays = RelayProcesses({**settings, **RELAY, **ENDS}, nursery=nursery, home=home, logs=own)
    environment = {**settings, **CONSUMER, "SAGAPOST_CONSUMER_BATCH": str(batch)}
    processes = ConsumerProcesses(
        name, [environment] * consumers, nursery=nursery, home=home, logs=own, module=service.__name__
    )
    relays.start()
    processes.start_all()
    return Running(relays, processes, way)
