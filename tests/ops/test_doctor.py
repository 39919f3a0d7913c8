"""`sagapost doctor`: faults are planted in real servers; each is found with its evidence, and its remedy mends it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import anyio
import anyio.to_thread
import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Queue
from sagapost.core.clock import Clock, SystemClock
from sagapost.core.findings import Diagnosis, Patience, Severity
from sagapost.ops import database
from sagapost.ops.doctor.examination import diagnose
from sagapost.ops.settings import load_settings
from sagapost.ops.status.verdict import Thresholds
from sagapost.ops.tables import tables_of
from sagapost.outbox import Outbox
from tests.ops.processes import invoke, run, started
from tests.ops.services import OrderPlaced, write_service
from tests.servers.brokers import RabbitMQServer
from tests.servers.databases import PostgreSQLServer
from tests.servers.fixtures import OwnPostgreSQL, OwnRabbitMQ, PostgreSQLTemplate
from tests.servers.rabbitmq import PrivateRabbitMQ

ERROR, WARNING, ADVICE = Severity.ERROR, Severity.WARNING, Severity.ADVICE


@pytest.fixture
def url(postgresql: PostgreSQLServer, postgresql_template: PostgreSQLTemplate) -> Iterator[str]:
    """A database with all tables, and nothing wrong but that no relay is there."""

    def build(url: str) -> None:
        install(url)

    with postgresql.fresh_database(postgresql_template("doctor", build)) as name:
        url = postgresql.url(name)
        # The servers of the tests allow prepared transactions, and commit in haste.
        well = ("sagapost.doorbell = on", "synchronous_commit = on")
        anyio.run(execute, url, *(f'ALTER DATABASE "{name}" SET {setting}' for setting in well))
        yield url


def install(url: str) -> None:
    """Create all tables, a tracker's too."""
    ran = invoke("db", "upgrade", "--tracker", cwd=Path.cwd(), SAGAPOST_DATABASE_URL=url)
    assert ran.returncode == 0, ran.stderr


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[AsyncConnection]:
    """A connection without a transaction around its statements."""
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


async def execute(url: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    async with connected(url) as connection:
        for statement in statements:
            await connection.execute(text(statement.replace(":", r"\:")))


async def found_in(url: str, *, patience: Patience | None = None, clock: Clock | None = None) -> list[Diagnosis]:
    """Return what the doctor finds in a database, where no relay is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGAPOST_DATABASE_URL", url)
        return await diagnose(load_settings(), allowed=Thresholds(min_relays=0), patience=patience, clock=clock)


def is_it(found: Diagnosis, fault: Fault) -> bool:
    """Return whether a finding is about a fault."""
    return found.code == fault.code and fault.subject in found.subject


@dataclass(frozen=True)
class Fault:
    """Something that is planted."""

    code: str
    subject: str
    severity: Severity
    evidence: str
    plant: tuple[str, ...]
    mends: bool = True
    """Whether the remedy is one statement that can be run as it is."""
    remedy: str = ""
    """What is in the remedy, where it is not run."""
    patience: Patience = field(default_factory=Patience)


def fault(code: str, subject: str, severity: Severity, evidence: str, *plant: str, **more: Any) -> Fault:
    """Return a fault whose remedy is run, unless `remedy` says what it says."""
    return Fault(code, subject, severity, evidence, plant, mends="remedy" not in more, **more)


HERE = "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || ' SET {}'; END $$"
UPGRADE = "sagapost db upgrade"
FAULTS = [
    # --- tables as they are made ---
    fault("table", "outbox_scheduled", ERROR, "not there", "DROP TABLE outbox_scheduled", remedy=UPGRADE),
    fault(
        "table",
        "outbox",
        ERROR,
        "none of its tables",
        "DROP TABLE outbox, outbox_dead, outbox_scheduled, outbox_relays, outbox_leases",
        remedy=UPGRADE,
    ),
    fault("version", "inbox", ERROR, "of version 1", "UPDATE sagapost_schema SET version = 1", remedy=UPGRADE),
    fault("version", "sagas", ERROR, "of version 99", "UPDATE sagapost_schema SET version = 99", remedy="package"),
    fault("column", "inbox_parked.traceback", ERROR, "not there", "ALTER TABLE inbox_parked DROP traceback"),
    fault(
        "column-type",
        "saga_states.pivot_reason",
        WARNING,
        "VARCHAR(99)",
        "ALTER TABLE saga_states ALTER pivot_reason TYPE varchar(99)",
    ),
    fault(
        "column-null",
        "outbox_dead.last_error",
        WARNING,
        "takes NULL",
        "ALTER TABLE outbox_dead ALTER last_error DROP NOT NULL",
    ),
    fault("index", "outbox_refused", WARNING, "index of outbox", "DROP INDEX outbox_refused"),
    fault(
        "index-invalid",
        "inbox_seen_age",
        WARNING,
        "cut off",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'inbox_seen_age'::regclass",
    ),
    fault("check", "outbox_names", WARNING, "rule of outbox", "ALTER TABLE outbox DROP CONSTRAINT outbox_names"),
    fault(
        "check-unvalidated",
        "outbox_attempts",
        ADVICE,
        "never held against it",
        "ALTER TABLE outbox DROP CONSTRAINT outbox_attempts",
        "ALTER TABLE outbox ADD CONSTRAINT outbox_attempts CHECK (attempts >= 0) NOT VALID",
    ),
    fault("supplement", "outbox", WARNING, "wakes", "DROP TRIGGER outbox_ring ON outbox", remedy=UPGRADE),
    fault("supplement", "outbox", WARNING, "wakes", "ALTER TABLE outbox DISABLE TRIGGER outbox_ring", remedy=UPGRADE),
    fault(
        "supplement",
        "outbox",
        ERROR,
        "behind its rows",
        "INSERT INTO outbox_dead (position, event_id, type, source, data, attempts, last_error) VALUES "
        "(1000, gen_random_uuid(), 't', 'urn:x', '', 1, 'no')",
        remedy=UPGRADE,
    ),
    # --- tables as somebody changed them ---
    fault("unlogged", "inbox_types", ERROR, "UNLOGGED", "ALTER TABLE inbox_types SET UNLOGGED"),
    fault(
        "row-level-security",
        "outbox",
        WARNING,
        "hidden from others",
        "ALTER TABLE outbox ENABLE ROW LEVEL SECURITY",
    ),
    fault(
        "autovacuum-off",
        "outbox",
        WARNING,
        "switched off",
        "ALTER TABLE outbox SET (autovacuum_enabled = false)",
    ),
    fault(
        "foreign-trigger",
        "inbox_seen",
        ADVICE,
        "audit_it",
        "CREATE FUNCTION audit_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER audit_it AFTER INSERT ON inbox_seen EXECUTE FUNCTION audit_it()",
        remedy="DROP TRIGGER",
    ),
    fault(
        "no-table",
        "outbox_dead",
        ERROR,
        "a view",
        "ALTER TABLE outbox_dead RENAME TO old_dead",
        "CREATE VIEW outbox_dead AS SELECT * FROM old_dead",
        remedy="RENAME",
    ),
    fault(
        "search-path",
        "outbox",
        WARNING,
        "in other",
        "CREATE SCHEMA other",
        "CREATE TABLE other.outbox ()",
        HERE.format("search_path = public, other"),
        remedy="SAGAPOST_DATABASE_SCHEMA",
    ),
    # --- settings of the database ---
    fault(
        "setting",
        "default_transaction_isolation",
        WARNING,
        "'serializable'",
        HERE.format("default_transaction_isolation = serializable"),
    ),
    fault(
        "setting",
        "default_transaction_read_only",
        ERROR,
        "nothing can be published",
        HERE.format("default_transaction_read_only = on"),
        remedy="RESET default_transaction_read_only",
    ),
    fault(
        "setting",
        "synchronous_commit",
        WARNING,
        "'off'",
        HERE.format("synchronous_commit = off"),
        remedy="RESET synchronous_commit",
    ),
    fault("setting", "idle_session_timeout", ADVICE, "ended again", HERE.format("idle_session_timeout = 60000")),
    # --- what is used up ---
    fault(
        "connections",
        "max_connections",
        WARNING,
        "are in use",
        patience=Patience(connections=0),
        remedy="max_connections",
    ),
    fault(
        "bloat",
        "inbox_types",
        ADVICE,
        "for 1 rows",
        "ALTER TABLE inbox_types SET (autovacuum_enabled = false)",
        "INSERT INTO inbox_types (consumer, type, known_at) "
        "SELECT n, repeat('x', 250), now() FROM generate_series(1, 2000) n",
        "DELETE FROM inbox_types WHERE consumer < 2000",
        "VACUUM (ANALYZE) inbox_types",
        patience=Patience(empty_bytes=0),
        remedy="VACUUM FULL inbox_types",
    ),
    # --- what lies in the tables ---
    fault(
        "future-rows",
        "outbox",
        WARNING,
        "1 rows",
        "INSERT INTO outbox (xid, type, source, data) VALUES ('99999999', 't', 'urn:x', '')",
        remedy="restart the relays",
    ),
    fault(
        "leases-missing",
        "outbox_leases",
        WARNING,
        "3 of 32",
        "INSERT INTO outbox_leases (partition) SELECT n FROM generate_series(0, 31) n",
        "DELETE FROM outbox_leases WHERE partition < 3",
        remedy="start a relay",
    ),
    fault(
        "partitions-free",
        "outbox_leases",
        WARNING,
        "2 partitions have no owner although 1 relays",
        "INSERT INTO outbox_leases (partition) VALUES (0), (1)",
        "INSERT INTO outbox_relays (relay, expires_at) VALUES (gen_random_uuid(), now() + interval '1 h')",
        remedy="restart the relays",
    ),
    fault(
        "not-pruned",
        "warehouse",
        WARNING,
        "for 30 days, and the dedup window is 7",
        "INSERT INTO inbox_consumers (name) VALUES ('warehouse')",
        "INSERT INTO inbox_seen (consumer, key, seen_at) VALUES (1, 'k', now() - interval '30 days')",
        remedy="sagapost consume",
    ),
    fault(
        "window-too-short",
        "warehouse",
        WARNING,
        "1 messages came after",
        "INSERT INTO inbox_consumers (name) VALUES ('warehouse')",
        "INSERT INTO inbox_parked (consumer, key, state, reason, error, topic, envelope, data) VALUES "
        "(1, 'k', 'dead', 'too-old', 'too old', 't', '{}', '')",
        remedy="SAGAPOST_CONSUMER_RETENTION",
    ),
    fault(
        "poison",
        "warehouse",
        WARNING,
        "the process died",
        "INSERT INTO inbox_consumers (name) VALUES ('warehouse')",
        "INSERT INTO inbox_parked (consumer, key, state, reason, error, topic, envelope, data) VALUES "
        "(1, 'k', 'dead', 'killed-process', 'died', 't', '{}', '')",
        remedy="--where reason=killed-process",
    ),
    fault(
        "crashes",
        "warehouse",
        WARNING,
        "1 messages were begun up to 3 times",
        "INSERT INTO inbox_consumers (name) VALUES ('warehouse')",
        "INSERT INTO inbox_attempts (consumer, key, started) VALUES (1, 'k', 3)",
        remedy="memory limit",
    ),
    fault(
        "old-events",
        "shop.made.v1",
        WARNING,
        "1h",
        "INSERT INTO outbox (type, source, data, time) VALUES ('shop.made.v1', 'urn:x', '', now() - interval '1 h')",
        remedy="sagapost status",
    ),
    fault(
        "held",
        "outbox",
        WARNING,
        "the queue is full",
        "INSERT INTO outbox (type, source, data, attempts, next_attempt_at, last_error) VALUES "
        "('shop.made.v1', 'urn:x', '', 3, now(), 'the queue is full')",
        remedy="sagapost declare",
    ),
    fault(
        "blocked",
        "outbox",
        ERROR,
        "later events of the key wait",
        "INSERT INTO outbox_dead (position, event_id, type, source, partitionkey, data, attempts, last_error, "
        "blocks_key) VALUES (0, gen_random_uuid(), 't', 'urn:x', 'k', '', 20, 'no', 1)",
        remedy="sagapost dead redrive",
    ),
    fault(
        "overdue",
        "outbox",
        WARNING,
        "overdue, the first by 1h",
        "INSERT INTO outbox_scheduled (deliver_at, type, source, data) "
        "VALUES (now() - interval '1 h', 't', 'urn:x', '')",
        remedy="sagapost relay",
    ),
    fault(
        "stuck",
        "pay",
        ERROR,
        "1 saga is stuck",
        "INSERT INTO saga_states (service, saga, state, rollback_started_at) VALUES ('pay', 's1', 'stuck', now())",
        remedy="sagapost saga retry",
    ),
]


@pytest.mark.parametrize("planted", FAULTS, ids=lambda each: f"{each.code}-{each.subject}")
async def test_a_planted_fault_is_found_and_its_remedy_mends_it(url: str, planted: Fault) -> None:
    """By its code, its subject and its evidence; a remedy that is a statement is run, and then it is gone."""
    await execute(url, *planted.plant)
    found = [each for each in await found_in(url, patience=planted.patience) if is_it(each, planted)]
    (one,) = [each for each in found if planted.evidence in each.evidence]
    assert one.severity is planted.severity
    if not planted.mends:
        assert planted.remedy in one.remedy
        return
    await execute(url, *one.remedy.split("; "))
    assert [each for each in await found_in(url, patience=planted.patience) if is_it(each, planted)] == []


@pytest.mark.parametrize(
    "planted", [each for each in FAULTS if each.code == "supplement"], ids=lambda each: each.plant[0]
)
async def test_an_upgrade_mends_what_stands_beside_the_tables(url: str, planted: Fault) -> None:
    """The trigger that was dropped or switched off, and positions that begin again."""
    await execute(url, *planted.plant)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGAPOST_DATABASE_URL", url)
        loaded = load_settings()
        await database.upgrade(loaded, tables_of(loaded.settings))
    assert [each for each in await found_in(url) if each.code == "supplement"] == []


# --- what others do on the server meanwhile ---


async def test_a_transaction_that_is_left_open_is_found(url: str) -> None:
    """With its process, since when, and the statement that ends it."""
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        await connection.execute(text("CREATE TABLE something ()"))
        (found,) = [
            each
            for each in await found_in(url, patience=Patience(transaction=timedelta(0)))
            if each.code == "open-transaction"
        ]
        assert "idle in transaction" in found.evidence
        assert found.since is not None
        assert datetime.now(UTC) - found.since < timedelta(minutes=1)
        assert [each for each in await found_in(url) if each.code == "open-transaction"] == []
        await execute(url, found.remedy)
        await connection.invalidate()
    await engine.dispose()


async def test_a_prepared_transaction_that_nobody_ends_is_found(url: str) -> None:
    """It survives restarts of the server, and holds its locks."""
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        await connection.execute(text("CREATE TABLE something ()"))
        await connection.execute(text("PREPARE TRANSACTION 'left behind'"))
    await engine.dispose()
    patience = Patience(transaction=timedelta(0))
    (found,) = [each for each in await found_in(url, patience=patience) if each.code == "prepared-transaction"]
    assert found.subject == "left behind"
    await execute(url, found.remedy.partition(",")[0])
    assert [each for each in await found_in(url, patience=patience) if each.code == "prepared-transaction"] == []


async def test_who_holds_up_writers_is_found(url: str) -> None:
    """A lock on a table of ours that others wait for."""
    engine = create_async_engine(url)
    async with engine.connect() as holder, anyio.create_task_group() as tasks:
        await holder.execute(text("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE"))
        tasks.start_soon(execute, url, "DELETE FROM outbox")
        async with connected(url) as watcher:
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'outbox'::regclass")
            with anyio.fail_after(20):
                while not (await watcher.execute(waiting)).scalar_one():
                    pass
        # Nothing waits for the table for longer than a second.
        found = await found_in(url, patience=Patience(lock=timedelta(0)))
        (lock,) = [each for each in found if each.code == "lock"]
        assert (lock.subject, lock.severity) == ("outbox", ERROR)
        assert lock.remedy.startswith("SELECT pg_terminate_backend(")
        assert {each.code for each in found} <= {"lock", "supplement-unknown", "unreadable"}
        await holder.rollback()
    await engine.dispose()


async def _server_findings(url: str, code: str, patience: Patience) -> list[Diagnosis]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGAPOST_DATABASE_URL", url)
        loaded = load_settings()
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        tables = tables_of(loaded.settings)
        found = await connection.run_sync(lambda sync: list(database.examine(sync, loaded, tables, patience=patience)))
    await engine.dispose()
    return [each for each in found if each.code == code]


async def test_a_client_that_was_lost_in_the_middle_of_a_statement_is_found(url: str) -> None:
    """Prepared and never executed: the server is active and waits, with the locks of the transaction."""
    lost = await asyncpg.connect(url.replace("+asyncpg", ""))
    await lost.execute("BEGIN")
    await lost.execute("INSERT INTO inbox_consumers (name) VALUES ('warehouse')")
    await lost.prepare("SELECT 1")
    assert await _server_findings(url, "stranded", Patience()) == []
    (found,) = await _server_findings(url, "stranded", Patience(transaction=timedelta(0)))
    assert found.subject == f"process {lost.get_server_pid()}"
    await execute(url, found.remedy)
    lost.terminate()


async def test_a_queue_of_notifications_that_is_not_read_is_found(url: str) -> None:
    """A session listens, in a transaction that stays open."""
    engine = create_async_engine(url)
    async with engine.connect() as listener:
        await listener.execute(text("LISTEN something"))
        await listener.commit()
        await listener.execute(text("SELECT 1"))
        await execute(url, "SELECT pg_notify('something', repeat('x', 7000)) FROM generate_series(1, 1) n")
        await execute(url, *(f"SELECT pg_notify('something', repeat('{n}', 7000))" for n in range(5)))
        (found,) = await _server_findings(url, "notify-queue", Patience(notify_queue=0))
        assert "of the queue are in use" in found.evidence
        assert await _server_findings(url, "notify-queue", Patience()) == []
        await listener.rollback()
    await engine.dispose()


async def test_dead_rows_that_nobody_cleans_are_found(url: str) -> None:
    """More of them than living rows, by what the server counted."""
    await execute(
        url,
        "ALTER TABLE inbox_types SET (autovacuum_enabled = false)",
        "INSERT INTO inbox_types (consumer, type, known_at) SELECT n, 'x', now() FROM generate_series(1, 1000) n",
        "DELETE FROM inbox_types",
    )
    with anyio.fail_after(20):
        # The server publishes its counts in its own time.
        while not (found := await _server_findings(url, "dead-rows", Patience(dead_rows=500))):
            pass
    assert found[0].subject == "inbox_types"
    assert "VACUUM inbox_types" in found[0].remedy


async def test_what_a_role_may_not_do_is_found_before_it_fails(url: str, postgresql: PostgreSQLServer) -> None:
    """The privilege is named with the GRANT; and rows that row-level security hides from it."""
    role = f"limited_{time.monotonic_ns()}"
    await execute(
        url,
        f"CREATE ROLE {role} LOGIN PASSWORD 'limited'",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
        f"REVOKE UPDATE, DELETE ON outbox_leases FROM {role}",
        "ALTER TABLE inbox_seen ENABLE ROW LEVEL SECURITY",
    )
    theirs = make_url(url).set(username=role, password="limited").render_as_string(hide_password=False)
    found = {each.code: each for each in await found_in(theirs)}
    assert found["privilege"].remedy == f"GRANT DELETE, UPDATE ON outbox_leases TO {role}"
    assert found["row-level-security"].severity is ERROR
    assert "hidden from this role" in found["row-level-security"].evidence
    await execute(url, found["privilege"].remedy, found["row-level-security"].remedy)
    # Whether it may read the sequence of positions is a matter of the release of the server.
    assert {each.code for each in await found_in(theirs)} <= {"supplement-unknown"}
    await execute(url, f"REVOKE SELECT ON outbox FROM {role}")
    assert "GRANT SELECT ON outbox" in {each.code: each for each in await found_in(theirs)}["privilege"].remedy
    await execute(url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_settings_of_a_whole_server_are_found(own_postgresql: OwnPostgreSQL) -> None:
    """Autovacuum switched off, and a slot that nobody reads."""
    server = own_postgresql(settings={"autovacuum": "off", "track_counts": "off"})
    url = server.url("postgres")
    await anyio.to_thread.run_sync(install, url)
    await execute(url, "SELECT pg_create_physical_replication_slot('forgotten', true)")
    found = {(each.code, each.subject): each for each in await found_in(url)}
    assert found["setting", "autovacuum"].severity is ERROR
    assert found["setting", "track_counts"].remedy.startswith("ALTER SYSTEM RESET track_counts")
    await execute(url, found["replication-slot", "forgotten"].remedy)
    assert [each for each in await found_in(url) if each.code == "replication-slot"] == []


async def test_a_database_that_is_not_in_utf8_is_found(url: str) -> None:
    """What another writer puts into it may be no text."""
    name = f"ascii_{time.monotonic_ns()}"
    await execute(url, f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    there = make_url(url).set(database=name).render_as_string(hide_password=False)
    (found,) = await _server_findings(there, "encoding", Patience())
    assert "SQL_ASCII" in found.evidence
    await execute(url, f"DROP DATABASE {name}")


@dataclass
class _Wrong(SystemClock):
    """A host whose clock is wrong."""

    by: timedelta

    def now(self) -> datetime:
        return datetime.now(UTC) + self.by


@pytest.mark.parametrize(("seconds", "severity"), [(30, WARNING), (-3600, ERROR), (1, None)])
async def test_a_host_whose_clock_is_wrong(url: str, seconds: int, severity: Severity | None) -> None:
    """Compared with the database's."""
    found = [each for each in await found_in(url, clock=_Wrong(timedelta(seconds=seconds))) if each.code == "clock"]
    assert [each.severity for each in found] == ([] if severity is None else [severity])


# --- the command ---


async def place(url: str, count: int) -> None:
    """Publish events in one transaction."""
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await Outbox(source="urn:x").publish_all(connection, [OrderPlaced(n) for n in range(count)])
    await engine.dispose()


def test_nothing_is_found_on_a_healthy_system_at_work(url: str, amqp_url: str, tmp_path: Path) -> None:
    """A relay and a consumer run, events flow: no finding, within two seconds beside them."""
    settings = {"SAGAPOST_DATABASE_URL": url, "SAGAPOST_BROKER_URL": amqp_url}
    path = write_service(tmp_path, "logs")
    with (
        started("consume", path, cwd=tmp_path, **settings) as consumer,
        started("relay", cwd=tmp_path, **settings) as relay,
    ):
        consumer.wait_for("consumes from")
        relay.wait_for("publishing to")

        anyio.run(place, url, 200)
        # On a busy machine a heartbeat may be late, and the relay silent for a moment.
        found: list[dict[str, str]] = [{"code": "relays"}]
        tries = 0
        while [each["code"] for each in found] == ["relays"] and tries < 5:
            began, tries = time.monotonic(), tries + 1
            found = json.loads(invoke("doctor", path, "--json", cwd=tmp_path, **settings).stdout)
            print(f"{time.monotonic() - began:.2f} s")
        assert found == []
        said = invoke("doctor", "--min-relays", "0", cwd=tmp_path, **settings).stdout
        assert said == "nothing is wrong that could be seen from here\n"


def test_findings_as_json_and_exit_codes(url: str, tmp_path: Path) -> None:
    """Code 9 if something is as grave as asked; each finding with all its fields; a misspelt variable is one."""
    settings = {"SAGAPOST_DATABASE_URL": url, "SAGAPOST_RELAY_BATCH_ROW": "7"}
    options = ("--min-relays", "0")
    advice = invoke("doctor", "--json", *options, cwd=tmp_path, **settings)
    assert advice.returncode == 0
    (found,) = json.loads(advice.stdout)
    assert found.keys() == {"severity", "code", "subject", "evidence", "remedy", "since"}
    assert (found["severity"], found["code"], found["since"]) == ("advice", "unknown-setting", None)
    assert invoke("doctor", "--fail-on", "advice", *options, cwd=tmp_path, **settings).returncode == 9
    without = invoke("doctor", cwd=tmp_path, **settings)
    assert without.returncode == 9
    assert "error\trelays\trelays\t-\tno relay is alive" in without.stdout
    assert invoke("doctor", "--fail-on", "never", cwd=tmp_path, **settings).returncode == 0


def test_a_broker_that_is_away_is_found(url: str, tmp_path: Path) -> None:
    """Beside all that the database says."""
    ran = run("doctor", cwd=tmp_path, SAGAPOST_DATABASE_URL=url, SAGAPOST_BROKER_URL="amqp://guest:guest@127.0.0.1:1/")
    assert ran.returncode == 9
    assert re.search(r"^error\tbroker\tamqp://127.0.0.1:1/\t-\t.*cannot be reached", ran.stdout, re.MULTILINE)


def test_an_embedded_database_is_looked_at_too(tmp_path: Path) -> None:
    """What is no matter of a server: tables, indexes, rules, rows."""
    settings = {"SAGAPOST_DATABASE_URL": f"sqlite:///{tmp_path / 'shop.db'}"}
    invoke("db", "upgrade", cwd=tmp_path, **settings)
    assert invoke("doctor", "--min-relays", "0", cwd=tmp_path, **settings).returncode == 0
    anyio.run(
        execute, settings["SAGAPOST_DATABASE_URL"].replace("sqlite:", "sqlite+aiosqlite:"), "DROP INDEX outbox_refused"
    )
    ran = invoke("doctor", "--min-relays", "0", "--fail-on", "warning", cwd=tmp_path, **settings)
    assert ran.returncode == 9
    assert "CREATE INDEX outbox_refused ON outbox (next_attempt_at) WHERE attempts > 0" in ran.stdout


# --- the broker ---


async def broker_findings(url: str, amqp_url: str, **settings: str) -> dict[tuple[str, str], Diagnosis]:
    """Return what is found at the broker, by code and subject, for a database with the inbox `warehouse`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SAGAPOST_DATABASE_URL": url, "SAGAPOST_BROKER_URL": amqp_url, **settings}.items():
            patch.setenv(name, value)
        found = await diagnose(load_settings(), allowed=Thresholds(min_relays=0))
    return {(each.code, each.subject): each for each in found}


@pytest.fixture
def with_inbox(url: str) -> str:
    """A database in which the inbox `warehouse` has run."""
    anyio.run(execute, url, "INSERT INTO inbox_consumers (name) VALUES ('warehouse')")
    return url


async def test_exchanges_and_queues_that_are_not_there(with_inbox: str, amqp_url: str) -> None:
    """Each by its name; looking makes none of them, and declaring all of them mends it."""
    missing = {
        ("exchange-missing", "sagapost"),
        ("exchange-missing", "sagapost.dead"),
        ("exchange-missing", "sagapost.listeners"),
        ("queue-missing", "warehouse"),
        ("dead-letter-queue-missing", "warehouse.dead"),
    }
    for _ in range(2):
        assert set(await broker_findings(with_inbox, amqp_url)) == missing
    for ordered in (False, True):
        broker = RabbitMQBroker(amqp_url, exchange=f"events-{ordered}")
        queue = Queue("warehouse", frozenset({"t"}), ordered=ordered)
        await broker.declare(queue)
        exchange = f"events-{ordered}"
        assert set(await broker_findings(with_inbox, amqp_url, SAGAPOST_EXCHANGE=exchange)) == {
            ("queue-not-consumed", "warehouse")
        }
        async with broker.subscribe(queue, prefetch=1):
            assert await broker_findings(with_inbox, amqp_url, SAGAPOST_EXCHANGE=exchange) == {}
        await delete_queues(amqp_url, "warehouse", "warehouse.dead")


async def delete_queues(amqp_url: str, *names: str) -> None:
    """Delete queues, as an administrator does."""
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        for name in names:
            await channel.queue_delete(name)


async def test_what_is_there_in_another_form(with_inbox: str, amqp_url: str) -> None:
    """An exchange of another type, queues with other arguments: the broker names the first that differs."""
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_exchange("sagapost", "fanout", durable=True)
        await channel.declare_exchange("sagapost.dead", "topic", durable=True)
        await channel.declare_queue("warehouse", durable=True, arguments={"x-queue-type": "classic"})
        await channel.declare_queue("warehouse.dead", durable=True, arguments={"x-max-length": 5})
    found = await broker_findings(with_inbox, amqp_url)
    assert "type" in found["exchange-other", "sagapost"].evidence
    assert ("exchange-other", "sagapost.dead") in found
    assert "inequivalent arg 'x-" in found["queue-other", "warehouse"].evidence
    assert found["dead-letter-queue-other", "warehouse.dead"].severity is WARNING


async def test_a_user_who_may_not_publish(url: str, amqp_url: str, rabbitmq: RabbitMQServer) -> None:
    """The relay's right, before an event is held for want of it; nothing is published by looking."""
    if not isinstance(rabbitmq, PrivateRabbitMQ):
        pytest.skip("needs a broker of the run's own, to make a user")
    broker = RabbitMQBroker(amqp_url)
    await broker.declare(Queue("everything", frozenset({"#"})))
    there = make_url(amqp_url)
    vhost = there.database or "/"
    name = f"reader-{time.monotonic_ns()}"
    await anyio.to_thread.run_sync(lambda: rabbitmq.create_user(name, vhost, configure="^$", write="^$", read=".*"))
    theirs = there.set(username=name, password=name).render_as_string(hide_password=False)
    found = await broker_findings(url, theirs)
    await anyio.to_thread.run_sync(rabbitmq.delete_user, name)
    assert "ACCESS_REFUSED" in found["right", "sagapost"].evidence
    assert "set_permissions" in found["right", "sagapost"].remedy
    assert set(found) == {("right", "sagapost")}
    assert [each.messages for each in await broker.depths("everything")] == [0]


async def test_a_broker_with_an_alarm(url: str, own_rabbitmq: OwnRabbitMQ) -> None:
    """It takes nothing in: publishers wait, whatever else says that all is well."""
    broker = own_rabbitmq()
    await RabbitMQBroker(broker.amqp_url()).declare()
    assert await broker_findings(url, broker.amqp_url()) == {}
    await anyio.to_thread.run_sync(lambda: broker.set_memory_alarm(on=True))
    ((code, _),) = await broker_findings(url, broker.amqp_url())
    assert code == "alarm"
    await anyio.to_thread.run_sync(lambda: broker.set_memory_alarm(on=False))
    assert await broker_findings(url, broker.amqp_url()) == {}
