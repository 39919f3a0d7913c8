"""Print the counts: `python -m tests.house`, with `-v` what is counted."""

from __future__ import annotations

import sys

from tests.house.counts import COUNTS, Count
from tests.house.journey import follow
from tests.house.source import House


def main(arguments: list[str]) -> None:
    """Print one line for each count."""
    print(f"{'':58} before    now    aim")
    journey, house = follow(), House()
    on_the_way = (
        Count("modules that an event passes, publish to tracker", 60, 45, lambda _: sorted(journey.modules)),
        Count("calls from receipt to the user's function", 17, 11, lambda _: journey.calls),
    )
    for count in (*on_the_way, *COUNTS):
        found = count.find(house)
        mark = " " if len(found) <= count.aim else "*"
        print(f"{count.name:58} {count.before:6} {len(found):6} {count.aim:6} {mark}")
        if "-v" in arguments:
            for line in found:
                print(f"    {line}")


if __name__ == "__main__":
    main(sys.argv[1:])
