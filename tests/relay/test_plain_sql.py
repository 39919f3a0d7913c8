"""The page on plain SQL is run: as a role with exactly the rights it names, against real servers."""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

import anyio
import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.adapters.sqlite import SQLiteOutboxStore
from sagapost.core.broker import Queue
from sagapost.core.databases.failures import code_of
from sagapost.core.envelope import Event
from sagapost.core.schema import install_schema
from sagapost.outbox import OutboxTables
from sagapost.outbox.relay import Relay
from sagapost.outbox.relay import observations as obs
from sagapost.outbox.tables import ENVELOPE_COLUMNS
from tests.relay.shop import EVERYTHING, FAST, Shop, Watch, received, running

PAGE = (Path(__file__).parents[2] / "docs" / "plain-sql.md").read_text()
BLOCKS = re.findall(r"^<!-- sql: (\w+) -->\n```sql\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
REFUSALS = [
    statement
    for who, block in BLOCKS
    if who == "refused"
    for statement in re.findall(r"^-- (\w{5}): (.*)\n((?:(?!--).+\n)+)", block, re.MULTILINE)
]
Row: TypeAlias = dict[str, str | None]


@asynccontextmanager
async def role(shop: Shop) -> AsyncGenerator[tuple[asyncpg.Connection, asyncpg.Connection, str], None]:
    """The administrator's connection, that of a new role without any rights, and the role's name."""
    name = f"sagapost_legacy_{secrets.token_hex(4)}"
    administrator = await asyncpg.connect(shop.dsn)
    await administrator.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'legacy'")
    url = make_url(shop.dsn).set(username=name, password="legacy")
    legacy = await asyncpg.connect(url.render_as_string(hide_password=False))
    try:
        yield administrator, legacy, name
    finally:
        await legacy.close()
        await administrator.execute(f"DROP OWNED BY {name}")
        await administrator.execute(f"DROP ROLE {name}")
        await administrator.close()


async def run_page(administrator: asyncpg.Connection, legacy: asyncpg.Connection, name: str) -> None:
    """Run the statements for PostgreSQL in the order of the page, each as whom it is for."""
    for who, block in BLOCKS:
        if who == "administrator":
            await administrator.execute(block.replace("TO legacy", f"TO {name}"))
        elif who == "legacy":
            await legacy.execute(block)


def told(events: Sequence[Event], key: str) -> list[tuple[str, object]]:
    """Return type and data of a key's events."""
    return [(event.type, json.loads(event.data)) for event in events if event.partitionkey == key]


def test_no_block_of_the_page_is_left_out() -> None:
    """Every SQL block says who runs it, so a changed marker cannot switch its test off."""
    assert len(BLOCKS) == len(re.findall(r"^```sql$", PAGE, re.MULTILINE))
    assert [who for who, _ in BLOCKS] == [*["administrator", "legacy"] * 3, "refused", "sqlite"]
    assert len(REFUSALS) == len(re.findall(r"^INSERT", dict(BLOCKS)["refused"], re.MULTILINE)) == 8


async def test_the_page_publishes_with_the_rights_it_names(shop: Shop, amqp_url: str) -> None:
    """From the statement, the trigger and the schedule, in the order of their keys; of a rollback nothing is sent."""
    broker, watch = RabbitMQBroker(amqp_url), Watch()
    await broker.declare(EVERYTHING)
    async with role(shop) as (administrator, legacy, name):
        await run_page(administrator, legacy, name)
        await legacy.execute(BLOCKS[5][1])
        assert (
            await administrator.fetchval("SELECT count(DISTINCT slot) FROM outbox WHERE partitionkey = 'order-17'")
            == 1
        )
        assert await administrator.fetchval("SELECT count(*) FROM outbox_scheduled") == 2
        due = await administrator.fetchval("UPDATE outbox_scheduled SET deliver_at = now() RETURNING now()")
        assert isinstance(due, datetime)
        async with running(shop.relay(broker, watch)):
            await watch.until(lambda: watch.settled == 7)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await legacy.fetch("SELECT * FROM outbox")
    events = await received(broker, 7)
    placed, paid = "orders.order-placed.v1", ("orders.order-paid.v1", {"order": 17})
    overdue = ("orders.order-overdue.v1", {"order": 17})
    assert told(events, "order-17") == [
        (placed, {"order": 17}),
        (placed, {"order": 17, "item": "blue-train"}),
        paid,
        paid,
        overdue,
        overdue,
    ]
    assert told(events, "order-18") == [(placed, {"order": 18, "item": "kind-of-blue"})]
    assert told(events, "order-19") == []
    first, second = (event for event in events if event.type == paid[0])
    assert (first.source, first.id) == (second.source, second.id)
    assert (first.correlationid, first.subject, first.extensions) == ("order-17", "orders/17", {"tenant": "blue"})
    assert all(abs((event.time - due).total_seconds()) < 15 for event in events if event.type == overdue[0])


async def test_what_the_page_calls_refused_is_refused(shop: Shop) -> None:
    """Under the SQLSTATE it names, with the constraint or column in the message; nothing is left."""
    async with role(shop) as (administrator, legacy, name):
        await run_page(administrator, legacy, name)
        before = await administrator.fetchval("SELECT count(*) FROM outbox")
        for sqlstate, message, statement in REFUSALS:
            with pytest.raises(asyncpg.PostgresError) as caught:
                await legacy.execute(statement)
            assert code_of(caught.value) == sqlstate, statement
            # In whatever language the server speaks: names stay.
            assert all(quoted in str(caught.value) for quoted in re.findall(r'"\w+"', message))
        assert await administrator.fetchval("SELECT count(*) FROM outbox") == before


async def test_a_trigger_of_ones_own_rings_for_a_sleeping_relay(shop: Shop) -> None:
    """The event of an order wakes a relay that would look again in half a minute."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    async with role(shop) as (administrator, legacy, name):
        await run_page(administrator, legacy, name)
        await administrator.execute("TRUNCATE outbox, outbox_scheduled")
        await legacy.execute("SET sagapost.doorbell = on")
        async with running(shop.relay(broker, watch)):
            await watch.until(lambda: watch.count(obs.Idle) >= 1)
            await legacy.execute("INSERT INTO orders VALUES (20, 'giant-steps')")
            await watch.until(lambda: watch.settled == 1, within=10)


# --- hostile rows ---

_LONG = "é" * 200
_texts = st.sampled_from(
    ["", "x", "a\nb", "\x01", "\u202e", "'; DROP TABLE outbox; --", _LONG, "#", "*.v1", "nobody.v1"]
)
_values: dict[str, st.SearchStrategy[str | None]] = {
    **{column: _texts | st.none() for column in ENVELOPE_COLUMNS},
    "event_id": st.sampled_from(["", "1", "00000000-0000-0000-0000-000000000000"]),
    "time": st.sampled_from(["infinity", "-infinity", "0044-03-15 BC", "12000-01-01", "0001-01-01", "9999-12-30"]),
    "data": st.sampled_from(["", "\\x00ff", "{", "x" * 5000]),
    "extensions": st.sampled_from(
        ["{}", "[]", "7", "{", '{"a": 7}', '{"a": null}', '{"A-b": "c"}', '{"id": "x"}', '{"data": "x"}', '{"a": ""}']
    ),
    **{
        column: st.sampled_from(["0", "-1", "32767"]) for column in ("xid", "slot", "position", "attempts", "key_hash")
    },
    "next_attempt_at": st.just("infinity"),
    "last_error": st.just("it was never tried"),
}
hostile_rows: st.SearchStrategy[Row] = st.sets(st.sampled_from(sorted(_values)), max_size=3).flatmap(
    lambda chosen: st.fixed_dictionaries({column: _values[column] for column in sorted(chosen)})
)
LEGACY = Queue("legacy", frozenset({"legacy.#", "good"}))


async def insert(connection: asyncpg.Connection, row: Row) -> str | None:
    """Write a row as it is; return the SQLSTATE of a refusal."""
    values = {"type": "legacy.said.v1", "source": "urn:legacy", "partitionkey": "k", "data": "{}", **row}
    literals = ", ".join(
        "NULL" if value is None else "'" + value.replace("'", "''") + "'" for value in values.values()
    )
    try:
        await connection.execute(f"INSERT INTO outbox ({', '.join(values)}) VALUES ({literals})")
    except asyncpg.PostgresError as error:
        return code_of(error)
    return None


async def relay_hostile(shop: Shop, legacy: asyncpg.Connection, rows: Sequence[Row]) -> Counter[str]:
    """Write the rows, a good one behind each, and relay them: each is refused, published, or dead with its reason.

    Return how many were.
    """
    raw = await asyncpg.connect(shop.dsn)
    await raw.execute("TRUNCATE outbox, outbox_dead")
    taken = 0
    for row in rows:
        refused = await insert(legacy, row)
        # Data exceptions, violated constraints, generated columns, columns without the right: never a server's fault.
        assert refused is None or refused[:2] in {"22", "23", "42"}, refused
        taken += refused is None
        assert await insert(legacy, {"type": "good", "partitionkey": None}) is None
    broker, watch = MemoryBroker(max_message_bytes=4000), Watch()
    await broker.declare(LEGACY)
    given_up = replace(FAST, max_attempts=2, on_unroutable="bury", on_dead="skip")
    async with running(shop.relay(broker, watch, given_up)):
        await watch.until(lambda: watch.settled + watch.count(obs.Buried) == taken + len(rows))
        await insert(legacy, {"type": "good", "partitionkey": "k"})
        await watch.until(lambda: watch.settled + watch.count(obs.Buried) == taken + len(rows) + 1)
    assert watch.count(obs.RelayStopped) == 1
    dead = await raw.fetch("SELECT type, last_error FROM outbox_dead")
    assert len(dead) == watch.count(obs.Buried)
    assert all(letter["type"] != "good" and letter["last_error"] for letter in dead)
    assert await raw.fetchval("SELECT count(*) FROM outbox") == 0
    await raw.close()
    published = await received(broker, watch.settled, LEGACY)
    assert [event.type for event in published].count("good") == len(rows) + 1
    return Counter(refused=len(rows) - taken, dead=len(dead), published=taken - len(dead))


async def test_pitfall_32_no_hostile_row_ends_the_relay(shop: Shop) -> None:
    """Whatever a role with the page's rights writes: refused by the database, or published, or a dead letter."""
    outcomes: Counter[str] = Counter()
    async with role(shop) as (administrator, legacy, name):
        await run_page(administrator, legacy, name)
        rest = ", ".join(ENVELOPE_COLUMNS)
        await administrator.execute(f"GRANT INSERT ({rest}) ON outbox TO {name}")
        dsn = make_url(shop.dsn).set(username=name, password="legacy").render_as_string(hide_password=False)

        async def check(rows: Sequence[Row]) -> None:
            other = await asyncpg.connect(dsn)
            outcomes.update(await relay_hostile(shop, other, rows))
            await other.close()

        @settings(
            max_examples=15,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        )
        @given(st.lists(hostile_rows, min_size=1, max_size=10))
        def fuzz(rows: list[Row]) -> None:
            anyio.run(check, rows)

        await anyio.to_thread.run_sync(fuzz)
    assert all(outcomes[each] > 0 for each in ("refused", "published", "dead")), outcomes


async def test_the_same_on_sqlite(tmp_path: Path) -> None:
    """The page's trigger publishes both orders."""
    path, tables = tmp_path / "outbox.db", OutboxTables()
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        install_schema(connection, tables.versions, [tables.part])
    engine.dispose()
    with closing(sqlite3.connect(path)) as writer:
        writer.executescript(dict(BLOCKS)["sqlite"])
        writer.commit()
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    async with running(Relay(SQLiteOutboxStore(path, tables=tables), broker, settings=FAST, observer=watch)):
        await watch.until(lambda: watch.settled == 2)
    events = await received(broker, 2)
    for key, order, item in (("order-17", 17, "blue-train"), ("order-18", 18, "kind-of-blue")):
        assert told(events, key) == [("orders.order-placed.v1", {"order": order, "item": item})]
