"""Pitfall 32, the outbox's side: what others write into the tables is refused by them, or held or dead alone."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.adapters.sqlite import SQLiteOutboxStore
from sagapost.core.outbox_store import Claims, DueEvents, LeaseToken, OutboxRow, OutboxStore, Partition
from sagapost.core.schema import install_schema
from sagapost.outbox import OutboxTables
from sagapost.outbox.relay import observations as obs
from tests.relay.shop import EVERYTHING, FAST, Shop, Watch, received, running

ALL: Claims = {Partition(p): LeaseToken(1) for p in range(32)}
DOCS = Path(__file__).parents[2] / "docs" / "operations.md"

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 10)
    | st.text(st.characters(codec="ascii", exclude_characters="\x00")),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("aB-"), inner, max_size=2),
    max_leaves=4,
)
strange_times = st.sampled_from(
    ["infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "12000-01-01", "294276-12-31", "0001-01-01", "1969-12-31"]
)
texts = st.sampled_from(["", "x", "a\nb", "é" * 255, "\U0001f600" * 255])

strange_rows = st.fixed_dictionaries(
    {},
    optional={
        "extensions": json_values.map(json.dumps),
        "time": strange_times,
        "next_attempt_at": strange_times,
        "topic": texts | st.none(),
        "type": texts,
        "source": texts,
        "subject": texts,
        "partitionkey": texts,
        "datacontenttype": texts | st.none(),
        "correlationid": texts,
        "key_hash": st.sampled_from(["-1", "32767"]),
        "attempts": st.sampled_from(["0", "-1", "1", "32767"]),
    },
)
"""What plain SQL may put into a row of PostgreSQL."""


async def _without_rules(connection: asyncpg.Connection, *tables: str) -> None:
    """Take the rules away, as in a table that a migration of one's own made."""
    for table in tables:
        for (name,) in await connection.fetch(
            "SELECT conname FROM pg_constraint WHERE conrelid = $1::regclass AND contype = 'c'", table
        ):
            await connection.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"')


async def _insert(connection: asyncpg.Connection, values: dict[str, str | None], table: str = "outbox") -> None:
    row = {"type": "strange", "source": "s", **values}
    literals = ["NULL" if value is None else "'" + value.replace("'", "''") + "'" for value in row.values()]
    columns = ", ".join((*row, "data"))
    await connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({', '.join(literals)}, '')")


async def _read(store: OutboxStore) -> list[OutboxRow]:
    async with store.reader() as reader:
        rows: list[OutboxRow] = []
        while True:
            page = await reader.fetch(ALL, max_rows=7, max_bytes=2**20)
            rows += page.rows
            if page.caught_up:
                return rows


@pytest.fixture
async def connection(shop: Shop) -> AsyncGenerator[asyncpg.Connection, None]:
    """The other writer's."""
    opened = await asyncpg.connect(shop.dsn)
    yield opened
    await opened.close()


def test_pitfall_32_no_row_disturbs_another_postgresql(postgresql_url: str) -> None:
    """Rows of any shape in a table without rules: the good ones are read, each bad one says why, none fails a page."""

    async def install() -> None:
        shop = Shop(postgresql_url)
        async with shop.engine.begin() as connection:
            await connection.run_sync(install_schema, shop.tables.versions, [shop.tables.part])
        await shop.engine.dispose()
        raw = await asyncpg.connect(shop.dsn)
        await _without_rules(raw, "outbox")
        await raw.close()

    async def check(rows: Sequence[dict[str, str | None]]) -> None:
        raw = await asyncpg.connect(postgresql_url.replace("+asyncpg", ""))
        await raw.execute("TRUNCATE outbox")
        for row in rows:
            await _insert(raw, {"type": "good"})
            await _insert(raw, row)
        await raw.close()
        store = PostgreSQLOutboxStore(postgresql_url, tables=OutboxTables())
        try:
            found = await _read(store)
        finally:
            await store.aclose()
        assert [row.event.type for row in found if row.event.type == "good"] == ["good"] * len(rows)
        assert len(found) == 2 * len(rows)
        assert len({row.position for row in found}) == len(found)
        for each in found:
            assert each.unreadable is not None or all(isinstance(v, str) for v in each.event.extensions.values())

    anyio.run(install)

    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(st.lists(strange_rows, min_size=1, max_size=12))
    def fuzz(rows: list[dict[str, str | None]]) -> None:
        anyio.run(check, rows)

    fuzz()


sqlite_values: st.SearchStrategy[Any] = (
    st.none() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.binary(max_size=4) | st.text(max_size=300)
)


strange_sqlite_rows = st.dictionaries(
    st.sampled_from(
        ["event_id", "topic", "type", "source", "time", "subject", "partitionkey", "extensions", "data",
         "next_attempt_at", "attempts", "tracestate"]
    ),
    sqlite_values,
    max_size=3,
)  # fmt: skip


def test_pitfall_32_no_row_disturbs_another_sqlite(tmp_path: Path) -> None:
    """SQLite stores anything in any column: the same, with values of every storage class."""
    path = tmp_path / "outbox.db"
    tables = _sqlite_outbox(path)

    async def read() -> list[OutboxRow]:
        store = SQLiteOutboxStore(path, tables=tables)
        try:
            return await _read(store)
        finally:
            await store.aclose()

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.lists(strange_sqlite_rows, min_size=1, max_size=12))
    def fuzz(rows: list[dict[str, Any]]) -> None:
        written = 0
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute("DELETE FROM outbox")
            for row in rows:
                connection.execute("INSERT INTO outbox (type, source, data) VALUES ('good', 's', x'00')")
                values = {"type": "strange", "source": "s", "data": b"", **row}
                try:
                    connection.execute(
                        f"INSERT INTO outbox ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
                        list(values.values()),
                    )
                except (sqlite3.IntegrityError, UnicodeEncodeError):
                    continue  # NULL where none may be, or half a surrogate pair
                written += 1
            connection.commit()
        found = anyio.run(read)
        assert [row.event.data for row in found if row.event.type == "good"] == [b"\0"] * len(rows)
        assert len(found) == len(rows) + written

    fuzz()


def test_a_text_that_is_no_utf8_is_the_fault_of_its_row_alone(tmp_path: Path) -> None:
    """sqlite3 itself raises on such a text, for the whole page."""
    tables = _sqlite_outbox(tmp_path / "outbox.db")
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("INSERT INTO outbox (type, source, data) VALUES ('good', 's', x'')")
        connection.execute(
            "INSERT INTO outbox (type, source, subject, data) VALUES ('bad', 's', CAST(x'ff' AS TEXT), '')"
        )
        connection.commit()

    async def read() -> list[OutboxRow]:
        store = SQLiteOutboxStore(tmp_path / "outbox.db", tables=tables)
        try:
            return await _read(store)
        finally:
            await store.aclose()

    good, bad = anyio.run(read)
    assert (good.event.type, good.unreadable) == ("good", None)
    assert bad.unreadable is not None
    assert "subject" in bad.unreadable


def _sqlite_outbox(path: Path) -> OutboxTables:
    tables = OutboxTables()
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        install_schema(connection, tables.versions, [tables.part])
    engine.dispose()
    return tables


REFUSED: list[dict[str, str | None]] = [
    {"extensions": '{"tenant": 7}'},
    {"extensions": '["a"]'},
    {"extensions": '{"a": ["b"]}'},
    {"extensions": '{"Tenant-Id": "7"}'},
    {"time": "infinity"},
    {"time": "-infinity"},
    {"time": "12000-01-01"},
    {"source": ""},
    {"type": "é" * 200},
    {"topic": ""},
    {"partitionkey": ""},
]


async def test_the_tables_refuse_what_is_no_event(shop: Shop, connection: asyncpg.Connection) -> None:
    """By CHECK, in the writer's own transaction; the scheduled events' table has the same rules and one of its own."""
    for row in REFUSED:
        with pytest.raises(asyncpg.CheckViolationError):
            await _insert(connection, row)
        with pytest.raises(asyncpg.CheckViolationError):
            await _insert(connection, {**row, "deliver_at": "2026-01-01"}, "outbox_scheduled")
    for deliver_at in ("infinity", "-infinity", "10000-01-01"):
        with pytest.raises(asyncpg.CheckViolationError):
            await _insert(connection, {"deliver_at": deliver_at}, "outbox_scheduled")
    for counted in ({"attempts": "-1"}, {"attempts": "1", "last_error": "x", "next_attempt_at": "infinity"}):
        with pytest.raises(asyncpg.CheckViolationError):
            await _insert(connection, dict(counted))
    assert await shop.one("SELECT count(*) FROM outbox") == 0


async def test_pitfall_32_an_unreadable_row_is_held_with_its_key_and_then_dead(
    shop: Shop, connection: asyncpg.Connection
) -> None:
    """Others flow; its followers wait behind it; it has its reason, and ends among the dead letters."""
    await _without_rules(connection, "outbox")
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    async with running(shop.relay(broker, watch, replace(FAST, max_attempts=3))):
        await _insert(connection, {"extensions": '{"tenant": 7}', "partitionkey": "k"})
        await shop.say(1, key="k")
        await shop.say(2, key="other")
        await watch.until(lambda: watch.settled == 1)
        await watch.until(lambda: watch.count(obs.Buried) == 1)
    assert Counter(event.partitionkey for event in await received(broker, 1)) == Counter(["other"])
    assert await connection.fetchval("SELECT last_error FROM outbox_dead") == (
        "the row cannot be read as an event: its extensions are no JSON object of strings: "
        "Expected `str`, got `int` - at `$[...]`"
    )
    assert await connection.fetchval("SELECT partitionkey FROM outbox") == "k"


async def test_pitfall_32_a_row_that_was_repaired_flows(shop: Shop, connection: asyncpg.Connection) -> None:
    """An operator corrects the held row by SQL: the next attempt sends it, and its followers after it."""
    await _without_rules(connection, "outbox")
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    async with running(shop.relay(broker, watch)):
        await _insert(connection, {"extensions": "[]", "partitionkey": "k"})
        await shop.say(1, key="k")
        await watch.until(lambda: watch.count(obs.Held) >= 2)
        await connection.execute("UPDATE outbox SET extensions = NULL WHERE type = 'strange'")
        await watch.until(lambda: watch.settled == 2)
    assert [event.type for event in await received(broker, 2)] == ["strange", "shop.said.v1"]


async def test_pitfall_32_a_held_row_that_its_table_refuses_to_keep_is_buried(
    shop: Shop, connection: asyncpg.Connection
) -> None:
    """It was there before the rule, so no update of it is taken: it becomes a dead letter, and the others are held."""
    await _without_rules(connection, "outbox")
    await _insert(connection, {"type": ""})
    await connection.execute("ALTER TABLE outbox ADD CONSTRAINT later CHECK (type <> '') NOT VALID")
    await shop.say(1, key=None, type_="nobody.listens.v1")
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(replace(EVERYTHING, topics=frozenset({"shop.#"})))
    async with running(shop.relay(broker, watch)):
        await watch.until(lambda: watch.count(obs.Held) >= 2)
        await shop.say(2)
        await watch.until(lambda: watch.settled == 1)
    assert await connection.fetchval("SELECT count(*) FROM outbox_dead") == 1
    assert await connection.fetchval("SELECT count(*) FROM outbox WHERE attempts > 0") == 1


async def test_pitfall_32_a_scheduled_row_that_the_outbox_refuses_holds_up_no_other(
    shop: Shop, connection: asyncpg.Connection
) -> None:
    """It becomes a dead letter with the reason; an infinite one waits for ever, and nothing spins or ends."""
    await _without_rules(connection, "outbox_scheduled")
    for deliver_at in ("-infinity", "infinity", "290000-01-01"):
        await _insert(connection, {"deliver_at": deliver_at}, "outbox_scheduled")
    await _insert(connection, {"deliver_at": "2026-01-01", "extensions": '{"tenant": 7}'}, "outbox_scheduled")
    await _insert(connection, {"deliver_at": "2026-01-01", "type": "good"}, "outbox_scheduled")
    store = PostgreSQLOutboxStore(shop.url, tables=shop.tables)
    moved, upcoming, (buried,) = await store.schedule.move_due(limit=100)
    assert moved == 2
    assert upcoming is not None
    assert timedelta(hours=23) < upcoming <= timedelta(days=1)
    assert (buried.event_type, buried.key) == ("strange", None)
    assert buried.position < 0
    await store.aclose()
    reason = str(await connection.fetchval("SELECT last_error FROM outbox_dead"))
    assert reason.startswith("the outbox refuses this scheduled event")
    assert [row["type"] for row in await connection.fetch("SELECT type FROM outbox ORDER BY position")] == [
        "strange",
        "good",
    ]


async def test_a_scheduled_row_that_goes_dead_is_reported(shop: Shop, connection: asyncpg.Connection) -> None:
    """As every dead letter is: by the relay that moved it."""
    await _without_rules(connection, "outbox_scheduled")
    await _insert(connection, {"deliver_at": "2026-01-01", "extensions": '{"tenant": 7}'}, "outbox_scheduled")
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    async with running(shop.relay(broker, watch)):
        await watch.until(lambda: watch.count(obs.Buried) == 1)
    (buried,) = [event for event in watch.events if isinstance(event, obs.Buried)]
    assert (buried.event_type, buried.attempts, buried.policy) == ("strange", 0, "skip")
    assert buried.reason.startswith("the outbox refuses this scheduled event")
    assert buried.event_id == str(await connection.fetchval("SELECT event_id FROM outbox_dead"))


def test_pitfall_32_the_same_on_sqlite(tmp_path: Path) -> None:
    """A scheduled row that the outbox refuses, and one whose time is none."""
    path = tmp_path / "outbox.db"
    tables = _sqlite_outbox(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for row in (("2020-01-01", "[]"), ("2020-01-01", None), ("soon", None)):
            connection.execute(
                "INSERT INTO outbox_scheduled (deliver_at, extensions, type, source, data) "
                "VALUES (?, ?, 't', 's', x'')",
                row,
            )
        connection.commit()

    async def move() -> DueEvents:
        store = SQLiteOutboxStore(path, tables=tables)
        try:
            return await store.schedule.move_due(limit=100)
        finally:
            await store.aclose()

    moved, upcoming, (buried,) = anyio.run(move)
    assert (moved, upcoming) == (1, timedelta(days=1))
    assert (buried.position, buried.event_type, buried.key) == (-1, "t", None)
    assert UUID(buried.event_id).hex == buried.event_id.replace("-", "")
    with closing(sqlite3.connect(path)) as connection:
        ((reason,),) = connection.execute("SELECT last_error FROM outbox_dead").fetchall()
        assert reason.startswith("the outbox refuses this scheduled event")


async def test_plain_sql_needs_no_more_than_the_documented_columns(shop: Shop, connection: asyncpg.Connection) -> None:
    """The statement in docs/operations.md, as it is: the event comes, in the order of its key with the library's."""
    (statement,) = re.findall(r"```sql\n(INSERT INTO outbox .*?)```", DOCS.read_text(), re.DOTALL)
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    await shop.say(1, key="order-17")
    await connection.execute(statement)
    await shop.say(2, key="order-17")
    slots = await connection.fetch("SELECT DISTINCT slot FROM outbox")
    assert len(slots) == 1
    async with running(shop.relay(broker, watch)):
        await watch.until(lambda: watch.settled == 3)
    first, second, third = await received(broker, 3)
    assert (first.data, third.data) == (b'{"n":1}', b'{"n":2}')
    assert (second.type, second.source, second.datacontenttype) == (
        "orders.order-placed.v1",
        "https://legacy.example",
        "application/json",
    )
    assert second.id.count("-") == 4
    assert second.time.tzinfo is not None


def test_plain_sql_needs_no_more_on_sqlite(tmp_path: Path) -> None:
    """The same statement fills a row that is read as an event."""
    (statement,) = re.findall(r"```sql\n(INSERT INTO outbox .*?)```", DOCS.read_text(), re.DOTALL)
    path = tmp_path / "outbox.db"
    tables = _sqlite_outbox(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.create_function("convert_to", 2, _convert_to)
        connection.execute(statement)
        connection.commit()

    async def read() -> list[OutboxRow]:
        store = SQLiteOutboxStore(path, tables=tables)
        try:
            return await _read(store)
        finally:
            await store.aclose()

    (row,) = anyio.run(read)
    assert (row.unreadable, row.topic, row.event.partitionkey) == (None, "orders.order-placed.v1", "order-17")


def _convert_to(text: str, _encoding: str) -> bytes:
    return text.encode()
