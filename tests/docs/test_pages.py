"""Every page can be found, and what pages say about rules and commands is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sagapost.sagas.choreography import RULES, LintRule
from tests.docs.test_readme import ROOT
from tests.test_layout import FENCE, LINK

START = ROOT / "docs" / "index.md"
LINT = (ROOT / "docs" / "lint.md").read_text()


def linked_from(page: Path) -> set[Path]:
    """Return the pages that a page links to."""
    targets = (link.partition("#")[0] for link in LINK.findall(FENCE.sub("", page.read_text())))
    found = ((page.parent / target).resolve() for target in targets if target and ":" not in target)
    return {target for target in found if target.suffix == ".md" and target.exists()}


def test_every_page_is_reached_from_the_index() -> None:
    """A reader who follows links from docs/index.md finds every page; none is an orphan."""
    reached, waiting = {START}, [START]
    while waiting:
        for page in linked_from(waiting.pop()) - reached:
            reached.add(page)
            waiting.append(page)
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page.name != "template.md"}
    assert sorted(page.relative_to(ROOT).as_posix() for page in pages - reached) == []


def test_the_index_names_every_page_of_its_folder() -> None:
    """The reading order is complete: a new page is put into it."""
    direct = linked_from(START)
    assert sorted(page.name for page in START.parent.glob("*.md") if page != START and page not in direct) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_of_the_lint_has_its_section(rule: LintRule) -> None:
    """Code, title and severity in docs/lint.md are those of the rule."""
    section = re.search(rf"^## {rule.code}: {re.escape(rule.title)}\n\n(\w+)\.", LINT, re.MULTILINE)
    assert section is not None, f"docs/lint.md has no section '## {rule.code}: {rule.title}'"
    assert section[1].lower() == rule.severity.value
