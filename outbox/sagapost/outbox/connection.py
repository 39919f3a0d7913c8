"""Events through a SQLAlchemy Core connection: written at once, in the transaction that is open on it."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, TwoPhaseTransaction
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from sagapost.core.databases import kit_of
from sagapost.core.errors import NotInTransactionError
from sagapost.outbox.doorbell import SILENCE
from sagapost.outbox.missing import missing_table
from sagapost.outbox.rows import Rows

__all__ = ["AUTOCOMMIT_REMEDY", "insert_rows", "insert_rows_async", "is_autocommit", "require_connection_transaction"]

AUTOCOMMIT_REMEDY = (
    "Its isolation level is AUTOCOMMIT, where every statement is a transaction of its own. "
    "Use the default isolation level for what belongs together."
)


def is_autocommit(bind: Engine | Connection) -> bool:
    """Return whether every statement on `bind` is a transaction of its own."""
    level = bind.get_execution_options().get("isolation_level")
    if level is None:
        # create_engine(isolation_level=...) is kept on the dialect only, under this name.
        level = getattr(bind.dialect, "_on_connect_isolation_level", None)
    return level == "AUTOCOMMIT"


def require_connection_transaction(connection: Connection | AsyncConnection) -> None:
    """Check that a real transaction is open.

    :raises NotInTransactionError: if none is, or the connection is in AUTOCOMMIT.
    """
    asynchronous = isinstance(connection, AsyncConnection)
    handle = "an AsyncConnection" if asynchronous else "a Connection"
    if not connection.in_transaction():
        with_ = "async with" if asynchronous else "with"
        raise NotInTransactionError(
            handle=handle, remedy=f"Call it inside `{with_} engine.begin() as connection:` or `connection.begin()`."
        )
    sync = connection.sync_connection if isinstance(connection, AsyncConnection) else connection
    if sync is not None and is_autocommit(sync):
        raise NotInTransactionError(handle=handle, remedy=AUTOCOMMIT_REMEDY)


def insert_rows(connection: Connection, rows: Rows) -> None:
    """Write the rows in their order, as one INSERT where the database can.

    :raises SchemaError: if the table is not there.
    """
    if not rows.values:
        return
    try:
        _insert(connection, rows)
    except DBAPIError as error:
        missing = missing_table(error, connection, rows.target.table)
        if missing is not None:
            raise missing from error
        raise


def _insert(connection: Connection, rows: Rows) -> None:
    dialect = connection.dialect
    if isinstance(connection.get_transaction(), TwoPhaseTransaction) and kit_of(connection).notifies:
        connection.exec_driver_sql(SILENCE)
    translated = connection.get_execution_options().get("schema_translate_map")
    if kit_of(connection).numbers_parameters(dialect.driver) and not translated:
        # One text for any number of rows, so nothing is compiled, looked up or bound by type again.
        connection.exec_driver_sql(*rows.target.raw(rows.values))
    elif len(rows.values) == 1:
        connection.execute(rows.target.core_one, rows.values[0])
    else:
        several = dialect.insert_executemany_returning
        connection.execute(rows.target.core_many if several else rows.target.core_one, rows.values)


async def insert_rows_async(connection: AsyncConnection, rows: Rows) -> None:
    """Write the rows in their order, as one INSERT where the database can."""
    await connection.run_sync(insert_rows, rows)
