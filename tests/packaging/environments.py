"""Environments that hold exactly what a set of extras asks for, without an index and without a network."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["Environment", "closure"]


def closure(requirements: list[str], extras: frozenset[str]) -> dict[str, Distribution]:
    """Return the installed distributions that `requirements` need, directly or not, each once."""
    found: dict[str, Distribution] = {}
    waiting = [(Requirement(each), extras) for each in requirements]
    while waiting:
        requirement, wanted = waiting.pop()
        environments = [{"extra": extra} for extra in ("", *wanted)]
        if requirement.marker is not None and not any(map(requirement.marker.evaluate, environments)):
            continue
        installed = distribution(requirement.name)
        assert requirement.specifier.contains(installed.version, prereleases=True), f"{requirement} is not installed"
        if requirement.name not in found or requirement.extras:
            found[requirement.name] = installed
            waiting += [(Requirement(each), frozenset(requirement.extras)) for each in installed.requires or []]
    return found


class Environment:
    """A folder of packages: the wheel, unpacked, and links to what it needs with the given extras.

    Run with ``-S``, which keeps the interpreter's own site-packages out: what is not linked is not there.
    """

    def __init__(self, folder: Path, wheel: Path, *extras: str) -> None:
        self.folder = folder
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        (info,) = folder.glob("sagapost-*.dist-info")
        self.distribution = Distribution.at(info)
        needed = closure(self._with_extras_resolved(frozenset(extras)), frozenset(extras))
        for each in needed.values():
            self._link(each)

    def _with_extras_resolved(self, extras: frozenset[str]) -> list[str]:
        requires = self.distribution.requires or []
        named = [Requirement(each) for each in requires]
        assert all(each.name != "sagapost" or each.marker for each in named), "sagapost requires itself"
        return [str(each) for each in named if each.name != "sagapost"]

    def _link(self, needed: Distribution) -> None:
        for name in {file.parts[0] for file in needed.files or []} - {"..", "__pycache__"}:
            source = Path(str(needed.locate_file(name)))
            target = self.folder / name
            if not target.exists():
                target.symlink_to(source)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python with `arguments` in this environment alone, with these environment variables and no others."""
        return subprocess.run(
            [sys.executable, "-S", "-W", "error", *arguments],
            cwd=self.folder,
            env={"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
