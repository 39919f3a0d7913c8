"""The services without any server: SQLite files, an in-memory broker, and every part in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import anyio
from anyio.abc import TaskGroup
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from examples.streamtech import bank
from examples.streamtech.chronicle import Chronicle
from examples.streamtech.deployment import Tracked
from examples.streamtech.services import COUNTER, choreography, install, unhandled
from sagapost import Service
from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.sqlite import SQLiteOutboxStore
from sagapost.core.broker import Broker
from sagapost.inbox import Consumer, ConsumerSettings
from sagapost.outbox.relay import Relay, RelaySettings, Routing
from sagapost.sagas import Compensator, CompensatorSettings
from sagapost.sagas.tracker import SagaView, fold

Worker: TypeAlias = Relay | Consumer | Compensator

_STOP_SECONDS = 10
_SECOND = timedelta(seconds=1)
SOON = timedelta(milliseconds=100)
"""For few events and impatient onlookers."""


class Embedded:
    """The running services."""

    def __init__(self, services: Sequence[Service], engines: dict[str, AsyncEngine], broker: MemoryBroker) -> None:
        self.services = tuple(services)
        self.broker: Broker = broker
        self._memory = broker
        self._engines = engines
        self._running: list[tuple[Worker, anyio.Event]] = []

    def engine(self, service: str) -> AsyncEngine:
        """Return a service's database."""
        return self._engines[service]

    @asynccontextmanager
    async def tracking(self) -> AsyncGenerator[Tracked]:
        """Listen, and fold what was handled when asked."""
        chronicle, declared = Chronicle(self.broker), choreography(self.services)

        async def tracked(_sagas: Collection[str]) -> Mapping[str, SagaView]:
            return fold(chronicle.events, declared)

        async with anyio.create_task_group() as tasks:
            await tasks.start(chronicle.run)
            yield tracked
            tasks.cancel_scope.cancel()

    def start(self, worker: Worker, tasks: TaskGroup) -> None:
        """Run a relay, consumer or compensator beside the others."""
        ended = anyio.Event()
        self._running.append((worker, ended))

        async def run() -> None:
            await worker.run()
            ended.set()

        tasks.start_soon(run)

    def check(self) -> None:
        """Nothing to ask: a worker that fails ends the task group, and with it the demo."""

    async def disturb(self) -> str | None:
        """Nothing: there is no process that could be killed on its own."""
        return None

    async def stop(self) -> None:
        """Consumers last: what the relays still publish should reach them."""
        for worker, ended in self._running:
            worker.stop()
            await ended.wait()

    async def in_queue(self, name: str) -> int:
        """Return how many messages wait."""
        return len(self._memory.waiting(name))


@asynccontextmanager
async def embedded(
    folder: Path, services: Sequence[Service] = COUNTER, *, look_every: timedelta = _SECOND
) -> AsyncGenerator[Embedded]:
    """Start services on files in `folder`.

    :param look_every: how often they look for what has become due; events need not be looked for.
    """
    broker = MemoryBroker()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bank.opened(f"sqlite+aiosqlite:///{folder / 'bank'}.db"))
        workers: list[Worker] = []
        engines: dict[str, AsyncEngine] = {}
        relay_settings = RelaySettings(poll_interval=look_every, routing=Routing(optional=unhandled(services)))
        for service in services:
            url = f"sqlite+aiosqlite:///{folder / service.name}.db"
            engine = engines[service.name] = create_async_engine(url)
            stack.push_async_callback(engine.dispose)
            await install(engine, service)
            store = SQLiteOutboxStore(url, tables=service.outbox.tables)
            stack.push_async_callback(store.aclose)
            await broker.declare(service.inbox.queue)
            workers.insert(0, Relay(store, broker, settings=relay_settings))
            consumer = ConsumerSettings(poll_interval=look_every)
            workers.append(Consumer(service.inbox, engine=engine, broker=broker, settings=consumer))
            workers.append(Compensator(service.sagas, engine, settings=CompensatorSettings(poll_interval=look_every)))
        deployment = Embedded(services, engines, broker)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for worker in workers:
            deployment.start(worker, tasks)
        try:
            yield deployment
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_STOP_SECONDS):
                await deployment.stop()
            tasks.cancel_scope.cancel()
