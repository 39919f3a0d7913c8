"""`sagapost dead` from the command line; what it does to rows is tested in tests/outbox/test_dead_letters.py."""

from __future__ import annotations

import json
import socket
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sagapost.core.errors import ConfigurationError, NotFoundError
from sagapost.ops.commands import app
from sagapost.outbox.tables import ENVELOPE_COLUMNS

runner = CliRunner()


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database with one dead letter, and the settings that name it."""
    path = tmp_path / "shop.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAGAPOST_DATABASE_URL", f"sqlite:///{path}")
    assert runner.invoke(app, ["db", "upgrade"]).exit_code == 0
    with sqlite3.connect(path) as connection:
        values = {
            "position": 7,
            **dict.fromkeys(ENVELOPE_COLUMNS),
            "event_id": "0" * 32,
            "topic": "a.b",
            "type": "a.b",
            "source": "tests",
            "time": "2026-11-23 08:00:00.000000",
            "partitionkey": "k",
            "data": b"{}",
            "attempts": 20,
            "last_error": "no queue is bound",
            "blocks_key": 1,
        }
        columns = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" for _ in values)
        connection.execute(f"INSERT INTO outbox_dead ({columns}) VALUES ({marks})", list(values.values()))
    connection.close()
    return path


def test_list_dry_run_and_redrive(database: Path) -> None:
    """What is listed is what a dry run names and what a redrive moves."""
    listed = json.loads(runner.invoke(app, ["dead", "list", "--json"]).stdout)
    assert [(letter["position"], letter["reason"]) for letter in listed] == [(7, "no queue is bound")]
    tried = runner.invoke(app, ["dead", "redrive", "--where", "key=k", "--reason", "bound", "--dry-run"])
    assert "1 would be redriven" in tried.stdout
    assert json.loads(runner.invoke(app, ["dead", "list", "--json"]).stdout) == listed
    assert json.loads(runner.invoke(app, ["audit", "list", "--json"]).stdout) == []
    assert "1 redriven" in runner.invoke(app, ["dead", "redrive", "7", "--reason", "bound", "--actor", "ada"]).stdout
    assert json.loads(runner.invoke(app, ["dead", "list", "--json"]).stdout) == []
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT position, attempts FROM outbox").fetchall() == [(7, 0)]
    connection.close()


def test_discard_needs_to_be_told_what(database: Path) -> None:
    """Nothing is deleted by a command that names nothing."""
    result = runner.invoke(app, ["dead", "discard", "--reason", "x"])
    assert isinstance(result.exception, ConfigurationError)
    assert isinstance(runner.invoke(app, ["dead", "discard", "8", "--reason", "x"]).exception, NotFoundError)
    assert "1 discarded" in runner.invoke(app, ["dead", "discard", "--all", "--reason", "x"]).stdout


def test_a_decision_is_signed_and_kept_with_what_it_removed(database: Path) -> None:
    """Who, where, why and what about; the payload only where it is asked for."""
    assert runner.invoke(app, ["dead", "discard", "--all", "--reason", "a test order"]).exit_code == 0
    (entry,) = json.loads(runner.invoke(app, ["audit", "list", "--json"]).stdout)
    assert (entry["desk"], entry["action"], entry["subject"], entry["type"]) == ("dead", "discard", "7", "a.b")
    assert entry["event_id"] == "00000000-0000-0000-0000-000000000000"
    assert entry["reason"] == "a test order"
    name, _, host = entry["actor"].partition("@")
    assert name
    assert host == socket.gethostname()
    shown = json.loads(runner.invoke(app, ["audit", "show", str(entry["id"])]).stdout)
    assert (shown["original"]["partitionkey"], shown["bytes"]) == ("k", 2)
    assert "data" not in shown
    assert json.loads(runner.invoke(app, ["audit", "show", str(entry["id"]), "--data"]).stdout)["data"] == "{}"
    assert "a test order" in runner.invoke(app, ["audit", "list"]).stdout
    assert json.loads(runner.invoke(app, ["audit", "list", "--json", "--before", str(entry["id"])]).stdout) == []
    assert isinstance(runner.invoke(app, ["audit", "show", "99"]).exception, NotFoundError)


def test_no_audit_no_decision(database: Path) -> None:
    """The row is written in the transaction of the decision: where it cannot be, nothing is decided."""
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON sagapost_audit BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    connection.close()
    assert runner.invoke(app, ["dead", "discard", "--all", "--reason", "x"]).exit_code != 0
    assert len(json.loads(runner.invoke(app, ["dead", "list", "--json"]).stdout)) == 1
