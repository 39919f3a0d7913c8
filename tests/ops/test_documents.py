"""The pages for operators say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from sagapost.ops.exit_codes import ExitCode
from sagapost.ops.settings import all_settings
from sagapost.ops.settings.reference import reference

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_of_settings_is_the_one_the_settings_write() -> None:
    """Run `python -m sagapost.ops.settings.reference > docs/configuration.md` after a change."""
    assert (DOCS / "configuration.md").read_text() == reference()


def test_the_page_of_settings_has_every_setting() -> None:
    """Also one that a new group of settings brings."""
    listed = re.findall(r"^\| `(SAGAPOST_\w+)` \|", reference(), re.MULTILINE)
    assert sorted(listed) == sorted(entry.variable for entry in all_settings())


def test_the_table_of_exit_codes_is_complete() -> None:
    """Number and name of each code, as the enum has them."""
    listed = re.findall(r"^\| (\d+) \| `(\w+)` \|", (DOCS / "operations.md").read_text(), re.MULTILINE)
    assert {name: int(number) for number, name in listed} == {code.name: int(code) for code in ExitCode}


def test_variables_that_the_pages_mention_exist() -> None:
    """No page names a setting that is gone."""
    known = {entry.variable for entry in all_settings()}
    for page in (DOCS / "operations.md", DOCS / "configuration.md"):
        named = set(re.findall(r"SAGAPOST_[A-Z_]*[A-Z]", page.read_text()))
        assert {name.removesuffix("_FILE") for name in named} <= known, page
