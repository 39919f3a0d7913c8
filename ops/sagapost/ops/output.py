"""What commands write to standard output: a table for a terminal, tab-separated lines or JSON for a program."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from sagapost.ops.log_format import printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["flush", "write_bytes", "write_json", "write_line", "write_table", "write_text"]

_GAP: Final = "  "
_PROSE: Final = 24
"""Least width of a column of sentences, where they have that many characters."""


def write_text(text: str) -> None:
    """Write text as it is.

    :raises SystemExit: if whoever reads it has closed the pipe (`| head`); quietly, for that is no failure.
    """
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        _reader_is_gone()


def write_bytes(data: bytes) -> None:
    """Write bytes as they are; else as `write_text`."""
    try:
        sys.stdout.buffer.write(data)
    except BrokenPipeError:
        _reader_is_gone()


def flush() -> None:
    """Write what is buffered; quietly nothing if whoever reads it has closed the pipe."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _write_nowhere()


def _reader_is_gone() -> NoReturn:
    _write_nowhere()
    sys.exit(0)


def _write_nowhere() -> None:
    # The interpreter flushes once more on its way out, and would complain of the same.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_line(text: str = "") -> None:
    """Write one line."""
    write_text(f"{text}\n")


def write_json(value: object) -> None:
    """Write a JSON document."""
    write_line(json.dumps(value, indent=2, ensure_ascii=True))


def write_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    prose: Collection[str] = (),
    styles: Mapping[str, str] | None = None,
) -> None:
    """Write a table.

    On a terminal with a heading; otherwise as tab-separated lines without one, which `cut` and `awk` can read. No cell
    is ever cut short, and only prose is broken into lines: an id, a type or a key can be copied from where it stands.
    Where the terminal is too narrow for that, each row becomes a block of lines.

    :param prose: columns of sentences.
    :param styles: rich style of a column, by its name.
    """
    if not sys.stdout.isatty():
        for row in rows:
            write_line("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
        return
    rows = [[printable(cell) for cell in row] for row in rows]
    # Not needed, and not quick to import, where a program reads.
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = styles or {}
    console = Console(file=sys.stdout, highlight=False)
    widths = [
        min(_PROSE, longest) if column in prose else longest
        for column, *cells in zip(columns, *rows, strict=True)
        for longest in [max(cell_len(text) for text in (column, *cells))]
    ]
    if sum(widths) + len(_GAP) * (len(columns) - 1) > console.width:
        _write_blocks(console, columns, rows, styles)
        return
    table = Table(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), header_style="bold")
    for column in columns:
        broken = column in prose
        table.add_column(
            column, style=styles.get(column, ""), no_wrap=not broken, overflow="fold" if broken else "ignore"
        )
    for row in rows:
        # As plain text: square brackets in a value are no markup.
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _write_blocks(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str]
) -> None:
    from rich.text import Text

    label = max(len(column) for column in columns)
    for number, row in enumerate(rows):
        if number:
            console.print()
        for column, cell in zip(columns, row, strict=True):
            line = Text.assemble((column.ljust(label), "bold"), _GAP, (cell, styles.get(column, "")))
            # Longer than the terminal it goes on in the next line, and is still one when it is copied.
            console.print(line, soft_wrap=True)
