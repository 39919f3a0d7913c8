"""What the documents show is run, so that it cannot go stale.

A fenced Python block is run when an HTML comment before it names the program it belongs to:

    <!-- run: quickstart -->
    ```python
    ...
    ```

Blocks of one document under one name make one program, in order; it is the file ``quickstart.py`` in an empty folder,
run by itself. Or, if the document has a block ``<!-- shell: quickstart -->``, that script is run beside it instead;
what it leaves running in the background is asked to end (SIGTERM) once everything was printed.

What must be printed stands in a block after ``<!-- prints: quickstart -->``. All other Python blocks must at least
compile.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
PATIENCE = 60.0
"""Seconds a program of a document may take."""

BLOCK = re.compile(
    r"(?:^<!--\s*(?P<verb>run|shell|prints):\s*(?P<name>[\w-]+)\s*-->\s*\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```\s*$",
    re.MULTILINE | re.DOTALL,
)


class Program(NamedTuple):
    """A program put together from the blocks of one document."""

    document: Path
    name: str
    code: str
    shell: str | None
    prints: str | None


def blocks_of(document: Path) -> list[re.Match[str]]:
    """Return the fenced blocks of a document."""
    return list(BLOCK.finditer(document.read_text()))


def programs_of(document: Path) -> list[Program]:
    """Put the named blocks of a document together."""
    code: dict[str, list[str]] = {}
    shell: dict[str, str] = {}
    prints: dict[str, str] = {}
    for block in blocks_of(document):
        text = textwrap.dedent(block["code"])
        if block["verb"] == "run":
            code.setdefault(block["name"], []).append(text)
        elif block["verb"] == "shell":
            shell[block["name"]] = text
        elif block["verb"] == "prints":
            prints[block["name"]] = text
    assert set(prints) | set(shell) <= set(code), f"{document.name}: output or script of a program that is not there"
    return [
        Program(document, name, "\n".join(parts), shell.get(name), prints.get(name)) for name, parts in code.items()
    ]


PROGRAMS = [program for document in DOCUMENTS for program in programs_of(document)]


def test_the_readme_has_a_quickstart() -> None:
    """The quickstart is among the programs that are run: a changed marker cannot switch the test off."""
    assert "quickstart" in {program.name for program in PROGRAMS if program.document.name == "README.md"}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: f"{program.document.name}: {program.name}")
def test_what_is_shown_runs(program: Program, tmp_path: Path) -> None:
    """A program of a document ends well in an empty folder, and prints what the document says."""
    file = tmp_path / f"{program.name.replace('-', '_')}.py"
    file.write_text(program.code)
    # The reader's shell has no settings of ours, and neither does this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}",
        "PYTHONWARNINGS": "error",
        "PYTHONUNBUFFERED": "1",
    }
    command = ["sh", "-euc", program.shell] if program.shell is not None else [sys.executable, file.name]
    with (tmp_path / "errors").open("w") as errors:
        printed, status = run(command, tmp_path, environment, errors.fileno(), wanted=program.prints)
    assert status == 0, (tmp_path / "errors").read_text()
    if program.prints is not None:
        assert printed.strip() == program.prints.strip(), (tmp_path / "errors").read_text()


def run(
    command: list[str], folder: Path, environment: dict[str, str], errors: int, *, wanted: str | None
) -> tuple[str, int]:
    """Run a command until it, and what it leaves in the background, has ended; return its output and its status.

    What is in the background is asked to end when as many lines were printed as are wanted.
    """
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
    ) as process:
        # The group is ours alone; it also holds what the script started.
        watchdog = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
        watchdog.start()
        try:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                if wanted is not None and len(lines) == len(wanted.strip().splitlines()):
                    break
            status = process.wait()
            end_group(process.pid)
            lines += process.stdout.readlines()
        finally:
            watchdog.cancel()
    return "".join(lines), status


def end_group(group: int) -> None:
    """Ask what is left of a process group to end."""
    try:
        os.killpg(group, signal.SIGTERM)
    except ProcessLookupError:
        # Nothing was left in the background.
        return


def test_the_other_blocks_compile() -> None:
    """A snippet that is not run is at least Python; `...` and top-level `await` are allowed."""
    broken: list[str] = []
    for document in DOCUMENTS:
        for block in blocks_of(document):
            if block["language"] not in ("python", "py"):
                continue
            try:
                compile(textwrap.dedent(block["code"]), document.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            except SyntaxError as error:
                broken.append(f"{document.name}: {error}")
    assert broken == []
