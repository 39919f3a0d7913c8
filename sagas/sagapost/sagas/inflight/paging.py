"""Reading many rows with little memory, in the order of their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from sqlalchemy import Column, Connection, Select

__all__ = ["batches", "pages"]

_PAGE = 1_000


def pages(connection: Connection, statement: Select[*tuple[Any, ...]], number: Column[Any]) -> Iterator[Any]:
    """Yield the rows of a statement, read a page at a time; see `batches`."""
    return chain.from_iterable(batches(connection, statement, number, size=_PAGE))


def batches(
    connection: Connection, statement: Select[*tuple[Any, ...]], number: Column[Any], *, size: int
) -> Iterator[Sequence[Any]]:
    """Yield the rows of a statement, up to `size` together.

    :param number: the column that tells them apart and orders them; it is among what is selected.
    """
    last: object = None
    while True:
        page = statement if last is None else statement.where(number > last)
        rows = connection.execute(page.order_by(number).limit(size)).all()
        yield rows
        if len(rows) < size:
            return
        last = getattr(rows[-1], str(number.key))
