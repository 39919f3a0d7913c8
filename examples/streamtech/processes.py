"""The demo on real servers: a database for each service, RabbitMQ between them, and a process for each role.

Everything is started as it would be deployed: `sagapost db upgrade`, `sagapost relay` and `sagapost consume`, with
settings from the environment.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

import aiormq
import anyio
from sqlalchemy.ext.asyncio import create_async_engine

from examples.streamtech import orders, warehouse
from examples.streamtech.workload import (
    WITNESS,
    Audit,
    Placed,
    audit,
    create_tables,
    fill_shelves,
    place_orders,
    send_again,
    until_answered,
)
from sagapost.adapters.rabbitmq import RabbitMQBroker
from tests.servers.postgresql import private_postgresql
from tests.servers.rabbitmq import private_rabbitmq

_SAGAPOST = str(Path(sys.executable).with_name("sagapost"))
_STOP_SECONDS = 30


class Service:
    """The processes of one service."""

    def __init__(self, name: str, database_url: str, broker_url: str, logs: Path) -> None:
        self.name = name
        self.database_url = database_url
        self._logs = logs
        self._environment = {
            **os.environ,
            "SAGAPOST_DATABASE_URL": database_url,
            "SAGAPOST_BROKER_URL": broker_url,
            "SAGAPOST_LOG_FORMAT": "json",
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def upgrade(self) -> None:
        """Create sagapost's tables."""
        subprocess.run(
            [_SAGAPOST, "db", "upgrade"],
            env=self._environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def start(self, role: str, *arguments: str) -> None:
        """Start one of the service's processes; its log goes to a file."""
        with (self._logs / f"{self.name}-{role}.log").open("ab") as log:
            self._processes[role] = subprocess.Popen(
                [_SAGAPOST, role, *arguments],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, role: str) -> None:
        """SIGKILL: no goodbye, nothing flushed."""
        process = self._processes.pop(role)
        process.kill()
        process.wait()

    def require_alive(self) -> None:
        """Fail with the end of its log if one of the processes has ended by itself."""
        for role, process in self._processes.items():
            if process.poll() is not None:
                log = self._logs / f"{self.name}-{role}.log"
                end = log.read_text().splitlines()[-5:]
                raise SystemExit(f"{self.name} {role} ended with status {process.returncode}:\n" + "\n".join(end))

    def stop(self) -> None:
        """SIGTERM: drain and end."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


@contextmanager
def servers(folder: Path) -> Generator[tuple[Service, Service, str], None, None]:
    """Start the servers and prepare one service on each of two databases."""
    with ExitStack() as stack:
        database = stack.enter_context(private_postgresql(durable=True))
        broker = stack.enter_context(private_rabbitmq())
        services: list[Service] = []
        for name in ("orders", "warehouse"):
            database.create_database(name)
            service = Service(name, database.url(name), broker.amqp_url(), folder)
            stack.callback(service.stop)
            service.upgrade()
            services.append(service)
        yield services[0], services[1], broker.amqp_url()


async def run(
    folder: Path, count: int, rng: random.Random, resend: int, advance: Callable[[str, int], None]
) -> tuple[Audit, int]:
    """Run both services until every order is answered, killing one relay on the way.

    Returns the audit and the number of events that were sent twice on purpose.
    """
    with servers(folder) as (orders_service, warehouse_service, broker_url):
        orders_engine = create_async_engine(orders_service.database_url)
        warehouse_engine = create_async_engine(warehouse_service.database_url)
        broker = RabbitMQBroker(broker_url)
        await create_tables(orders_engine, orders.Base)
        await create_tables(warehouse_engine, warehouse.Base)
        await fill_shelves(warehouse_engine)
        await broker.declare(WITNESS)
        for service in (orders_service, warehouse_service):
            service.start("relay")
            service.start("consume", f"examples.streamtech.{service.name}:inbox")
        kept: set[UUID] = set()
        undone: set[UUID] = set()
        try:
            async for order_id, committed in place_orders(orders_engine, count, rng):
                (kept if committed else undone).add(order_id)
                if committed:
                    advance("orders placed", 1)
                if len(kept) == count // 2 and committed:
                    orders_service.kill("relay")
                    orders_service.start("relay")

            def watch(name: str, steps: int) -> None:
                for service in (orders_service, warehouse_service):
                    service.require_alive()
                advance(name, steps)

            with anyio.fail_after(180):
                await until_answered(orders_engine, count, watch)
                await send_again(broker, resend)
                await _until_empty(broker_url, warehouse.inbox.name)
            for service in (orders_service, warehouse_service):
                await anyio.to_thread.run_sync(service.stop)
            found = await audit(orders_engine, warehouse_engine, Placed(frozenset(kept), frozenset(undone)))
            return found, resend
        finally:
            await orders_engine.dispose()
            await warehouse_engine.dispose()


async def _until_empty(broker_url: str, queue: str) -> None:
    """Wait until nothing waits in a queue."""
    async with aiormq.Connection(broker_url) as connection:
        channel = await connection.channel()
        while (await channel.queue_declare(queue, passive=True)).message_count:  # noqa: ASYNC110 - asks the broker
            await anyio.sleep(0.1)
