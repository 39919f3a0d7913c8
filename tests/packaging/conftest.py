"""The distributions as `pip` would get them: an sdist of the checkout, and the wheel built from that sdist."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_BUILD = "import hatchling.build, sys; getattr(hatchling.build, sys.argv[1])(sys.argv[2])"


def _build(kind: str, source: Path, target: Path) -> Path:
    target.mkdir()
    built = subprocess.run(
        [sys.executable, "-c", _BUILD, kind, str(target)], cwd=source, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (file,) = target.iterdir()
    return file


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this checkout."""
    return _build("build_sdist", ROOT, tmp_path_factory.mktemp("sdist") / "dist")


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the unpacked sdist and from nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return _build("build_wheel", source, folder / "dist")
