"""Packages that import late: what costs nothing until it is used, and what is said about a wrong name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sagapost.inbox
from sagapost.core.lazy import lazily

HEAVY = ("sqlalchemy", "asyncpg", "aiosqlite", "aio_pika", "aiormq", "pydantic", "typer", "rich", "uvloop")


def imported_by(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has after a statement."""
    program = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before), sep='\\n')"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return set(ran.stdout.split())


@pytest.mark.parametrize("package", ["core", "outbox", "outbox.relay", "inbox", "sagas", "sagas.tracker"])
def test_importing_a_package_imports_neither_its_modules_nor_the_database(package: str) -> None:
    """What a program imports and does not use costs it no start-up time; core is what all the others stand on."""
    modules = imported_by(f"import sagapost.{package}")
    packages = [f"sagapost.{'.'.join(package.split('.')[:depth])}" for depth in (1, 2)]
    assert {module for module in modules if module.split(".")[0] in HEAVY} == set()
    assert {
        module
        for module in modules
        if module.startswith("sagapost.") and module not in packages and not module.startswith("sagapost.core")
    } == set()


def test_a_name_imports_what_it_needs() -> None:
    """What an inbox raises is used by code that has no database, and does not bring one."""
    modules = imported_by("from sagapost.inbox import ConsumerSettings, Retry")
    assert "sagapost.inbox.declared.settings" in modules
    assert "sagapost.inbox.running.consumer" not in modules


def test_every_name_is_there_and_listed() -> None:
    """`dir` shows what nobody has used yet, and each name is what its module has."""
    assert set(sagapost.inbox.__all__) <= set(dir(sagapost.inbox))
    for name in sagapost.inbox.__all__:
        assert getattr(sagapost.inbox, name).__module__.startswith("sagapost.inbox.")


def test_a_wrong_name_is_an_attribute_error() -> None:
    """As from any module, so that `hasattr`, `from ... import` and spelling hints work."""
    with pytest.raises(AttributeError, match=r"module 'sagapost\.inbox' has no attribute 'Inbos'"):
        _ = sagapost.inbox.Inbos  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImportError, match="cannot import name 'Inbos'"):
        exec("from sagapost.inbox import Inbos")


@pytest.mark.parametrize("modules", [{"a": "X", "b": "X"}, {"start": "start"}])
def test_a_name_with_two_homes_is_refused(modules: dict[str, str]) -> None:
    """Two modules that give one name, or a module of that name, would make it depend on the order of imports."""
    with pytest.raises(ValueError, match="given twice, or is a module too"):
        lazily("package", modules)
