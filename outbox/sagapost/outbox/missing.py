"""A database without our tables, told from the driver's error by its code."""

from __future__ import annotations

import sqlite3

from sqlalchemy import Connection, Table, inspect
from sqlalchemy.exc import DBAPIError

from sagapost.core.errors import SchemaError
from sagapost.outbox.tables import OUTBOX_SCHEMA_VERSION

__all__ = ["missing_table", "missing_table_asyncpg"]

_UNDEFINED = frozenset({"42P01", "42703"})
"""SQLSTATE of an undefined table, and of an undefined column: no tables, or those of another release."""


def missing_table(error: DBAPIError, connection: Connection, table: Table) -> SchemaError | None:
    """Return the error to raise if `error` says that `table` is not there as this release knows it."""
    if isinstance(error.orig, sqlite3.OperationalError):
        # SQLite has one code for everything that is wrong with a statement, but lets us look.
        missing = not inspect(connection).has_table(table.name, schema=table.schema)
    else:
        missing = getattr(error.orig, "sqlstate", None) in _UNDEFINED
    where = connection.engine.url.render_as_string(hide_password=True)
    return _schema_error(f"The database {where}") if missing else None


def missing_table_asyncpg(error: Exception) -> SchemaError | None:
    """Return the error to raise if `error`, of a raw asyncpg connection, says so."""
    missing = getattr(error, "sqlstate", None) in _UNDEFINED
    return _schema_error("The database of this asyncpg connection") if missing else None


def _schema_error(where: str) -> SchemaError:
    return SchemaError(found=None, expected=OUTBOX_SCHEMA_VERSION, where=where)
