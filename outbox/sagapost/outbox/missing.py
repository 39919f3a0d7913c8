"""A database without our tables: the sentence for whoever publishes into it."""

from __future__ import annotations

from sqlalchemy import Connection, Table

from sagapost.core.databases import MissingTable, PostgreSQL, kit_of
from sagapost.core.errors import SchemaError
from sagapost.outbox.migrations import OUTBOX_SCHEMA_VERSION

__all__ = ["missing_table", "missing_table_driver"]


def missing_table(error: Exception, connection: Connection, table: Table) -> SchemaError | None:
    """Return the error to raise if `error` says that `table` is not there as this release knows it."""
    kit = kit_of(connection)
    if not kit.lacks(error, connection, table):
        return None
    return _schema_error(f"The database at {kit.address(connection.engine.url)}")


def missing_table_driver(error: Exception) -> SchemaError | None:
    """Return the error to raise if `error`, of a driver's own connection, says so."""
    missing = isinstance(PostgreSQL().classify(error), MissingTable)
    return _schema_error("The database of this connection") if missing else None


def _schema_error(where: str) -> SchemaError:
    return SchemaError(found=None, expected=OUTBOX_SCHEMA_VERSION, where=where)
