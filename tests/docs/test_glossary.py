"""One word for each idea: what the glossary rules out is found nowhere."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
# Migrations name what stood in older tables; decisions are a record of their time.
EXEMPT = {GLOSSARY, *ROOT.glob("*/sagapost/**/migrations.py")}


def _ruled_out() -> list[str]:
    rows = [line for line in GLOSSARY.read_text().splitlines() if line.startswith("| ")][1:]
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row.rsplit("|", 2)[1])]


def _texts() -> list[Path]:
    code = [path for root in ("*/sagapost", "examples") for path in ROOT.glob(f"{root}/**/*.py")]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "concepts").glob("*.md")]
    return [path for path in (*code, *pages) if path not in EXEMPT and "build" not in path.relative_to(ROOT).parts]


def test_words_that_are_ruled_out_are_used_nowhere() -> None:
    """In code, docstrings, messages and pages alike."""
    words = _ruled_out()
    assert len(words) > 5
    ruled_out = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in words), re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in _texts()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in ruled_out.finditer(line)
    ]
    assert found == []
