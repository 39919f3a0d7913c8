"""pytest plugin: real servers as fixtures. Registered in tests/conftest.py.

    postgresql, rabbitmq            session: one server each per run, shared by the workers of pytest-xdist
    postgresql_url, amqp_url        function: a fresh database, a fresh virtual host
    postgresql_template             session: copy a prepared database instead of preparing it for every test
    own_postgresql, own_rabbitmq    function: servers that this test may stop, kill, pause and restart

A test that uses one of them gets the marker `servers`; without the server it is skipped, with one loud line at the
end of the run, or fails where SAGAPOST_TEST_REQUIRE_SERVERS is set. The methods of servers block: call those that
take long from async tests through `anyio.to_thread.run_sync`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

# Imported where they are used: the part of the suite that needs no server also runs where no driver is installed.
if TYPE_CHECKING:
    from tests.servers.brokers import RabbitMQServer
    from tests.servers.databases import PostgreSQLServer
    from tests.servers.postgresql import PrivatePostgreSQL
    from tests.servers.rabbitmq import PrivateRabbitMQ
    from tests.servers.resolve import Unavailable
    from tests.servers.rundir import RunDirectory
    from tests.servers.servers import Servers

__all__ = ["OwnPostgreSQL", "OwnRabbitMQ", "PostgreSQLTemplate", "present"]

REQUIRE_VARIABLE = "SAGAPOST_TEST_REQUIRE_SERVERS"

_FIXTURES = frozenset(
    {
        "postgresql",
        "rabbitmq",
        "postgresql_url",
        "amqp_url",
        "postgresql_template",
        "own_postgresql",
        "own_rabbitmq",
    }
)
_WORKER_INPUT = "sagapost_run_directory"
_SKIPPED = "REAL SERVER MISSING: "
_NO_VHOST = (
    f"{_SKIPPED}the given RabbitMQ lets us make no virtual host: neither its management API (port 15672, a user with "
    "the tag administrator) nor rabbitmqctl; tests name their queues alike"
)
_NO_DATABASE = f"{_SKIPPED}the user of the given PostgreSQL may not create databases (ALTER ROLE ... CREATEDB)"

Server = TypeVar("Server", "PostgreSQLServer", "RabbitMQServer", "PrivatePostgreSQL", "PrivateRabbitMQ")

_directory = pytest.StashKey["RunDirectory"]()


class OwnPostgreSQL(Protocol):
    """Starts a PostgreSQL for this test alone; ended after it."""

    def __call__(self, *, durable: bool = False, settings: Mapping[str, str] | None = None) -> PrivatePostgreSQL: ...


class OwnRabbitMQ(Protocol):
    """Starts a RabbitMQ for this test alone; ended after it."""

    def __call__(self, *, schedulers: int = 1, config: Sequence[str] = ()) -> PrivateRabbitMQ: ...


class PostgreSQLTemplate(Protocol):
    """Builds a database once per process; returns its name for `fresh_database(template)`.

    `build` is given the SQLAlchemy URL of an empty database and must have closed its connections when it returns.
    """

    def __call__(self, name: str, build: Callable[[str], None]) -> str: ...


def present(server: Server | Unavailable) -> Server:
    """The server, or the end of this test: skipped, or failed where servers are required."""
    from tests.servers.resolve import Unavailable

    if not isinstance(server, Unavailable):
        return server
    if os.environ.get(REQUIRE_VARIABLE):
        pytest.fail(f"{server.reason} (and {REQUIRE_VARIABLE} is set)", pytrace=False)
    pytest.skip(_SKIPPED + server.reason)


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Servers:
    """The servers of this run."""
    from tests.servers.servers import Servers

    return Servers(_run_directory(request.config))


@pytest.fixture(scope="session")
def postgresql(servers: Servers) -> PostgreSQLServer:
    """The PostgreSQL that all tests of the run share. Do not stop it: that is what `own_postgresql` is for."""
    from tests.servers.databases import may_create_databases

    server = present(servers.postgresql())
    if not may_create_databases(server):
        pytest.skip(_NO_DATABASE)
    return server


@pytest.fixture(scope="session")
def rabbitmq(servers: Servers) -> Iterator[RabbitMQServer]:
    """The RabbitMQ that all tests of the run share. Do not stop it: that is what `own_rabbitmq` is for."""
    from tests.servers.given_rabbitmq import GivenRabbitMQ

    server = present(servers.rabbitmq())
    yield server
    if isinstance(server, GivenRabbitMQ):
        server.close()


@pytest.fixture
def postgresql_url(postgresql: PostgreSQLServer) -> Iterator[str]:
    """`postgresql+asyncpg://...` of an empty database of this test's own, dropped after it."""
    with postgresql.fresh_database() as name:
        yield postgresql.url(name)


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQServer) -> Iterator[str]:
    """`amqp://...` of an empty virtual host of this test's own, deleted after it."""
    with rabbitmq.fresh_vhost() as name:
        if name is None:
            pytest.skip(_NO_VHOST)
        yield rabbitmq.amqp_url(name)


@pytest.fixture(scope="session")
def postgresql_template(postgresql: PostgreSQLServer) -> Iterator[PostgreSQLTemplate]:
    """Prepared databases, each built once in this process and copied for every test in some 30 ms."""
    built: dict[str, str] = {}
    with contextlib.ExitStack() as databases:

        def template(name: str, build: Callable[[str], None]) -> str:
            if name not in built:
                database = databases.enter_context(postgresql.fresh_database())
                build(postgresql.url(database))
                built[name] = database
            return built[name]

        yield template


@pytest.fixture
def own_postgresql(servers: Servers) -> Iterator[OwnPostgreSQL]:
    """Start PostgreSQL servers for this test alone: `server = own_postgresql(durable=True)`."""
    with contextlib.ExitStack() as started:

        def start(*, durable: bool = False, settings: Mapping[str, str] | None = None) -> PrivatePostgreSQL:
            server = present(servers.own_postgresql(durable=durable, settings=settings))
            started.callback(server.discard)
            return server

        yield start


@pytest.fixture
def own_rabbitmq(servers: Servers) -> Iterator[OwnRabbitMQ]:
    """Start RabbitMQ nodes for this test alone: `broker = own_rabbitmq(config=["heartbeat = 5"])`."""
    with contextlib.ExitStack() as started:

        def start(*, schedulers: int = 1, config: Sequence[str] = ()) -> PrivateRabbitMQ:
            server = present(servers.own_rabbitmq(schedulers=schedulers, config=config))
            started.callback(server.discard)
            return server

        yield start


def pytest_configure() -> None:
    """Connect to our PostgreSQL without an offer of TLS, which it would decline.

    asyncpg's offer waits on a future that nobody reads when the connect is cancelled before it is sent, as tests of
    outages and of stopping do all the time; the complaint of the event loop would fail a test at random.
    """
    from tests.servers.resolve import POSTGRES_VARIABLE

    if POSTGRES_VARIABLE not in os.environ:
        os.environ.setdefault("PGSSLMODE", "disable")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a server, before `-m` selects."""
    for item in items:
        if _FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("servers")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # a hook of pytest-xdist, whose nodes have no public type
    """Tell a worker of pytest-xdist where the run's folder is: the controller owns it and outlives all workers."""
    node.workerinput[_WORKER_INPUT] = str(_run_directory(node.config).path)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the servers with the run. Does nothing in workers, which own none."""
    directory = config.stash.get(_directory, None)
    if directory is not None:
        directory.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One loud line per missing server."""
    counts: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        where = report.longrepr
        if isinstance(where, tuple) and _SKIPPED in where[2]:
            reason = where[2].partition(_SKIPPED)[2]
            counts[reason] = counts.get(reason, 0) + 1
    for reason, count in counts.items():
        terminalreporter.write_line(f"!!! {count} TESTS WITH A REAL SERVER DID NOT RUN: {reason}", red=True, bold=True)


def _run_directory(config: pytest.Config) -> RunDirectory:
    from tests.servers.rundir import RunDirectory

    directory = config.stash.get(_directory, None)
    if directory is None:
        worker_input: dict[str, str] = getattr(config, "workerinput", {})
        joined = worker_input.get(_WORKER_INPUT)
        directory = RunDirectory.create() if joined is None else RunDirectory(Path(joined))
        config.stash[_directory] = directory
    return directory
