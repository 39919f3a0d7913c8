"""What the documents show is run, so that it cannot go stale.

A fenced Python block is run when an HTML comment before it names the program it belongs to:

    <!-- run: quickstart -->
    ```python
    ...
    ```

Blocks of one document under one name make one program, in order; it is a file in an empty folder, run by itself. What
it must print stands in a block after ``<!-- prints: quickstart -->``. All other Python blocks must at least compile.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
PATIENCE = 60.0
"""Seconds a program of a document may take."""

BLOCK = re.compile(
    r"(?:^<!--\s*(?P<verb>run|prints):\s*(?P<name>[\w-]+)\s*-->\s*\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```\s*$",
    re.MULTILINE | re.DOTALL,
)


class Program(NamedTuple):
    """A program put together from the blocks of one document."""

    document: Path
    name: str
    code: str
    prints: str | None


def blocks_of(document: Path) -> list[re.Match[str]]:
    """Return the fenced blocks of a document."""
    return list(BLOCK.finditer(document.read_text()))


def programs_of(document: Path) -> list[Program]:
    """Put the named blocks of a document together."""
    code: dict[str, list[str]] = {}
    prints: dict[str, str] = {}
    for block in blocks_of(document):
        text = textwrap.dedent(block["code"])
        if block["verb"] == "run":
            code.setdefault(block["name"], []).append(text)
        elif block["verb"] == "prints":
            prints[block["name"]] = text
    assert set(prints) <= set(code), f"{document.name}: output of a program that is not there"
    return [Program(document, name, "\n".join(parts), prints.get(name)) for name, parts in code.items()]


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
    ran = subprocess.run(
        [sys.executable, "-W", "error", file.name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    if program.prints is not None:
        assert ran.stdout.strip() == program.prints.strip()


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
