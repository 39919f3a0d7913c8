"""Looking at a database beside those who work on it: by its clock, and without reading all of a large table."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, func, literal_column, select

from sagapost.core.clock import SystemClock
from sagapost.core.databases.kit import aware, kit_of

__all__ = ["count_up_to", "moment"]

_ONE: ColumnElement[int] = literal_column("1")


def moment(connection: Connection) -> datetime:
    """Return the time by the database's clock."""
    return aware(connection.execute(select(kit_of(connection).now(SystemClock()))).scalar_one())


def count_up_to(
    limit: int, connection: Connection, table: FromClause, which: ColumnElement[bool], order: ColumnElement[Any]
) -> int:
    """Return how many rows there are, and `limit` where there are more.

    :param order: the columns of an index that has these rows. In its order the scan stops at the limit: without it the
        planner first makes a bitmap of every row that the index has, and reads their pages of the table.
    """
    some = select(_ONE).select_from(table).where(which).order_by(order).limit(limit).subquery()
    return connection.execute(select(func.count()).select_from(some)).scalar_one()
