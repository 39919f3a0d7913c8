"""The page on call: each fault is planted in a real database, and the commands print what stands there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from tests.docs.test_readme import ROOT
from tests.ops.processes import invoke
from tests.servers.databases import PostgreSQLServer
from tests.servers.fixtures import PostgreSQLTemplate

PAGE = (ROOT / "docs" / "on-call.md").read_text()
BLOCK = re.compile(r"^<!-- on call: ([\w ]+) -->\n```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SYMPTOMS = BLOCK.findall(PAGE)

_EVENT = "INSERT INTO outbox (type, source, partitionkey, data, time, attempts, next_attempt_at, last_error) VALUES "
FAULTS = {
    "nothing is published": [
        _EVENT + f"('shop.made.v1', 'urn:x', '{key}', '', now() - interval '1 hour', 0, NULL, NULL)" for key in "ab"
    ],
    "a key is held": [
        _EVENT + "('shop.made.v1', 'urn:x', 'order-17', '', now(), 3, now(), "
        "'no queue is bound for topic ''shop.made.v1'' (312 NO_ROUTE)')",
        _EVENT + "('shop.made.v1', 'urn:x', 'order-17', '', now(), 0, NULL, NULL)",
    ],
    "a key is blocked": [
        "INSERT INTO outbox_dead (position, event_id, type, source, partitionkey, data, attempts, last_error, "
        "blocks_key) VALUES "
        "(0, gen_random_uuid(), 'shop.made.v1', 'urn:x', 'order-17', '', 20, 'the queue is full', 1)",
        _EVENT + "('shop.made.v1', 'urn:x', 'order-17', '', now(), 0, NULL, NULL)",
    ],
    "messages are dead": [
        "INSERT INTO inbox_consumers (name) VALUES ('warehouse')",
        "INSERT INTO inbox_parked (consumer, key, state, reason, error, topic, type, event_id, source, envelope, "
        "data) VALUES (1, 'k', 'dead', 'rejected', 'no such article', 't', 'shop.made.v1', 'e', 'urn:x', '{}', '')",
    ],
    "a saga is stuck": [
        "INSERT INTO saga_states (service, saga, state, rollback_started_at) "
        "VALUES ('pay', 'order-17', 'stuck', now())",
        "INSERT INTO saga_compensations (service, saga, name, arguments, state, attempts, last_error) VALUES "
        "('pay', 'order-17', 'refund', '{}', 'stuck', 10, 'card expired')",
    ],
    "the trigger is switched off": ["ALTER TABLE outbox DISABLE TRIGGER outbox_ring"],
    "positions begin again": [
        "INSERT INTO outbox (type, source, data) VALUES ('t', 'urn:x', '')",
        "ALTER SEQUENCE outbox_position_seq RESTART",
    ],
}


def execute(url: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""

    async def work() -> None:
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)
        await engine.dispose()

    anyio.run(work)


@pytest.fixture
def url(postgresql: PostgreSQLServer, postgresql_template: PostgreSQLTemplate) -> Iterator[str]:
    """A database with all tables."""

    def build(url: str) -> None:
        assert invoke("db", "upgrade", cwd=Path.cwd(), SAGAPOST_DATABASE_URL=url).returncode == 0

    with postgresql.fresh_database(postgresql_template("on-call", build)) as name:
        url = postgresql.url(name)
        well = ("sagapost.doorbell = on", "synchronous_commit = on")
        execute(url, *(f'ALTER DATABASE "{name}" SET {setting}' for setting in well))
        yield url


def test_every_symptom_has_a_fault_and_the_other_way_round() -> None:
    """A block that is renamed cannot switch its test off."""
    assert [name for name, _ in SYMPTOMS] == list(FAULTS)


@pytest.mark.parametrize(("name", "block"), SYMPTOMS, ids=[name for name, _ in SYMPTOMS])
def test_commands_print_what_the_page_shows(url: str, tmp_path: Path, name: str, block: str) -> None:
    """Line by line, whatever else they print; at most three commands, and each works."""
    execute(url, *FAULTS[name])
    settings = {"SAGAPOST_DATABASE_URL": url}
    if name == "nothing is published":
        settings["SAGAPOST_BROKER_URL"] = "amqp://guest:guest@127.0.0.1:1/"
    commands = re.findall(r"^\$ sagapost (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    assert 1 <= len(commands) <= 3
    for command, shown in commands:
        ran = invoke(*shlex.split(command), cwd=tmp_path, **settings)
        assert ran.returncode in (0, 9), ran.stderr
        printed = [" ".join(line.split()) for line in ran.stdout.splitlines()]
        for line in shown.splitlines():
            wanted = re.compile(".*".join(re.escape(" ".join(part.split())) for part in line.split("…")))
            assert any(wanted.search(each) for each in printed), f"{line!r} is not in:\n{ran.stdout}"
