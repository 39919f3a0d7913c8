"""The programs beside the concepts: each runs, is shown on a page, and prints what the page says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import anyio
import pytest

from tests.docs.test_readme import PATIENCE, ROOT

EXAMPLES = sorted(
    path for path in (ROOT / "examples" / "concepts").glob("*.py") if path.name not in {"__init__.py", "events.py"}
)
PAGES = sorted((ROOT / "docs" / "concepts").glob("*.md"))
PRINTED = re.compile(r"^<!--\s*printed by:\s*(\S+)\s*-->\s*\n```text\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
SHOWN = {ROOT / file: printed for page in PAGES for file, printed in PRINTED.findall(page.read_text())}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
async def test_an_example_prints_what_its_page_says(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The output on the page is that of the program, line by line; warnings are errors here too."""
    module = importlib.import_module(".".join(example.relative_to(ROOT).with_suffix("").parts))
    with anyio.fail_after(PATIENCE):
        await module.main()
    assert example in SHOWN, f"no page shows the output of {example.name}"
    assert SHOWN[example].strip() == capsys.readouterr().out.strip()


def test_every_output_is_of_a_program_that_is_there() -> None:
    """A page does not show what nothing prints."""
    assert set(SHOWN) - set(EXAMPLES) == set()
