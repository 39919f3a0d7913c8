"""The maps in docs/streamtech.md, drawn from the code: `python -m examples.streamtech.maps` draws them again."""

from __future__ import annotations

import re
from pathlib import Path

from examples.streamtech.services import ENROLMENT, FULFILMENT, ISLAND, REORDERED, choreography
from sagapost import Service
from sagapost.sagas.choreography import graph_of, to_mermaid

PAGE = Path(__file__).resolve().parents[2] / "docs" / "streamtech.md"
MAPS: dict[str, tuple[Service, ...]] = {
    "fulfilment": FULFILMENT,
    "reordered": REORDERED,
    "island": ISLAND,
    "enrolment": ENROLMENT,
}
_MAP = re.compile(r"(<!-- map: (\w+) -->\n```mermaid\n)(.*?)(```)", re.DOTALL)


def redrawn(page: str) -> str:
    """Return a page with each of its maps as the code has it now."""

    def draw(found: re.Match[str]) -> str:
        return found[1] + to_mermaid(graph_of(choreography(MAPS[found[2]]))) + found[4]

    return _MAP.sub(draw, page)


def main() -> None:
    """Draw the page's maps again."""
    PAGE.write_text(redrawn(PAGE.read_text()))


if __name__ == "__main__":
    main()
