"""`sagapost relay` and `sagapost consume` as processes: start, work, signals, exit codes. On SQLite and memory."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.ops.processes import Running, run, started
from tests.ops.services import place_orders, prepare, write_service


def begun(process: Running, *numbers: int) -> None:
    """Wait until the handler has begun with these orders."""
    for number in numbers:
        process.wait_for(f"order {number} begun")


# --- work ---


def test_events_flow_and_every_line_of_a_handler_carries_the_ids(tmp_path: Path) -> None:
    """Committed before the start: relayed, handled once, gone from the outbox; SIGTERM then ends with code 0."""
    settings = prepare(tmp_path)
    path = write_service(tmp_path, "logs")
    ids = place_orders(settings, 1, 2, 3)
    with started("consume", path, "--with-relay", cwd=tmp_path, **settings) as process:
        lines = [process.wait_for(lambda line: line["message"].endswith("handled")) for _ in ids]
        process.send(signal.SIGTERM)
        assert process.end() == 0, process.text
    assert sorted(line["event_id"] for line in lines) == sorted(ids)
    # The events belong to no saga, so each starts one and is its own cause.
    assert all(line["correlationid"] == line["event_id"] for line in lines)
    assert all(line["level"] == "INFO" for line in lines)
    assert sum("handled" in line["message"] for line in process.lines) == len(ids)
    assert json.loads(run("status", "--json", cwd=tmp_path, **settings).stdout)["outbox"]["pending"] == 0


def test_several_inboxes_run_in_one_process(tmp_path: Path) -> None:
    """Each has its own queue, so each handles every event."""
    settings = prepare(tmp_path)
    path = write_service(tmp_path, "logs")
    other = (tmp_path / "shop.py").read_text().replace('Inbox("warehouse"', 'Inbox("loyalty"')
    (tmp_path / "points.py").write_text(other)
    place_orders(settings, 1)
    with started("consume", path, "points:inbox", "--with-relay", cwd=tmp_path, **settings) as process:
        process.wait_for("started: inbox warehouse, inbox loyalty, relay")
        process.wait_for("order 1 handled")
        process.wait_for("order 1 handled")
        process.send(signal.SIGTERM)
        assert process.end() == 0, process.text


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_handlers_finish(tmp_path: Path, number: signal.Signals) -> None:
    """A handler in the middle of its work commits; then the process ends with code 0."""
    settings = prepare(tmp_path)
    path = write_service(tmp_path, "waits")
    place_orders(settings, 1)
    with started("consume", path, "--with-relay", cwd=tmp_path, **settings) as process:
        begun(process, 1)
        process.send(number)
        process.wait_for("draining, for at most 20 s")
        (tmp_path / "go").touch()
        process.wait_for("order 1 handled")
        assert process.end() == 0, process.text
    assert "nothing was left in flight" in process.text


@pytest.mark.parametrize("kind", ["waits", "blocks"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_the_process_at_once(
    tmp_path: Path, kind: str, number: signal.Signals, code: int
) -> None:
    """Whatever the handler does: await something for ever, or block its thread, which nobody can interrupt."""
    settings = prepare(tmp_path)
    path = write_service(tmp_path, kind)
    place_orders(settings, 1)
    with started("consume", path, "--with-relay", cwd=tmp_path, **settings) as process:
        begun(process, 1)
        process.send(signal.SIGTERM)
        process.wait_for("draining")
        process.send(number)
        assert process.end() == code, process.text


def test_the_drain_budget_is_kept(tmp_path: Path) -> None:
    """What does not finish within the budget is given back; the exit code says so."""
    settings = prepare(tmp_path) | {"SAGAPOST_CONSUMER_DRAIN_TIMEOUT": "50ms", "SAGAPOST_RELAY_DRAIN_TIMEOUT": "50ms"}
    path = write_service(tmp_path, "waits")
    place_orders(settings, 1)
    with started("consume", path, "--with-relay", cwd=tmp_path, **settings) as process:
        begun(process, 1)
        process.send(signal.SIGTERM)
        assert process.end() == 6, process.text
    assert "order 1 handled" not in process.text


# --- what is wrong ---


def test_missing_settings_are_json_lines_with_code_2(tmp_path: Path) -> None:
    """One line for each, so that a collector shows what a terminal would."""
    ran = run("relay", cwd=tmp_path, SAGAPOST_RELAY_MAX_ATTEMPTS="0")
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert ran.returncode == 2
    assert {line["variable"] for line in lines} == {
        "SAGAPOST_DATABASE_URL",
        "SAGAPOST_BROKER_URL",
        "SAGAPOST_RELAY_MAX_ATTEMPTS",
    }
    assert all("Example: SAGAPOST_" in line["message"] for line in lines)
    assert all(line["level"] == "CRITICAL" for line in lines)


@pytest.mark.parametrize("command", [("relay",), ("consume", "shop:inbox")])
def test_a_memory_broker_with_nobody_to_hear_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    """A relay that publishes into its own process, or a consumer nobody can publish to, would wait for ever."""
    write_service(tmp_path, "logs")
    ran = run(*command, cwd=tmp_path, **prepare(tmp_path))
    assert ran.returncode == 2
    assert "lives in one process" in ran.stderr
    assert "--with-relay" in ran.stderr


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("shop", "write module:attribute"),
        (":inbox", "write module:attribute"),
        ("nowhere:inbox", "there is no module 'nowhere' in "),
        ("shop.deeper:inbox", "there is no module"),
        ("shop:inbos", "shop has no 'inbos'. Did you mean shop:inbox?"),
        ("shop:OrderPlaced", "is a builtins.type, not a Service or an Inbox. Did you mean shop:inbox?"),
        ("broken:inbox", "importing broken failed with ZeroDivisionError: division by zero"),
        ("needy:inbox", "needy imports 'not_installed_here', which is not installed"),
        ("empty:inbox", "There is no Service in empty."),
        ("silent:inbox", "has no handlers"),
    ],
)
def test_a_wrong_path_says_what_is_wrong_and_what_there_is(tmp_path: Path, path: str, words: str) -> None:
    """Exit code 2 and one line, for each way to get it wrong."""
    write_service(tmp_path, "logs")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "needy.py").write_text("import not_installed_here\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "silent.py").write_text("from sagapost.inbox.declared.inbox import Inbox\ninbox = Inbox('silent')\n")
    ran = run("consume", path, "--with-relay", cwd=tmp_path, **prepare(tmp_path))
    (line,) = ran.stderr.splitlines()
    assert ran.returncode == 2, ran.stderr
    assert words in json.loads(line)["message"]


def test_one_inbox_twice_is_refused(tmp_path: Path) -> None:
    """Two consumers of one name would take each other's events."""
    path = write_service(tmp_path, "logs")
    ran = run("consume", path, path, "--with-relay", cwd=tmp_path, **prepare(tmp_path))
    assert ran.returncode == 2
    assert "both are the service 'warehouse'" in ran.stderr


def test_a_relay_that_would_read_other_tables_is_refused(tmp_path: Path) -> None:
    """Inbox and relay of one process must agree on the tables, or what handlers publish stays unread."""
    path = write_service(tmp_path, "logs")
    ran = run("consume", path, "--with-relay", cwd=tmp_path, **prepare(tmp_path), SAGAPOST_TABLE_PREFIX="orders_")
    assert ran.returncode == 2
    assert "publishes into the table 'outbox', and the relay would read 'orders_outbox'" in ran.stderr


@pytest.mark.parametrize("options", [(), ("--fail-fast",)])
def test_missing_tables_end_with_code_4(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Waiting does not create them, so it does not wait."""
    path = write_service(tmp_path, "logs")
    settings = {"SAGAPOST_DATABASE_URL": f"sqlite:///{tmp_path / 'shop.db'}", "SAGAPOST_BROKER_URL": "memory://"}
    ran = run("consume", path, "--with-relay", *options, cwd=tmp_path, **settings)
    assert ran.returncode == 4
    assert "sagapost db upgrade" in ran.stderr


def test_human_lines_can_be_asked_for(tmp_path: Path) -> None:
    """`SAGAPOST_LOG_FORMAT=human` holds on a pipe too, also for what is wrong with the settings."""
    ran = run("relay", cwd=tmp_path, SAGAPOST_LOG_FORMAT="human")
    assert ran.returncode == 2
    assert "CRITICAL ops        SAGAPOST_DATABASE_URL is not set." in ran.stderr
