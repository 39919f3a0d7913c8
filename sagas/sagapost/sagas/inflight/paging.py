"""Reading many rows with little memory, in the order of their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Column, Connection, Select

__all__ = ["pages"]

_PAGE = 1_000


def pages(connection: Connection, statement: Select[*tuple[Any, ...]], number: Column[Any]) -> Iterator[Any]:
    """Yield the rows of a statement, a page at a time.

    :param number: the column that tells them apart and orders them; it is among what is selected.
    """
    last: object = None
    while True:
        page = statement if last is None else statement.where(number > last)
        rows = connection.execute(page.order_by(number).limit(_PAGE)).all()
        yield from rows
        if len(rows) < _PAGE:
            return
        last = getattr(rows[-1], str(number.key))
