"""Events through psycopg (3 or 2), by itself or inside Django: known here by their attributes, never imported.

Both execute the statement at once, in the transaction that is open, with `%s` for each parameter. Django's connection
is asked through its own cursor, so that its wrappers and its broken transactions work as for any other statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

from sagapost.core.errors import NotInTransactionError
from sagapost.outbox.missing import missing_table_driver
from sagapost.outbox.rows import Rows

__all__ = [
    "DjangoConnection",
    "DriverConnection",
    "PsycopgConnection",
    "execute",
    "insert_rows_driver",
    "is_django",
    "is_psycopg",
    "require_driver_transaction",
]

_IDLE = 0
"""libpq's PQTRANS_IDLE."""


@runtime_checkable
class PsycopgConnection(Protocol):
    """What is used of `psycopg.Connection`, and of psycopg2's connection."""

    @property
    def autocommit(self) -> Any:
        """Whether every statement outside an explicit transaction is one of its own."""
        ...

    @property
    def info(self) -> Any:
        """Its state."""
        ...

    def cursor(self) -> Any:
        """Open a cursor."""
        ...

    def commit(self) -> None:
        """End the transaction."""
        ...


class DjangoConnection(Protocol):
    """What is used of `django.db.connection`, and of those in `django.db.connections`."""

    @property
    def in_atomic_block(self) -> Any:
        """Whether an `atomic` block is open."""
        ...

    @property
    def vendor(self) -> Any:
        """Which database it is."""
        ...

    def get_autocommit(self) -> Any:
        """Return whether every statement outside `atomic` is a transaction of its own."""
        ...

    def cursor(self) -> Any:
        """Open a cursor."""
        ...


DriverConnection: TypeAlias = PsycopgConnection | DjangoConnection


def is_django(handle: object) -> TypeGuard[DjangoConnection]:
    """Return whether it is Django's connection, or the proxy `django.db.connection`, which passes attributes on."""
    return all(hasattr(handle, name) for name in ("in_atomic_block", "vendor", "get_autocommit", "cursor"))


def is_psycopg(handle: object) -> TypeGuard[PsycopgConnection]:
    """Return whether it is a synchronous connection of psycopg."""
    return isinstance(handle, PsycopgConnection) and not hasattr(handle, "__aenter__")


def require_driver_transaction(connection: DriverConnection) -> None:
    """Check that a transaction is open, or that the statement begins one that the caller commits.

    :raises NotInTransactionError: if every statement is committed by itself.
    :raises TypeError: if Django's connection is one to another database than PostgreSQL.
    """
    if is_django(connection):
        if connection.vendor != "postgresql":
            raise TypeError(
                f"Django's connection is one to {connection.vendor}; events are published through those to PostgreSQL."
            )
        if not connection.in_atomic_block and connection.get_autocommit():
            raise NotInTransactionError(
                handle="Django's connection", remedy="Call it inside `with transaction.atomic():`."
            )
    elif is_psycopg(connection) and connection.autocommit and int(connection.info.transaction_status) == _IDLE:
        raise NotInTransactionError(
            handle="a psycopg connection in autocommit",
            remedy="Call it inside `with connection.transaction():`, or without autocommit.",
        )


def insert_rows_driver(connection: DriverConnection, rows: Rows) -> None:
    """Write the rows in the open transaction, as one INSERT and one round trip.

    :raises SchemaError: if the table is not there.
    """
    if not rows.values:
        return
    # Django never prepares a transaction for two phases; psycopg can (`tpc_begin`), and nothing public tells.
    statement, arguments = rows.target.formatted(rows.values, one_phase=is_django(connection))
    try:
        execute(connection, statement, arguments)
    except Exception as error:
        missing = missing_table_driver(error)
        if missing is not None:
            raise missing from error
        raise


def execute(connection: DriverConnection, statement: str, arguments: Sequence[Any]) -> int:
    """Run a statement with `%s` for each argument; return how many rows it changed."""
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments)
        return int(cursor.rowcount)
