"""A copy of the library in which something is added, to count the files that it takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.house.source import PORTIONS, ROOT

__all__ = ["Checkout"]


class Checkout:
    """The library in a folder of its own. Whoever adds something says so file by file.

    :param folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.added: set[str] = set()
        """Files that were not there."""
        self.changed: set[str] = set()
        """Files that were."""
        for portion in PORTIONS:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / portion, folder / portion, symlinks=True, ignore=ignored)

    def add(self, file: str, text: str) -> None:
        """Write a new file."""
        path = self.folder / file
        assert not path.exists(), file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        self.added.add(file)

    def change(self, file: str, old: str, new: str) -> None:
        """Put something in the place of something that is there once."""
        path = self.folder / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}"
        path.write_text(text.replace(old, new))
        self.changed.add(file)

    def run(self, *arguments: str, **environment: str) -> str:
        """Run Python with this library in place of the one under test; return what it printed.

        :raises AssertionError: with what it said, if it ended otherwise than with 0.
        """
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("SAGAPOST_")}
        path = os.pathsep.join([*(str(self.folder / portion) for portion in reversed(PORTIONS)), str(ROOT)])
        ran = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            env={**kept, **environment, "PYTHONPATH": path},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def program(self, text: str) -> str:
        """Run a program; return what it printed."""
        return self.run("-c", textwrap.dedent(text))
