"""The commands that run once: what they write, and how they end."""

from __future__ import annotations

import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.ops.processes import environment, invoke, run_at_once
from tests.processes.command import SAGAPOST

PASSWORD = "hunter2-hunter2"
SECRET_URL = f"postgresql://app:{PASSWORD}@localhost:5432/orders"


def sqlite(folder: Path) -> str:
    """Return the URL of a database file in this folder."""
    return f"sqlite:///{folder / 'orders.db'}"


def change(folder: Path, statement: str) -> None:
    """Run a statement on the database file, as an operator or an older release might have."""
    engine = create_engine(sqlite(folder))
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


# --- config ---


def test_config_shows_value_and_source_of_every_setting(tmp_path: Path) -> None:
    """Tab-separated where a program reads; the three sources are told apart, and the password is not shown."""
    (tmp_path / ".env").write_text("SAGAPOST_RELAY_BATCH_ROWS=77\nSAGAPOST_EXCHANGE=ignored\n")
    ran = invoke("config", cwd=tmp_path, SAGAPOST_DATABASE_URL=SECRET_URL, SAGAPOST_EXCHANGE="orders")
    shown = {line.split("\t")[0]: line.split("\t")[1:] for line in ran.stdout.splitlines()}
    assert ran.returncode == 0
    assert shown["SAGAPOST_DATABASE_URL"] == ["postgresql://app:***@localhost:5432/orders", "environment"]
    assert shown["SAGAPOST_EXCHANGE"] == ["orders", "environment"]
    assert shown["SAGAPOST_RELAY_BATCH_ROWS"] == ["77", ".env"]
    assert shown["SAGAPOST_RELAY_POLL_INTERVAL"] == ["1s", "default"]
    assert PASSWORD not in ran.stdout + ran.stderr


def test_config_as_json(tmp_path: Path) -> None:
    """For tools: a list of objects with variable, value and source."""
    ran = invoke("config", "--json", cwd=tmp_path, SAGAPOST_BROKER_URL=f"amqp://app:{PASSWORD}@localhost/")
    entries = {entry["variable"]: entry for entry in json.loads(ran.stdout)}
    assert entries["SAGAPOST_BROKER_URL"] == {
        "variable": "SAGAPOST_BROKER_URL",
        "value": "amqp://app:***@localhost/",
        "source": "environment",
    }
    assert PASSWORD not in ran.stdout


def test_config_on_a_terminal_is_a_table(tmp_path: Path) -> None:
    """With a heading, and still without the password."""
    parent, child = pty.openpty()
    try:
        with subprocess.Popen(
            [SAGAPOST, "config"],
            cwd=tmp_path,
            env=environment({"SAGAPOST_DATABASE_URL": SECRET_URL, "COLUMNS": "200", "TERM": "xterm"}),
            stdout=child,
            stderr=subprocess.PIPE,
        ) as process:
            seen = b""
            while b"START_RETRY_CAP" not in seen:
                seen += os.read(parent, 65_536)
            assert process.wait(30) == 0
    finally:
        os.close(child)
        os.close(parent)
    first, *rest = re.sub(r"\x1b\[[0-9;]*m", "", seen.decode()).splitlines()
    assert first.split() == ["setting", "value", "source"]
    assert any("postgresql://app:***@localhost:5432/orders" in line for line in rest)
    assert PASSWORD not in seen.decode()


def test_wrong_settings_end_with_code_2_and_all_of_them(tmp_path: Path) -> None:
    """`config` is how one looks for the mistake, so it lists them too; no traceback, no password."""
    ran = invoke(
        "config",
        cwd=tmp_path,
        SAGAPOST_DATABASE_URL=f"mysql://app:{PASSWORD}@localhost/orders",
        SAGAPOST_RELAY_BATCH_ROWS="0",
        SAGAPOST_LOG_LEVEL="loud",
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("sagapost: 3 settings are wrong:")
    for words in ("SAGAPOST_DATABASE_URL=mysql://app:***@", "SAGAPOST_RELAY_BATCH_ROWS=0", "SAGAPOST_LOG_LEVEL=loud"):
        assert words in ran.stderr
    assert ran.stderr.count("Example: SAGAPOST_") == 3
    assert "Traceback" not in ran.stderr
    assert PASSWORD not in ran.stderr


def test_a_misspelt_variable_is_pointed_out(tmp_path: Path) -> None:
    """`config` warns of it on standard error and still shows the rest."""
    ran = invoke("config", cwd=tmp_path, SAGAPOST_RELAY_BATCH_ROW="7")
    assert ran.returncode == 0
    assert "Did you mean SAGAPOST_RELAY_BATCH_ROWS?" in ran.stderr


# --- db ---


def test_upgrade_installs_and_a_second_one_finds_nothing_to_do(tmp_path: Path) -> None:
    """It may run at every start; `check` agrees with it."""
    settings = {"SAGAPOST_DATABASE_URL": sqlite(tmp_path)}
    first = invoke("db", "upgrade", "--json", cwd=tmp_path, **settings)
    second = invoke("db", "upgrade", "--json", cwd=tmp_path, **settings)
    checked = invoke("db", "check", cwd=tmp_path, **settings)
    assert json.loads(first.stdout)["changed"] == ["audit", "outbox", "inbox", "sagas"]
    assert json.loads(second.stdout)["changed"] == []
    assert (first.returncode, second.returncode, checked.returncode) == (0, 0, 0)
    assert "as this release needs it (audit 3, outbox 3, inbox 3, sagas 3)" in checked.stdout


def test_upgrades_at_the_same_time_take_turns(tmp_path: Path) -> None:
    """Replicas that start together all succeed, and each part is installed by exactly one of them."""
    url = sqlite(tmp_path)
    replicas = run_at_once("db", "upgrade", "--json", cwd=tmp_path, times=3, SAGAPOST_DATABASE_URL=url)
    assert [replica.returncode for replica in replicas] == [0, 0, 0]
    changed = [part for replica in replicas for part in json.loads(replica.stdout)["changed"]]
    assert sorted(changed) == ["audit", "inbox", "outbox", "sagas"]


@pytest.mark.parametrize("command", [("db", "check"), ("status",)])
def test_a_database_without_tables_ends_with_code_4(tmp_path: Path, command: tuple[str, ...]) -> None:
    """One sentence that names the database and the command to run; nothing is created by looking."""
    ran = invoke(*command, cwd=tmp_path, SAGAPOST_DATABASE_URL=sqlite(tmp_path))
    assert ran.returncode == 4
    assert "has no sagapost tables" in ran.stderr
    assert "sagapost db upgrade" in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "remedy"), [(0, "Run `sagapost db upgrade`"), (99, "Upgrade the sagapost package on this host")]
)
def test_another_schema_version_ends_with_code_4(tmp_path: Path, version: int, remedy: str) -> None:
    """Older or newer: the error says which was found, which is needed, and what to do."""
    settings = {"SAGAPOST_DATABASE_URL": sqlite(tmp_path)}
    invoke("db", "upgrade", cwd=tmp_path, **settings)
    change(tmp_path, f"UPDATE sagapost_schema SET version = {version} WHERE part = 'outbox'")
    for command in (("db", "check"), ("status",)):
        ran = invoke(*command, cwd=tmp_path, **settings)
        assert ran.returncode == 4
        assert f"has sagapost schema version {version}, this release needs 3. {remedy}" in ran.stderr


def test_a_newer_database_is_not_downgraded(tmp_path: Path) -> None:
    """An old release's init container must not damage what a new one has made."""
    settings = {"SAGAPOST_DATABASE_URL": sqlite(tmp_path)}
    invoke("db", "upgrade", cwd=tmp_path, **settings)
    change(tmp_path, "UPDATE sagapost_schema SET version = 99 WHERE part = 'inbox'")
    assert invoke("db", "upgrade", cwd=tmp_path, **settings).returncode == 4


def test_schema_and_prefix_are_used(tmp_path: Path) -> None:
    """Two services can share a database under different prefixes."""
    settings = {"SAGAPOST_DATABASE_URL": sqlite(tmp_path), "SAGAPOST_TABLE_PREFIX": "orders_"}
    assert invoke("db", "upgrade", cwd=tmp_path, **settings).returncode == 0
    assert invoke("status", cwd=tmp_path, **settings).returncode == 0
    assert invoke("status", cwd=tmp_path, SAGAPOST_DATABASE_URL=sqlite(tmp_path)).returncode == 4


def test_the_written_statements_make_what_upgrade_makes(tmp_path: Path) -> None:
    """Run by hand, or in a migration of one's own, they pass the check."""
    settings = {"SAGAPOST_DATABASE_URL": sqlite(tmp_path)}
    script = invoke("db", "sql", cwd=tmp_path, **settings).stdout
    engine = create_engine(settings["SAGAPOST_DATABASE_URL"])
    with engine.begin() as connection:
        for statement in script.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()
    checked = invoke("db", "check", cwd=tmp_path, **settings)
    assert checked.returncode == 0, checked.stderr


def test_statements_lead_an_older_database_to_this_release(tmp_path: Path) -> None:
    """`db sql --from`: also what did not exist in that version is created and recorded, so that `db check` passes."""
    settings = {"SAGAPOST_DATABASE_URL": sqlite(tmp_path)}
    script = invoke("db", "sql", "--from", "1", cwd=tmp_path, **settings).stdout
    with sqlite3.connect(tmp_path / "orders.db") as connection:
        connection.executescript((Path(__file__).parents[1] / "upgrade" / "version-1.sqlite.sql").read_text())
        connection.execute("DELETE FROM sagapost_schema WHERE part = 'tracker'")
        connection.executescript(script)
        recorded = dict(connection.execute("SELECT part, version FROM sagapost_schema"))
    connection.close()
    ran = invoke("db", "check", "--json", cwd=tmp_path, **settings)
    assert ran.returncode == 0, ran.stderr
    assert recorded == json.loads(ran.stdout)["versions"]
    assert recorded["audit"] == 3
    assert invoke("db", "sql", "--from", "3", cwd=tmp_path, **settings).stdout == ""


def test_statements_for_postgresql_need_no_server(tmp_path: Path) -> None:
    """The dialect is enough; schema, trigger and version rows are there."""
    script = invoke("db", "sql", "--dialect", "postgresql", cwd=tmp_path, SAGAPOST_DATABASE_SCHEMA="messaging").stdout
    assert script.startswith("CREATE SCHEMA IF NOT EXISTS messaging;")
    for words in ("CREATE TABLE messaging.outbox (", "CREATE TRIGGER", "VALUES ('inbox', 3)"):
        assert words in script


def test_an_unknown_dialect_is_a_usage_error(tmp_path: Path) -> None:
    """Exit code 2, like every wrong argument."""
    ran = invoke("db", "sql", "--dialect", "oracle", cwd=tmp_path)
    assert ran.returncode == 2
    assert "no database is called 'oracle'. There are adapters for postgres" in ran.stderr


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Exit code 3: the path leads to something, which says no."""
    (tmp_path / "orders.db").write_text("this is a shopping list, and long enough to be looked at by SQLite" * 20)
    ran = invoke("db", "upgrade", cwd=tmp_path, SAGAPOST_DATABASE_URL=sqlite(tmp_path))
    assert ran.returncode == 3
    assert "check that the path names a SQLite database" in ran.stderr


def test_a_database_that_is_not_there_ends_a_single_command_with_code_5(tmp_path: Path) -> None:
    """Commands that run once do not wait: nothing listens on port 1."""
    ran = invoke("db", "check", cwd=tmp_path, SAGAPOST_DATABASE_URL=f"postgresql://app:{PASSWORD}@127.0.0.1:1/orders")
    assert ran.returncode == 5, ran.stderr
    assert "The database at 127.0.0.1:1/orders cannot be reached" in ran.stderr
    assert PASSWORD not in ran.stderr


# --- status ---


def test_status_counts_what_waits(tmp_path: Path) -> None:
    """Pending, oldest, held, dead and scheduled, as text and as JSON."""
    settings = {"SAGAPOST_DATABASE_URL": sqlite(tmp_path)}
    invoke("db", "upgrade", cwd=tmp_path, **settings)
    change(
        tmp_path,
        "INSERT INTO outbox (xid, event_id, key_hash, topic, type, source, time, data) "
        f"VALUES (0, '{'0' * 31}1', 1, 't', 't', 'urn:x', '2020-01-01 00:00:00.000000', x'7b7d')",
    )
    found = json.loads(invoke("status", "--json", cwd=tmp_path, **settings).stdout)
    outbox = found["outbox"]
    assert outbox["oldest_seconds"] > 86_400
    assert [outbox[each] for each in ("pending", "held", "dead", "scheduled", "overdue", "blocked")] == [
        1,
        0,
        0,
        0,
        0,
        0,
    ]
    assert (found["inboxes"], found["sagas"]) == ({}, {})
    assert invoke("status", cwd=tmp_path, **settings).stdout.startswith("outbox\tpending\t1\t")


def test_pitfall_38_status_counts_stuck_sagas_and_open_tasks(tmp_path: Path) -> None:
    """By service, those that are not over, those that are stuck, and the decisions that are asked for."""
    settings = {"SAGAPOST_DATABASE_URL": sqlite(tmp_path)}
    invoke("db", "upgrade", cwd=tmp_path, **settings)
    now = "'2026-11-27 08:00:00.000000'"
    change(
        tmp_path,
        "INSERT INTO saga_states (service, saga, state, rollback_started_at, due_at) VALUES "
        f"('pay', '1', 'stuck', {now}, NULL), ('pay', '2', 'stuck', {now}, NULL), "
        "('pay', '3', 'running', NULL, NULL), "
        f"('stock', '1', 'rolling_back', {now}, {now}), ('mail', '1', 'running', NULL, NULL)",
    )
    change(
        tmp_path,
        "INSERT INTO saga_tasks (service, saga, name, title, details, outcomes, source, announce, of_rollback, state) "
        "VALUES ('pay', '3', 'n', 't', '{}', '{}', 'urn:x', 0, 0, 'open')",
    )
    found = json.loads(invoke("status", "--json", cwd=tmp_path, **settings).stdout)["sagas"]
    assert {name: [each["rolling_back"], each["stuck"], each["tasks"]] for name, each in found.items()} == {
        "pay": [0, 2, 1],
        "stock": [1, 0, 0],
    }
    assert "sagas of pay\tstuck\t2\t" in invoke("status", cwd=tmp_path, **settings).stdout


def test_status_of_a_service_that_only_publishes(tmp_path: Path) -> None:
    """Without the inbox tables there is no inbox to show, and nothing to complain about."""
    settings = {"SAGAPOST_DATABASE_URL": sqlite(tmp_path)}
    invoke("db", "upgrade", cwd=tmp_path, **settings)
    change(tmp_path, "DELETE FROM sagapost_schema WHERE part = 'inbox'")
    assert json.loads(invoke("status", "--json", cwd=tmp_path, **settings).stdout)["inboxes"] == {}


# --- the rest ---


@pytest.mark.parametrize("arguments", [("--help",), ("relay", "--help"), ("consume", "--help"), ("db", "--help")])
def test_help(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Works without any setting."""
    ran = invoke(*arguments, cwd=tmp_path)
    assert ran.returncode == 0
    assert "Usage: " in ran.stdout


def test_an_unknown_command_is_a_usage_error(tmp_path: Path) -> None:
    """Exit code 2."""
    assert invoke("relayy", cwd=tmp_path).returncode == 2


def test_ctrl_c_leaves_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 130, also while the program is still being imported, and nothing on standard error."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sagapost.ops.commands.app", interrupted)
    ran = invoke("relay", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (130, "")


def test_an_unexpected_failure_ends_with_code_1_and_a_masked_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours is shown whole, for the report, but for the password in it."""

    def broken() -> None:
        raise RuntimeError(f"lost {SECRET_URL}")

    monkeypatch.setattr("sagapost.ops.commands.app", broken)
    ran = invoke("relay", cwd=tmp_path)
    assert ran.returncode == 1
    assert "RuntimeError: lost postgresql://app:***@localhost:5432/orders" in ran.stderr
    assert PASSWORD not in ran.stderr


def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    """Exit code 2 and the pip command, not a traceback; the module that is missing is named."""
    (tmp_path / ".env").write_text("SAGAPOST_LOG_LEVEL=DEBUG\n")
    program = (
        "import builtins; real = builtins.__import__\n"
        "def blind(name, *args, **kwargs):\n"
        "    if name.split('.')[0] == 'dotenv':\n"
        "        raise ModuleNotFoundError('hidden by the test', name='dotenv')\n"
        "    return real(name, *args, **kwargs)\n"
        "builtins.__import__ = blind\n"
        "from sagapost.ops.cli import main; main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, "config"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 2
    assert "needs the package 'dotenv'" in ran.stderr
    assert "pip install 'sagapost[cli]'" in ran.stderr
    assert "Traceback" not in ran.stderr
