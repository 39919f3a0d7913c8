"""The front door: one import path, which costs nothing until it is used and finds every portion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sagapost

ROOT = Path(__file__).resolve().parents[2]
PORTIONS = ("core", "outbox", "inbox", "sagas", "service", "adapters", "ops")


def run(program: str, *paths: Path) -> list[str]:
    """Return the lines that a fresh interpreter prints; with `paths`, these and its own packages are all it finds."""
    environment = dict(os.environ)
    arguments = ["-c", program]
    if paths:
        # Without `site` there is no editable install; what sagapost itself needs is named.
        needed = {Path(__import__(name).__file__ or "").parents[1] for name in ("msgspec", "anyio", "sqlalchemy")}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, [*paths, *needed]))
        arguments = ["-S", *arguments]
    ran = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_importing_it_loads_nothing_and_takes_no_time() -> None:
    """No SQLAlchemy, no portion but what core is made of, and less than a quarter of a second of processor time."""
    program = (
        "import sys, time; begun = time.process_time(); import sagapost; spent = time.process_time() - begun; "
        "print(spent); print(*sys.modules, sep='\\n')"
    )
    spent, *modules = run(program)
    assert float(spent) <= 0.25
    assert "sqlalchemy" not in modules
    assert {name.split(".")[1] for name in modules if name.startswith("sagapost.")} == {"core"}


def test_every_name_is_there_listed_and_has_one_home() -> None:
    """About thirty names, each the very object that its portion has."""
    assert 25 <= len(sagapost.__all__) <= 35
    assert set(sagapost.__all__) <= set(dir(sagapost))
    for name in sagapost.__all__:
        assert getattr(sagapost, name).__module__.startswith("sagapost."), name


@pytest.mark.skipif(not (ROOT / "front").exists(), reason="is about the roots of a checkout")
@pytest.mark.parametrize("order", [("front", *PORTIONS), (*PORTIONS, "front"), ("ops", "front", *PORTIONS)])
def test_portions_are_found_wherever_they_are(order: tuple[str, ...], tmp_path: Path) -> None:
    """By a plain PYTHONPATH, in any order, and without the links that are there for tools."""
    front = tmp_path / "sagapost"
    front.mkdir()
    (front / "__init__.py").write_text((ROOT / "front" / "sagapost" / "__init__.py").read_text())
    paths = [tmp_path if root == "front" else ROOT / root for root in order]
    names = ", ".join(f"sagapost.{portion}" for portion in PORTIONS if portion != "ops")
    printed = run(f"import {names}\nfrom sagapost import Service\nprint(Service, sagapost.core.__file__)", *paths)
    assert printed == [
        f"<class 'sagapost.service.service.Service'> {ROOT / 'core' / 'sagapost' / 'core' / '__init__.py'}"
    ]
