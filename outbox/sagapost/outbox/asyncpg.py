"""Events through a raw asyncpg connection, known here by its methods only: the driver is never imported."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from sagapost.core.errors import NotInTransactionError
from sagapost.outbox.missing import missing_table_driver
from sagapost.outbox.rows import Rows

__all__ = ["AsyncpgConnection", "insert_rows_asyncpg", "require_asyncpg_transaction"]


@runtime_checkable
class AsyncpgConnection(Protocol):
    """What is used of `asyncpg.Connection`, and of the proxy a pool hands out."""

    def is_in_transaction(self) -> bool:
        """Return whether a transaction is open."""
        ...

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run one statement; return its command tag."""
        ...


def require_asyncpg_transaction(connection: AsyncpgConnection) -> None:
    """Check that a transaction is open.

    :raises NotInTransactionError: if none is.
    """
    if not connection.is_in_transaction():
        raise NotInTransactionError(
            handle="an asyncpg connection", remedy="Call it inside `async with connection.transaction():`."
        )


async def insert_rows_asyncpg(connection: AsyncpgConnection, rows: Rows) -> None:
    """Write the rows in the open transaction, as one INSERT and one round trip.

    :raises SchemaError: if the table is not there.
    """
    if not rows.values:
        return
    statement, arguments = rows.target.raw(rows.values)
    try:
        await connection.execute(statement, *arguments)
    except Exception as error:
        missing = missing_table_driver(error)
        if missing is not None:
            raise missing from error
        raise
