"""A database that version 1 made becomes that of this release: the same tables, every row, while services write."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import psycopg
import pytest
from sqlalchemy import Engine, MetaData, Table, create_engine, inspect, text
from sqlalchemy.engine import make_url

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.core.audit import DECISIONS
from sagapost.core.broker import Queue
from sagapost.core.databases import kit_of
from sagapost.core.observer import Observation
from sagapost.core.schema import SchemaPart, UpgradeProgress, check_schema, upgrade_schema, with_needed
from sagapost.inbox import InboxTables
from sagapost.outbox import OutboxTables
from sagapost.outbox.relay import Relay
from sagapost.outbox.relay.observations import Settled
from sagapost.sagas import SagaTables
from sagapost.sagas.tracker import TrackerTables

FOLDER = Path(__file__).parent
ROWS = 100_000 if os.environ.get("SAGAPOST_TEST_CHAOS") == "long" else 3_000

_EVENT = (
    "INSERT INTO outbox (event_id, key_hash, topic, type, source, time, partitionkey, data) "
    "SELECT gen_random_uuid(), n % 32768, 'shop.order.v1', 'shop.order.v1', 'https://shop.example', now(), "
    "'key-' || n % 500, '{{}}' FROM generate_series({first}, {last}) n"
)
"""How version 1 wrote events."""

_FULL = (
    "INSERT INTO outbox_dead (position, event_id, key_hash, topic, type, source, time, data, attempts, last_error) "
    "SELECT n, gen_random_uuid(), 7, 't', 't', 's', now(), '{{}}', 3, 'refused' FROM generate_series(1, {rows}) n",
    "INSERT INTO outbox_scheduled (deliver_at, event_id, key_hash, topic, type, source, time, data) "
    "SELECT now() + interval '1 day', gen_random_uuid(), 7, 't', 't', 's', now(), '{{}}' "
    "FROM generate_series(1, {rows})",
    "INSERT INTO inbox_consumers (name) VALUES ('warehouse')",
    "INSERT INTO inbox_seen (consumer, key) SELECT 1, decode(md5(n::text), 'hex') FROM generate_series(1, {rows}) n",
    "INSERT INTO inbox_parked (consumer, key, state, reason, error, topic, envelope, data) "
    "SELECT 1, decode(md5(n::text), 'hex'), 'dead', 'error', 'e', 't', '{{}}', '{{}}' "
    "FROM generate_series(1, {rows}) n",
    "INSERT INTO saga_states (service, saga, state) "
    "SELECT 'shop', 's' || n, 'running' FROM generate_series(1, {rows}) n",
    "INSERT INTO saga_compensations (service, saga, name, arguments) "
    "SELECT 'shop', 's' || n, 'refund', '{{}}' FROM generate_series(1, {rows}) n",
    "INSERT INTO tracker_sagas (saga, state, started_at, last_at, events, truncated, history, version) "
    "SELECT 's' || n, 'running', now(), now(), 1, false, '\\x90', 1 FROM generate_series(1, {rows}) n",
)


class House:
    """Every table of this release, in one MetaData."""

    def __init__(self) -> None:
        metadata = MetaData()
        self.outbox = OutboxTables(metadata)
        inbox, sagas, tracker = InboxTables(metadata), SagaTables(metadata), TrackerTables(metadata)
        self.versions: Table = self.outbox.versions
        self.parts: Sequence[SchemaPart] = with_needed([self.outbox.part, inbox.part, sagas.part, tracker.part])

    def upgrade(self, engine: Engine, report: Callable[[UpgradeProgress], None] = lambda _: None) -> list[str]:
        """Upgrade on a connection of its own."""
        with engine.connect() as connection:
            return upgrade_schema(connection, self.versions, self.parts, report=report)

    def check(self, engine: Engine) -> None:
        """Hold every part against this release."""
        with engine.connect() as connection:
            for part in self.parts:
                check_schema(connection, self.versions, part, where="the database")


def form_of(engine: Engine) -> object:
    """Return columns, keys, indexes and checks, whatever the order of the columns."""
    inspector = inspect(engine)
    return {
        table: (
            sorted((each["name"], str(each["type"]), each["nullable"]) for each in inspector.get_columns(table)),
            inspector.get_pk_constraint(table)["constrained_columns"],
            sorted((str(each["name"]), each["unique"]) for each in inspector.get_indexes(table)),
            sorted((str(each["name"]), each["sqltext"]) for each in inspector.get_check_constraints(table)),
        )
        for table in inspector.get_table_names()
    }


@pytest.fixture
def libpq_url(postgresql_url: str) -> str:
    """The URL as psycopg takes it."""
    return make_url(postgresql_url).set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture
def postgresql_engine(libpq_url: str) -> Iterator[Engine]:
    """A database of version 1."""
    script = (FOLDER / "version-1.postgresql.sql").read_text()
    with psycopg.connect(libpq_url, autocommit=True) as connection:
        connection.execute(script.encode())
    engine = create_engine(make_url(libpq_url).set(drivername="postgresql+psycopg"))
    yield engine
    engine.dispose()


def fresh_form(engine: Engine) -> object:
    """Return what a new database of this release looks like, made in place of the old one."""
    MetaData().drop_all(engine)
    metadata = MetaData()
    metadata.reflect(engine)
    metadata.drop_all(engine)
    House().upgrade(engine)
    return form_of(engine)


def test_an_old_database_ends_in_the_form_of_a_new_one(postgresql_engine: Engine) -> None:
    """On PostgreSQL: columns, keys, indexes and checks, part by part."""
    house = House()
    assert set(house.upgrade(postgresql_engine)) >= {"outbox"}
    house.check(postgresql_engine)
    assert house.upgrade(postgresql_engine) == []
    upgraded = form_of(postgresql_engine)
    assert upgraded == fresh_form(postgresql_engine)


def test_an_old_file_ends_in_the_form_of_a_new_one(tmp_path: Path) -> None:
    """On SQLite: the same, with the rows that were there, and positions that go on."""
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.executescript((FOLDER / "version-1.sqlite.sql").read_text())
        connection.executemany(
            "INSERT INTO outbox (event_id, key_hash, topic, type, source, time, data) "
            "VALUES (?, 1, 't', 't', 's', '2026-01-01 00:00:00.000000', x'7b7d')",
            [(f"{number:032x}",) for number in range(10)],
        )
        connection.execute("DELETE FROM outbox WHERE position > 8")
    connection.close()
    engine = create_engine(f"sqlite:///{path}")
    house = House()
    assert set(house.upgrade(engine)) >= {"outbox"}
    house.check(engine)
    with engine.begin() as sync:
        assert sync.exec_driver_sql("SELECT count(*) FROM outbox").scalar_one() == 8
        sync.exec_driver_sql("INSERT INTO outbox (type, source, data) VALUES ('t', 's', x'7b7d')")
        assert sync.exec_driver_sql("SELECT max(position) FROM outbox").scalar_one() == 11
        # Not the sequences: they remember rows.
        sync.exec_driver_sql("DELETE FROM outbox")
    upgraded = form_of(engine)
    assert upgraded == fresh_form(engine)
    engine.dispose()


_WORDS_OF_VERSION_1 = (
    "INSERT INTO saga_states (service, saga, state, rollback_started_at) VALUES ('shop', '1', 'stuck', '2026-01-01')",
    "INSERT INTO saga_compensations (service, saga, name, arguments, state, last_error) VALUES "
    "('shop', '1', 'refund', '{}', 'needs_human', 'no'), ('shop', '1', 'revoke', '{}', 'pending', NULL)",
    "INSERT INTO saga_island_runs (id, service, island, saga, instance, state, data, reason, by_saga, ended_at) "
    "VALUES ('a', 'shop', 'ship', '1', '', 'undoing', '{}', 'why', false, NULL), "
    "('b', 'shop', 'ship', '2', '', 'undone', '{}', 'why', false, '2026-01-01'), "
    "('c', 'shop', 'ship', '3', '', 'running', '{}', NULL, false, NULL)",
    "INSERT INTO saga_island_steps (run, step, position, stage, state, attempt, uncertain, undo, task) VALUES "
    "('a', 'p', 0, 0, 'undone', 1, false, true, NULL), ('a', 'q', 1, 1, 'undoing', 1, false, true, NULL), "
    "('a', 'r', 2, 2, 'needs-human', 1, false, true, 7), ('c', 'p', 0, 0, 'waiting', 1, false, false, NULL)",
    "INSERT INTO tracker_sagas (saga, state, started_at, last_at, ended_at, events, truncated, history, version) "
    "VALUES ('1', 'compensating', '2026-01-01', '2026-01-01', NULL, 1, false, '', 1), "
    "('2', 'compensated', '2026-01-01', '2026-01-01', '2026-01-01', 1, false, '', 1), "
    "('3', 'running', '2026-01-01', '2026-01-01', NULL, 1, false, '', 1)",
)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_states_of_sagas_are_said_in_the_words_of_version_2(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    """Ledger, islands and tracker; what had the same word in version 1 keeps it."""
    if database == "postgresql":
        engine: Engine = request.getfixturevalue("postgresql_engine")
    else:
        with sqlite3.connect(tmp_path / "shop.db") as connection:
            connection.executescript((FOLDER / "version-1.sqlite.sql").read_text())
        connection.close()
        engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with engine.begin() as sync:
        for statement in _WORDS_OF_VERSION_1:
            sync.exec_driver_sql(statement)
    house = House()
    house.upgrade(engine)
    house.check(engine)

    def states(table: str, order: str) -> list[str]:
        with engine.connect() as sync:
            return list(sync.exec_driver_sql(f"SELECT state FROM {table} ORDER BY {order}").scalars())

    assert states("saga_compensations", "name") == ["stuck", "pending"]
    assert states("saga_island_runs", "id") == ["rolling_back", "rolled_back", "running"]
    assert states("saga_island_steps", "run, step") == ["rolled_back", "rolling_back", "stuck", "waiting"]
    assert states("tracker_sagas", "saga") == ["rolling_back", "rolled_back", "running"]
    engine.dispose()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_operators_decided_before_is_in_the_audit_of_all_decisions(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    """Every row of `inbox_audit`, with what it kept; the table itself is gone."""
    if database == "postgresql":
        engine: Engine = request.getfixturevalue("postgresql_engine")
    else:
        with sqlite3.connect(tmp_path / "shop.db") as connection:
            connection.executescript((FOLDER / "version-1.sqlite.sql").read_text())
        connection.close()
        engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    house, body = House(), b"{}"
    with engine.begin() as sync:
        sync.exec_driver_sql("INSERT INTO inbox_consumers (name) VALUES ('warehouse')")
        rows = [
            {"at": datetime(2026, 1, day, tzinfo=UTC), "action": action, "envelope": kept, "data": kept and body}
            for day, (action, kept) in enumerate([("redrive", None), ("discard", '{"id": "1"}')], 1)
        ]
        sync.execute(
            text(
                "INSERT INTO inbox_audit (at, actor, action, reason, consumer, parked_id, event_id, envelope, data) "
                "VALUES (:at, 'ada', :action, 'why', 1, 17, '1', :envelope, :data)"
            ),
            rows,
        )
    assert {"audit", "inbox"} <= set(house.upgrade(engine))
    audit = house.outbox.audit
    with engine.connect() as sync:
        entries = audit.entries(sync.execute(audit.select(DECISIONS.select(), kit_of(engine))).all())
    assert [(entry.action, entry.desk, entry.place, entry.subject) for entry in entries] == [
        ("discard", "parked", "warehouse", "17"),
        ("redrive", "parked", "warehouse", "17"),
    ]
    assert [(entry.at.day, entry.original, entry.data) for entry in entries] == [
        (2, '{"id": "1"}', body),
        (1, None, None),
    ]
    assert not inspect(engine).has_table("inbox_audit")
    engine.dispose()


class Killed(BaseException):
    """The process ends here."""


class Writer(threading.Thread):
    """A service of version 1 that writes events until it is stopped."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.stopped = threading.Event()
        self.written = 0
        self.longest = 0.0

    def run(self) -> None:
        """Write one event in each transaction."""
        with psycopg.connect(self._url) as connection:
            while not self.stopped.is_set():
                began = time.monotonic()
                connection.execute(_EVENT.format(first=self.written, last=self.written).encode())
                connection.commit()
                self.longest = max(self.longest, time.monotonic() - began)
                self.written += 1


@contextmanager
def writing(url: str) -> Generator[Writer]:
    """Let a service write meanwhile."""
    writer = Writer(url)
    writer.start()
    try:
        yield writer
    finally:
        writer.stopped.set()
        writer.join()


class Emptied:
    """Lets a test wait until so many rows are settled."""

    def __init__(self, rows: int) -> None:
        self._left = rows
        self.done = anyio.Event()

    def notify(self, event: Observation, /) -> None:
        """Count what is settled."""
        if isinstance(event, Settled):
            self._left -= event.rows
            if self._left <= 0:
                self.done.set()


async def test_nothing_is_lost_when_a_full_database_is_upgraded_under_load(
    postgresql_engine: Engine, libpq_url: str
) -> None:
    """A service writes on; one upgrade is killed half-way, two run at once; a relay of this release drains all."""
    with psycopg.connect(libpq_url, autocommit=True) as connection:
        connection.execute(_EVENT.format(first=1, last=ROWS).encode())
        for statement in _FULL:
            connection.execute(statement.format(rows=ROWS).encode())

    def kill_half_way(progress: UpgradeProgress) -> None:
        if progress.step > progress.steps // 2:
            raise Killed

    results: list[list[str]] = []
    with writing(libpq_url) as writer:
        with pytest.raises(Killed):
            House().upgrade(postgresql_engine, kill_half_way)
        upgrades = [
            threading.Thread(target=lambda: results.append(House().upgrade(postgresql_engine))) for _ in range(2)
        ]
        for upgrade in upgrades:
            upgrade.start()
        for upgrade in upgrades:
            await anyio.to_thread.run_sync(upgrade.join)
    house = House()
    house.check(postgresql_engine)
    assert sum("outbox" in changed for changed in results) == 1
    print(f"{writer.written} events were written meanwhile, the slowest in {writer.longest:.2f} s")

    total = ROWS + writer.written
    emptied, broker = Emptied(total), MemoryBroker()
    await broker.declare(Queue("warehouse", frozenset({"shop.order.v1"})))
    store = PostgreSQLOutboxStore(libpq_url, tables=house.outbox)
    relay = Relay(store, broker, observer=emptied)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(relay.run)
        with anyio.fail_after(100):
            await emptied.done.wait()
        relay.stop()
    assert len(broker.waiting("warehouse")) == total
    with psycopg.connect(libpq_url) as connection:
        counts = [
            connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
            for table in re.findall(r"INSERT INTO (\w+)", " ".join(_FULL))
            if table != "inbox_consumers"
        ]
        left = connection.execute("SELECT count(*) FROM outbox").fetchone()
    assert left == (0,)
    assert counts == [(ROWS,)] * len(counts)
