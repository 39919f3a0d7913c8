"""Code that a document shows from the checkout is what stands there.

The block follows an HTML comment that names its file: ``<!-- from: examples/streamtech/orders.py -->``
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.test_readme import DOCUMENTS, ROOT

EXCERPT = re.compile(r"^<!--\s*from:\s*(\S+)\s*-->\s*\n```\w*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
EXCERPTS = [(document, *found) for document in DOCUMENTS for found in EXCERPT.findall(document.read_text())]


def test_the_concepts_show_the_example() -> None:
    """The excerpts are found: a changed marker cannot switch the test off."""
    assert [file for document, file, _ in EXCERPTS if document.name == "concepts.md"].count(
        "examples/streamtech/orders.py"
    ) == 2


@pytest.mark.parametrize(
    ("document", "file", "code"), EXCERPTS, ids=[f"{each[0].name}-{number}" for number, each in enumerate(EXCERPTS)]
)
def test_an_excerpt_is_in_its_file(document: Path, file: str, code: str) -> None:
    """Word for word."""
    assert code in (ROOT / file).read_text(), f"{document.name} shows something else than {file}"
