"""`sagapost` processes on a real PostgreSQL and a real RabbitMQ: work, refusals, outages, exit codes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Queue
from sagapost.inbox.declared.tables import INBOX_SCHEMA_VERSION
from sagapost.outbox import Outbox
from sagapost.outbox.migrations import OUTBOX_SCHEMA_VERSION
from tests.ops.processes import Running, run, run_at_once, started
from tests.ops.services import TYPE, OrderPlaced, write_service
from tests.servers.fixtures import OwnPostgreSQL, OwnRabbitMQ

WRONG_SECRET = "wr0ng-secret-wr0ng"
QUICK = {"SAGAPOST_START_RETRY_BASE": "50ms", "SAGAPOST_START_RETRY_CAP": "200ms"}

Settings = dict[str, str]


@pytest.fixture
def settings(postgresql_url: str, amqp_url: str, tmp_path: Path) -> Settings:
    """An empty broker, and a database with the tables."""
    settings = {"SAGAPOST_DATABASE_URL": postgresql_url, "SAGAPOST_BROKER_URL": amqp_url, **QUICK}
    installed = run("db", "upgrade", cwd=tmp_path, **settings)
    assert installed.returncode == 0, installed.stderr
    return settings


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The path of an inbox whose handler logs."""
    return write_service(tmp_path, "logs")


async def place_orders(settings: Settings, count: int) -> set[str]:
    """Publish events in one transaction; return their ids."""
    engine = create_async_engine(settings["SAGAPOST_DATABASE_URL"])
    async with engine.begin() as connection:
        events = await Outbox(source="urn:orders").publish_all(connection, [OrderPlaced(n) for n in range(count)])
    await engine.dispose()
    return {event.id for event in events}


async def pending(settings: Settings) -> int:
    """Count the rows of the outbox."""
    engine = create_async_engine(settings["SAGAPOST_DATABASE_URL"])
    async with engine.connect() as connection:
        count = (
            await connection.execute(select(func.count()).select_from(Outbox(source="x").tables.outbox))
        ).scalar_one()
    await engine.dispose()
    return count


def wrong_login(url: str) -> str:
    """Return the URL with a user and a password that the server does not know."""
    return make_url(url).set(username="nobody", password=WRONG_SECRET).render_as_string(hide_password=False)


async def in_thread(call: Callable[[], object]) -> None:
    """Wait for a process without stopping the event loop."""
    await anyio.to_thread.run_sync(call)


# --- work ---


async def test_relay_and_consumer_as_processes(settings: Settings, path: str, tmp_path: Path) -> None:
    """Each event handled once, with its ids on the handler's lines; both processes drain with code 0."""

    def work(ids: set[str]) -> None:
        with (
            started("relay", cwd=tmp_path, **settings) as relay,
            started("consume", path, cwd=tmp_path, **settings) as consumer,
        ):
            lines = [consumer.wait_for(lambda line: line["message"].endswith("handled")) for _ in ids]
            for process in (relay, consumer):
                process.send(signal.SIGTERM)
            assert (relay.end(), consumer.end()) == (0, 0), relay.text + consumer.text
            assert {line["event_id"] for line in lines} == ids
            assert {line["correlationid"] for line in lines} == ids
            handled = [line for line in consumer.lines if line["message"].endswith("handled")]
            assert len(handled) == len(ids)

    ids = await place_orders(settings, 20)
    await in_thread(lambda: work(ids))
    assert await pending(settings) == 0


async def test_a_relay_stopped_in_the_middle_settles_what_it_sent(settings: Settings, tmp_path: Path) -> None:
    """SIGTERM with thousands of rows to go: code 0, and what the queue and the outbox hold adds up to all."""
    rows = 20_000
    await place_orders(settings, rows)
    broker = RabbitMQBroker(settings["SAGAPOST_BROKER_URL"])
    await broker.declare(Queue("watching", frozenset({TYPE})))

    def work() -> None:
        with started("relay", cwd=tmp_path, SAGAPOST_LOG_LEVEL="DEBUG", **settings) as relay:
            relay.wait_for("events settled")
            relay.send(signal.SIGTERM)
            assert relay.end() == 0, relay.text

    await in_thread(work)
    left = await pending(settings)
    received = 0
    async with broker.subscribe(Queue("watching", frozenset({TYPE})), prefetch=2_000) as subscription:
        with anyio.fail_after(30):
            async for delivery in subscription:
                await subscription.ack(delivery)
                received += 1
                if received + left == rows:
                    break
        with anyio.move_on_after(0.3):
            async for _ in subscription:
                received += 1
    assert received + left == rows


# --- refusals ---


@pytest.mark.parametrize(
    "command", [("relay",), ("consume", "shop:inbox"), ("status",), ("db", "check"), ("db", "upgrade")], ids=" ".join
)
def test_a_refused_database_login_ends_with_code_3(
    settings: Settings, path: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Asked once, and neither the wrong password nor a traceback is written."""
    assert path == "shop:inbox"
    wrong = settings | {"SAGAPOST_DATABASE_URL": wrong_login(settings["SAGAPOST_DATABASE_URL"])}
    ran = run(*command, cwd=tmp_path, **wrong)
    assert ran.returncode == 3, ran.stderr
    assert "user or password is wrong" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert WRONG_SECRET not in ran.stderr + ran.stdout


@pytest.mark.parametrize("command", [("relay",), ("consume", "shop:inbox")], ids=" ".join)
def test_a_refused_broker_login_ends_with_code_3(
    settings: Settings, path: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """As for the database; so does a virtual host that is not there."""
    assert path == "shop:inbox"
    for url in (wrong_login(settings["SAGAPOST_BROKER_URL"]), settings["SAGAPOST_BROKER_URL"] + "-not-there"):
        ran = run(*command, cwd=tmp_path, **settings | {"SAGAPOST_BROKER_URL": url})
        assert ran.returncode == 3, ran.stderr
        assert "Check user, password, virtual host and permissions" in ran.stderr
        assert len(ran.stderr.splitlines()) == 1
        assert WRONG_SECRET not in ran.stderr


def test_an_exchange_of_another_type_ends_with_code_2(settings: Settings, path: str, tmp_path: Path) -> None:
    """What differs is named, the exchange is left as it is, and nothing loops."""
    with started("consume", path, cwd=tmp_path, **settings) as consumer:
        consumer.wait_for("consumes from")
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0
    ran = run("consume", path, cwd=tmp_path, **settings, SAGAPOST_EXCHANGE="sagapost.dead")
    complaints = [line for line in map(json.loads, ran.stderr.splitlines()) if line["level"] == "CRITICAL"]
    assert ran.returncode == 2, ran.stderr
    assert len(complaints) == 1
    assert "'sagapost.dead' exists on the broker with another argument 'type'" in complaints[0]["message"]


@pytest.mark.parametrize(
    ("command", "version"),
    [(("relay",), OUTBOX_SCHEMA_VERSION), (("consume", "shop:inbox"), INBOX_SCHEMA_VERSION)],
    ids=["relay", "consume"],
)
async def test_an_older_schema_ends_with_code_4(
    settings: Settings, path: str, tmp_path: Path, command: tuple[str, ...], version: int
) -> None:
    """Both check before they work, and say which version they found, and which one they need."""
    assert path == "shop:inbox"
    engine = create_async_engine(settings["SAGAPOST_DATABASE_URL"])
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE sagapost_schema SET version = 0"))
    await engine.dispose()
    ran = run(*command, cwd=tmp_path, **settings)
    assert ran.returncode == 4
    assert f"has sagapost schema version 0, this release needs {version}. Run `sagapost db upgrade`" in ran.stderr


# --- the tables ---


def test_upgrades_at_the_same_time_take_turns(postgresql_url: str, tmp_path: Path) -> None:
    """In a schema of their own: three init containers at once, one installs, all succeed."""
    settings = {"SAGAPOST_DATABASE_URL": postgresql_url, "SAGAPOST_DATABASE_SCHEMA": "messaging"}
    replicas = run_at_once("db", "upgrade", "--json", cwd=tmp_path, times=3, **settings)
    assert [replica.returncode for replica in replicas] == [0, 0, 0]
    assert sorted(len(json.loads(replica.stdout)["changed"]) for replica in replicas) == [0, 0, 4]
    assert run("db", "check", cwd=tmp_path, **settings).returncode == 0
    assert run("status", "--json", cwd=tmp_path, **settings).returncode == 0


async def test_the_written_statements_make_what_upgrade_makes(postgresql_url: str, tmp_path: Path) -> None:
    """Run by hand, they pass the check; the doorbell's function and trigger are among them."""
    settings = {"SAGAPOST_DATABASE_URL": postgresql_url}
    script = run("db", "sql", cwd=tmp_path, **settings).stdout
    engine = create_async_engine(postgresql_url)
    async with engine.begin() as connection:
        for statement in script.split(";\n\n"):
            if statement.strip():
                await connection.exec_driver_sql(statement)
    await engine.dispose()
    checked = run("db", "check", cwd=tmp_path, **settings)
    assert checked.returncode == 0, checked.stderr


# --- outages ---


def wait_and_start(process: Running, start: Callable[[], None], working: str) -> None:
    """Let a process fail twice to reach a server, start the server, and see the process work and drain."""
    process.wait_for("Attempt 2; next in")
    start()
    process.wait_for(working)
    process.send(signal.SIGTERM)
    assert process.end() == 0, process.text
    waiting = [line for line in process.lines if "Attempt" in line["message"]]
    errors = [line for line in process.lines if line["level"] in {"ERROR", "CRITICAL"}]
    # One line for each attempt, numbered, and nothing besides.
    assert [f"Attempt {number};" in line["message"] for number, line in enumerate(waiting, 1)] == [True] * len(waiting)
    assert errors == []


def test_a_broker_that_comes_later_is_waited_for(
    settings: Settings, path: str, tmp_path: Path, own_rabbitmq: OwnRabbitMQ
) -> None:
    """Relay and consumer start while it is down: a line per attempt, and work begins when it is there."""
    broker = own_rabbitmq()
    broker.stop()
    late = settings | {"SAGAPOST_BROKER_URL": broker.amqp_url()}
    for command in (("relay",), ("consume", path)):
        ran = run(*command, "--fail-fast", cwd=tmp_path, **late)
        assert ran.returncode == 5, ran.stderr
        assert len(ran.stderr.splitlines()) == 1
    with (
        started("relay", cwd=tmp_path, **late) as relay,
        started("consume", path, cwd=tmp_path, **late) as consumer,
    ):
        consumer.wait_for("Attempt 2; next in")
        wait_and_start(relay, broker.start, "publishing to")
        consumer.wait_for("consumes from")
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0


def test_a_database_that_comes_later_is_waited_for(
    settings: Settings, path: str, tmp_path: Path, own_postgresql: OwnPostgreSQL
) -> None:
    """The same for the database."""
    server = own_postgresql()
    server.create_database("shop")
    late = settings | {"SAGAPOST_DATABASE_URL": server.url("shop")}
    assert run("db", "upgrade", cwd=tmp_path, **late).returncode == 0
    server.stop()
    for command in (("relay",), ("consume", path)):
        ran = run(*command, "--fail-fast", cwd=tmp_path, **late)
        assert ran.returncode == 5, ran.stderr
        assert len(ran.stderr.splitlines()) == 1
    with (
        started("relay", cwd=tmp_path, **late) as relay,
        started("consume", path, cwd=tmp_path, **late) as consumer,
    ):
        consumer.wait_for("Attempt 2; next in")
        wait_and_start(relay, server.start, "publishing to")
        consumer.wait_for("consumes from")
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0


async def test_a_later_outage_ends_nothing_even_with_fail_fast(
    settings: Settings, path: str, tmp_path: Path, own_rabbitmq: OwnRabbitMQ
) -> None:
    """`--fail-fast` is about the start; a broker that restarts under working processes is waited for."""
    broker = own_rabbitmq()
    own = settings | {"SAGAPOST_BROKER_URL": broker.amqp_url(), "SAGAPOST_FAIL_FAST": "true"}

    def work() -> None:
        with (
            started("relay", cwd=tmp_path, **own) as relay,
            started("consume", path, cwd=tmp_path, **own) as consumer,
        ):
            relay.wait_for("publishing to")
            consumer.wait_for("consumes from")
            broker.restart()
            consumer.wait_for("Attempt 1")
            anyio.from_thread.run(place_orders, own, 3)
            for _ in range(3):
                consumer.wait_for(lambda line: line["message"].endswith("handled"))
            for process in (relay, consumer):
                process.send(signal.SIGTERM)
            assert (relay.end(), consumer.end()) == (0, 0), relay.text + consumer.text

    await in_thread(work)
