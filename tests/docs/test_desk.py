"""The page of the desk: its commands run one after another on one database, and print what stands there."""

from __future__ import annotations

import re
import shlex
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sagapost.core.broker import Malformed
from sagapost.core.envelope import Event
from sagapost.inbox.kept.envelope import envelope_of
from tests.docs.test_readme import ROOT
from tests.ops.processes import invoke

PAGE = (ROOT / "docs" / "desk.md").read_text()
COMMANDS: list[tuple[str, str]] = [
    command
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for command in re.findall(r"^\$ sagapost (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]

_NOON = "2026-11-23 12:00:00.000000"
_PLACED, _PAID = "shop.order-placed.v1", "shop.order-paid.v1"


def an_id(number: int) -> str:
    """Return an id that a reader can tell from others."""
    return f"00000000-0000-7000-8000-{number:012}"


def _plant(path: Path) -> None:
    """Put there what the page says is there."""
    envelope = "event_id, type, source, time, partitionkey, correlationid, data"

    def event(number: int, type_: str, key: str) -> tuple[object, ...]:
        return (
            an_id(number).replace("-", ""),
            type_,
            "urn:shop",
            _NOON,
            key,
            f"saga-{key.removeprefix('order-')}",
            b"{}",
        )

    rejected = Event(
        id=an_id(1), source="urn:shop", type=_PLACED, time=datetime(2026, 11, 23, 12, tzinfo=UTC), data=b"{}"
    )
    nameless = Malformed("it has neither CloudEvents attributes nor a message id", b"{}", {})
    with sqlite3.connect(path) as connection:
        connection.execute(
            f"INSERT INTO outbox_dead (position, {envelope}, attempts, last_error, died_at) "
            "VALUES (4, ?, ?, ?, ?, ?, ?, ?, 20, 'the body is larger than the broker takes', ?)",
            (*event(4, _PLACED, "order-9"), _NOON),
        )
        connection.execute(
            f"INSERT INTO outbox (position, {envelope}, attempts, next_attempt_at, last_error) "
            "VALUES (5, ?, ?, ?, ?, ?, ?, ?, 3, '2030-01-01 08:00:00.000000', 'no queue is bound')",
            event(5, _PLACED, "order-17"),
        )
        connection.execute(
            f"INSERT INTO outbox (position, {envelope}) VALUES (6, ?, ?, ?, ?, ?, ?, ?)", event(6, _PAID, "order-17")
        )
        connection.execute("INSERT INTO inbox_consumers (name) VALUES ('warehouse')")
        parked = (
            ("rejected", "no such article", rejected.id, rejected.source, _PLACED, envelope_of(rejected), 1),
            (
                "undecodable",
                f"The message is not an event: {nameless.reason}.",
                None,
                None,
                None,
                envelope_of(nameless),
                0,
            ),
        )
        connection.executemany(
            "INSERT INTO inbox_parked (consumer, key, state, reason, error, event_id, source, type, envelope, "
            "attempts, topic, data, parked_at) "
            "VALUES (1, randomblob(16), 'dead', ?, ?, ?, ?, ?, ?, ?, 't', x'7b7d', ?)",
            [(*row, _NOON) for row in parked],
        )
        connection.execute("INSERT INTO saga_states (service, saga, state) VALUES ('warehouse', 'saga-17', 'running')")
        connection.execute(
            "INSERT INTO saga_tasks "
            "(service, saga, name, title, details, outcomes, source, announce, of_rollback, state) VALUES "
            "('warehouse', 'saga-17', 'dispatch-by-hand', 'No courier for order 17', '{}', ?, 'urn:w', 0, 0, 'open')",
            ('{"close": {"do": "close"}}',),
        )
    connection.close()


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """The database of the page."""
    settings = {"SAGAPOST_DATABASE_URL": f"sqlite:///{tmp_path / 'shop.db'}"}
    assert invoke("db", "upgrade", cwd=tmp_path, **settings).returncode == 0
    _plant(tmp_path / "shop.db")
    return settings


def test_the_commands_print_what_the_page_shows(settings: dict[str, str], tmp_path: Path) -> None:
    """Each works, and prints every line that is shown, in that order."""
    assert len(COMMANDS) > 15
    for command, shown in COMMANDS:
        ran = invoke(*shlex.split(command), cwd=tmp_path, **settings)
        assert ran.returncode == 0, (command, ran.stderr)
        printed = " ".join(ran.stdout.split())
        lines = [
            ".*".join(re.escape(" ".join(part.split())) for part in line.split("…")) for line in shown.splitlines()
        ]
        assert re.search(".*".join(lines), printed), f"{command}\n{shown}\nis not in:\n{ran.stdout}"
