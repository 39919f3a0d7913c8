"""The lowest versions that are allowed are those that continuous integration runs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def lowest(root: Path) -> subprocess.CompletedProcess[str]:
    """Run `.ci/lowest` of a checkout."""
    return subprocess.run(
        [sys.executable, str(root / ".ci" / "lowest")], capture_output=True, text=True, timeout=60, check=False
    )


def test_pitfall_49_every_dependency_has_a_lower_bound_that_is_run() -> None:
    """Each dependency of the library and of its extras is among the constraints of the stage, at a version that its
    requirement allows; and the stage is one of `.ci/run`.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    wanted = {each.name: each for each in map(Requirement, declared) if each.name != "sagapost"}
    constraints = [Requirement(line) for line in lowest(ROOT).stdout.splitlines()]
    assert sorted(each.name for each in constraints) == sorted(wanted)
    for constraint in constraints:
        (pin,) = constraint.specifier
        assert pin.operator == "=="
        assert wanted[constraint.name].specifier.contains(pin.version)
        assert wanted[constraint.name].marker == constraint.marker
    assert "bash .ci/run install bounds" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_a_dependency_without_a_lower_bound_is_refused(tmp_path: Path) -> None:
    """It would promise that every version ever made will do."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "lowest").write_text((ROOT / ".ci" / "lowest").read_text())
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["anyio>=4", "msgspec<1"]\n[project.optional-dependencies]\n'
    )
    ran = lowest(tmp_path)
    assert ran.returncode == 1
    assert "gives msgspec<1 no lower bound" in ran.stderr
