"""The command line itself: what it imports, its help, completion, hints, tables, and a reader who goes away."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from sagapost.ops.commands import COMMANDS
from sagapost.ops.commands.group import Group, Late
from tests.ops.processes import environment, invoke
from tests.ops.services import prepare
from tests.processes.command import SAGAPOST

SPY = """
import sys
from sagapost.ops.cli import main
try:
    main()
finally:
    print(*(name for name in sys.modules), sep="\\n", file=sys.stderr)
"""

ORM = {"sqlalchemy.orm", "sqlalchemy.ext.asyncio"}
DATABASE = {"sqlalchemy", "asyncpg", "aiosqlite"}
SETTINGS = {"pydantic", "pydantic_settings", "dotenv", "sagapost.ops.settings"}
BROKER = {"aio_pika", "aiormq", "sagapost.adapters.rabbitmq"}
CONSUMING = {
    "sagapost.inbox.running.consumer",
    "sagapost.inbox.declared.inbox",
    "sagapost.inbox.declared.observations",
}
SAGAS = {"sagapost.sagas.sagas", "sagapost.sagas.tracker.tracker", "sagapost.sagas.choreography.linting"}
RELAY = {"sagapost.outbox.relay.relay"}
RUNNING = {"sagapost.ops.daemon", "uvloop"}


def leaves(members: tuple[Late | Group, ...] = COMMANDS, *path: str) -> Iterator[tuple[tuple[str, ...], Late]]:
    """Return every command with the words that call it."""
    for member in members:
        if isinstance(member, Group):
            yield from leaves(tuple(member.members), *path, member.name)
        else:
            yield (*path, member.name), member


def imported_by(*arguments: str, cwd: Path, **settings: str) -> set[str]:
    """Run a command in an interpreter of its own; return the modules it had at its end."""
    ran = subprocess.run(
        [sys.executable, "-c", SPY, *arguments],
        cwd=cwd,
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(ran.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        (("--help",), {*DATABASE, *SETTINGS, *BROKER, *CONSUMING, *SAGAS, *RELAY, *RUNNING, "rich"}),
        (("saga", "--help"), {*DATABASE, "sagapost.ops.settings", *BROKER, *CONSUMING, *SAGAS, *RELAY, "rich"}),
        (("config",), {*DATABASE, "aiormq", "aio_pika", *SAGAS, *RELAY, *RUNNING, "pydantic_settings", "rich"}),
        (("status",), {"aiormq", "aio_pika", "pydantic_settings", *CONSUMING, *SAGAS, *RELAY, *RUNNING, "rich"}),
        (("saga", "lint", "--rules"), {"aiormq", "aio_pika", *CONSUMING, *RELAY, *RUNNING, "rich"}),
    ],
)
def test_a_command_imports_what_it_needs_and_no_more(
    tmp_path: Path, arguments: tuple[str, ...], without: set[str]
) -> None:
    """Start-up time is mostly imports; here is what each kind of command does without."""
    settings = prepare(tmp_path) if arguments == ("status",) else {}
    assert imported_by(*arguments, cwd=tmp_path, **settings) & without == set()


def test_a_relays_process_has_neither_inbox_nor_sagas_nor_the_orm(tmp_path: Path) -> None:
    """It fetches and publishes: what services declare, and SQLAlchemy's ORM, are none of its business."""
    settings = prepare(tmp_path) | {"SAGAPOST_BROKER_URL": "amqp://127.0.0.1:1/"}
    program = SPY.replace("main()\nfinally", "main()\nexcept SystemExit: pass\nfinally")
    ran = subprocess.run(
        [sys.executable, "-c", program, "relay", "--fail-fast"],
        cwd=tmp_path,
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    modules = set(ran.stderr.split())
    assert modules >= RELAY, ran.stderr
    assert modules & {*CONSUMING, *SAGAS, *ORM, "typer.rich_utils"} == set()


@pytest.mark.parametrize("called", list(leaves()), ids=lambda called: " ".join(called[0]))
def test_every_command_of_the_list_is_there_and_has_help(called: tuple[tuple[str, ...], Late], tmp_path: Path) -> None:
    """The list names functions that exist; what it says of them fits into a line."""
    path, command = called
    module, _, attribute = command.home.partition(":")
    function = getattr(import_module(f"sagapost.ops.commands.{module}"), attribute)
    assert function.__doc__
    assert len(command.summary) <= 60
    ran = invoke(*path, "--help", cwd=tmp_path)
    assert ran.returncode == 0
    assert f"Usage: sagapost {' '.join(path)}" in ran.stdout


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    """`--version` writes it and stops; so does `python -m sagapost`, which is the same command."""
    own = f"sagapost {version('sagapost')}\n"
    assert invoke("--version", cwd=tmp_path).stdout == own
    module = [sys.executable, "-m", "sagapost", "--version"]
    ran = subprocess.run(module, cwd=tmp_path, env=environment({}), capture_output=True, text=True, check=True)
    assert ran.stdout == own


@pytest.mark.parametrize(
    ("words", "number", "offered"),
    [
        ("sagapost st", 1, {"status"}),
        ("sagapost saga li", 2, {"list", "lint"}),
        ("sagapost dead list --li", 3, {"--limit"}),
    ],
)
def test_the_shell_completes_commands_and_options(tmp_path: Path, words: str, number: int, offered: set[str]) -> None:
    """As bash asks for it, after `sagapost --install-completion`."""
    asked = {"_SAGAPOST_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    program = "import sys; sys.argv[0] = 'sagapost'; from sagapost.ops.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment({}) | asked,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(ran.stdout.split()) == offered


@pytest.mark.parametrize(
    ("arguments", "meant"), [(("staus",), "status"), (("saga", "rolback"), "rollback"), (("parkt", "list"), "parked")]
)
def test_a_misspelt_command_names_the_nearest(tmp_path: Path, arguments: tuple[str, ...], meant: str) -> None:
    """Exit code 2, like every wrong argument."""
    ran = invoke(*arguments, cwd=tmp_path)
    assert ran.returncode == 2
    assert f"Did you mean '{meant}'" in ran.stderr


# --- misspelt variables ---

ARGUMENTS = {
    "parked list": ["warehouse"],
    "parked show": ["warehouse", "1"],
    "parked redrive": ["warehouse", "--reason", "x", "--all"],
    "parked discard": ["warehouse", "--reason", "x", "--all"],
    "parked edit": ["warehouse", "1", "--reason", "x", "--set", "a=b"],
    "events show": ["1"],
    "events trace": ["1"],
    "dead show": ["7"],
    "dead redrive": ["--reason", "x", "--all"],
    "dead discard": ["--reason", "x", "--all"],
    "audit show": ["1"],
    "saga show": ["4711"],
    "saga tree": ["4711"],
    "saga watch": ["4711"],
    "saga rollback": ["4711", "--reason", "x"],
    "saga retry": ["4711", "--reason", "x"],
    "saga check": ["nowhere:inbox"],
    "saga manifest": ["nowhere:inbox"],
    "saga map": ["nowhere.json"],
    "saga lint": ["--rules"],
    "tasks show": ["1"],
    "tasks resolve": ["1", "--outcome", "done", "--reason", "x"],
    "consume": ["nowhere:inbox"],
    "declare": ["nowhere:inbox"],
}


@pytest.mark.parametrize("path", [path for path, _ in leaves()], ids=" ".join)
def test_every_command_points_out_a_misspelt_variable(tmp_path: Path, path: tuple[str, ...]) -> None:
    """Whether or not the command needs settings, and whatever else is wrong: the variable may be why."""
    arguments = ARGUMENTS.get(" ".join(path), [])
    ran = invoke(*path, *arguments, cwd=tmp_path, SAGAPOST_DATABSE_URL="sqlite:///x.db")
    assert "SAGAPOST_DATABSE_URL is no setting" in ran.stderr
    assert "Did you mean SAGAPOST_DATABASE_URL?" in ran.stderr
    assert "Traceback" not in ran.stderr


# --- output ---


def test_a_reader_that_goes_away_is_no_failure(tmp_path: Path) -> None:
    """`| head` closes the pipe: the command ends quietly, with nothing on standard error."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [SAGAPOST, "config", "--json"]
    variables = environment({})
    with subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0


class Terminal(io.StringIO):
    """Standard output as `write_table` sees a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def shown(monkeypatch: pytest.MonkeyPatch, *arguments: str, cwd: Path, columns: int, **settings: str) -> str:
    """Run a command on a terminal of so many columns; return what it shows there."""
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr("tests.ops.processes.io.StringIO", lambda: terminal)
        assert invoke(*arguments, cwd=cwd, COLUMNS=str(columns), **settings).returncode == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())


def test_no_terminal_is_too_narrow_for_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and ids are whole on any terminal and in any pipe; only sentences are broken into lines."""
    settings = prepare(tmp_path)
    names = [entry["variable"] for entry in json.loads(invoke("config", "--json", cwd=tmp_path).stdout)]
    for columns in (200, 100, 60, 20):
        text = shown(monkeypatch, "config", cwd=tmp_path, columns=columns, **settings)
        assert all(re.search(rf"\b{name}\b", text) for name in names), columns
        # A table while it fits, and else a block for each row, whose long lines the terminal breaks.
        assert text.lstrip().startswith("setting  SAGAPOST_DATABASE_URL\n") == (columns < 80), columns
        assert max(map(len, text.splitlines())) <= columns or columns < 80
    piped = invoke("config", cwd=tmp_path, **settings).stdout
    assert [line.split("\t")[0] for line in piped.splitlines()] == names
    assert f"\tsqlite:///{tmp_path}/shop.db\t" in piped
