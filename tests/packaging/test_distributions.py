"""What is in the sdist and in the wheel, and what is not."""

from __future__ import annotations

import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PORTIONS = ("core", "outbox", "inbox", "sagas", "service", "adapters", "ops")


@pytest.fixture(scope="module")
def packed(wheel: Path) -> set[str]:
    """Names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    return set(names)


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> dict[str, list[str]]:
    """The wheel's metadata: field -> values."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        message = Parser().parsestr(archive.read(name).decode())
    return {field: [str(value) for value in message.get_all(field) or []] for field in message}


def test_the_wheel_holds_the_front_and_every_module_of_the_portions(packed: set[str]) -> None:
    """Nothing is lost between the source roots and the package in the wheel, and nothing is there twice."""
    modules = {"sagapost/__init__.py"} | {
        path.relative_to(ROOT / portion).as_posix()
        for portion in PORTIONS
        for path in (ROOT / portion / "sagapost").rglob("*.py")
    }
    assert modules
    assert {name for name in packed if name.endswith(".py")} == modules


def test_the_wheel_is_typed(packed: set[str]) -> None:
    """The package carries `py.typed`, and so does each portion."""
    assert {"sagapost/py.typed", *(f"sagapost/{portion}/py.typed" for portion in PORTIONS)} <= packed


def test_the_wheel_holds_nothing_else(packed: set[str]) -> None:
    """No tests, no examples, no caches: the package and its metadata."""
    top = {name.split("/", 1)[0] for name in packed}
    assert {name for name in top if not name.endswith(".dist-info")} == {"sagapost"}
    strangers = {"tests", "examples", "benchmarks", "__pycache__"}
    assert [name for name in packed if strangers & set(name.split("/"))] == []


def test_licence_and_command_are_in_the_wheel(packed: set[str]) -> None:
    """The licence text travels with the code, and `sagapost` is installed as a command."""
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in packed)
    assert any(name.endswith(".dist-info/entry_points.txt") for name in packed)


def test_metadata_says_what_is_needed(metadata: dict[str, list[str]]) -> None:
    """Python version, licence and extras are those that are documented; the core needs four packages."""
    assert metadata["Requires-Python"] == [">=3.11"]
    assert metadata["License-Expression"] == ["Apache-2.0"]
    assert set(metadata["Provides-Extra"]) == {"postgresql", "sqlite", "rabbitmq", "pydantic", "cli", "otel", "all"}
    unconditional = {
        each.split(">")[0].split(";")[0].strip() for each in metadata["Requires-Dist"] if "extra ==" not in each
    }
    assert unconditional == {"anyio", "msgspec", "sqlalchemy[asyncio]", "uuid-utils"}


def test_the_sdist_can_be_built_tested_and_read(sdist: Path) -> None:
    """Code, tests, examples, documents, licence and the commands are in it; what a workstation leaves about is not."""
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for wanted in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "Makefile",
        ".ci/run",
        "core/sagapost/core/envelope.py",
        "tests/test_layout.py",
        "docs/index.md",
    ):
        assert wanted in names
    assert [
        name for name in names if name.startswith((".venv", ".git/", ".mypy_cache")) or "__pycache__" in name
    ] == []
