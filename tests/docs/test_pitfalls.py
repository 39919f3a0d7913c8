"""Each of the pitfalls has tests, and they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pitfalls.md"
PITFALLS = 27
ROW = re.compile(r"^\| (\d+) \|(.*)\|$", re.MULTILINE)
TEST = re.compile(r"\[`(test_\w+)`\]\(([^)#]+)\)")


def rows() -> dict[int, tuple[str, str, list[tuple[str, str]]]]:
    """Return what happened, what holds here, and the tests, by number."""
    found: dict[int, tuple[str, str, list[tuple[str, str]]]] = {}
    for number, cells in ROW.findall(PAGE.read_text()):
        happened, here, tests = (cell.strip() for cell in cells.split(" | "))
        assert int(number) not in found, f"{number} is there twice"
        found[int(number)] = (happened, here, TEST.findall(tests))
    return found


def test_every_pitfall_is_there_once() -> None:
    """From 1 to 27 without a gap, and whatever came after; each with what happened and what holds here."""
    assert set(rows()) >= set(range(1, PITFALLS + 1))
    assert all(happened and here for happened, here, _ in rows().values())


@pytest.mark.parametrize("number", sorted(rows()))
def test_a_pitfall_has_tests_that_exist(number: int) -> None:
    """One at least; each is a function of the file it is said to be in."""
    tests = rows()[number][2]
    assert tests
    for name, file in tests:
        tree = ast.parse((PAGE.parent / file).resolve().read_text())
        functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in functions, f"{file} has no {name}"
