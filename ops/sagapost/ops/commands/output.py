"""What commands write to standard output: a table for a terminal, tab-separated lines or JSON for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

__all__ = ["write_json", "write_line", "write_table"]


def write_line(text: str = "") -> None:
    """Write one line."""
    sys.stdout.write(f"{text}\n")


def write_json(value: object) -> None:
    """Write a JSON document."""
    write_line(json.dumps(value, indent=2, ensure_ascii=True))


def write_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, styles: Mapping[str, str] | None = None
) -> None:
    """Write a table.

    On a terminal as drawn by rich; otherwise as tab-separated lines without a heading, which `cut` and `awk` can read.

    :param styles: rich style of a column, by its name.
    """
    if not sys.stdout.isatty():
        for row in rows:
            write_line("\t".join(row))
        return
    # Not needed, and not quick to import, where a program reads.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, style=(styles or {}).get(column, ""), overflow="fold")
    for row in rows:
        # As plain text: square brackets in a value are no markup.
        table.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout).print(table)
