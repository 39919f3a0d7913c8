"""Both services without any server: SQLite files, an in-memory broker, and every part in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from examples.streamtech import orders, warehouse
from examples.streamtech.scenario import prepare
from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.sqlite import SQLiteOutboxStore
from sagapost.core.broker import Broker
from sagapost.core.schema import install_schema
from sagapost.inbox import Consumer, Inbox
from sagapost.outbox import Outbox
from sagapost.outbox.relay import Relay


class Embedded:
    """The running services."""

    def __init__(self, orders_engine: AsyncEngine, warehouse_engine: AsyncEngine, broker: MemoryBroker) -> None:
        self.orders = orders_engine
        self.warehouse = warehouse_engine
        self.broker: Broker = broker
        self._memory = broker
        self._running: list[tuple[Relay | Consumer, anyio.Event]] = []

    async def run(self, worker: Relay | Consumer) -> None:
        """Run a relay or a consumer to its end."""
        ended = anyio.Event()
        self._running.append((worker, ended))
        await worker.run()
        ended.set()

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
async def embedded(folder: Path) -> AsyncGenerator[Embedded]:
    """Start both services on files in `folder`."""
    broker = MemoryBroker()
    async with AsyncExitStack() as stack:
        workers: list[Relay | Consumer] = []
        engines: list[AsyncEngine] = []
        services: tuple[tuple[Outbox, Inbox], ...] = (
            (orders.outbox, orders.inbox),
            (warehouse.outbox, warehouse.inbox),
        )
        for outbox, inbox in services:
            url = f"sqlite+aiosqlite:///{folder / inbox.name}.db"
            engine = create_async_engine(url)
            stack.push_async_callback(engine.dispose)
            async with engine.begin() as connection:
                parts = [outbox.tables.part, inbox.tables.part]
                await connection.run_sync(install_schema, outbox.tables.versions, parts)
            store = SQLiteOutboxStore(url, tables=outbox.tables)
            stack.push_async_callback(store.aclose)
            await broker.declare(inbox.queue)
            workers.insert(0, Relay(store, broker))
            workers.append(Consumer(inbox, engine=engine, broker=broker))
            engines.append(engine)
        await prepare(*engines)
        deployment = Embedded(engines[0], engines[1], broker)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for worker in workers:
            tasks.start_soon(deployment.run, worker)
        yield deployment
        tasks.cancel_scope.cancel()
