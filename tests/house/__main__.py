"""Print the counts: `python -m tests.house`, with `-v` what is counted."""

from __future__ import annotations

import sys

from tests.house.counts import COUNTS
from tests.house.source import House


def main(arguments: list[str]) -> None:
    """Print one line for each count."""
    house = House()
    print(f"{'':58} before    now    aim")
    for count in COUNTS:
        found = count.find(house)
        mark = " " if len(found) <= count.aim else "*"
        print(f"{count.name:58} {count.before:6} {len(found):6} {count.aim:6} {mark}")
        if "-v" in arguments:
            for line in found:
                print(f"    {line}")


if __name__ == "__main__":
    main(sys.argv[1:])
