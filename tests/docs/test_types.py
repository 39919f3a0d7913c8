"""The programs in the documents are typed as strictly as the library: a reader's editor shows no error in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_readme import PROGRAMS, ROOT


def test_the_programs_of_the_documents_pass_mypy(tmp_path: Path) -> None:
    """mypy strict finds nothing, with the settings and the cache that `make typecheck` uses."""
    pytest.importorskip("mypy", reason="type checkers belong to another group of dependencies")
    files: list[str] = []
    for number, program in enumerate(PROGRAMS):
        file = tmp_path / f"program_{number}.py"
        file.write_text(program.code)
        files.append(str(file))
    assert files
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *files],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "MYPYPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
