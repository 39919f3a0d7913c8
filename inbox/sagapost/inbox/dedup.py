"""The dedup key in the database: claimed in the transaction of the message, forgotten when it rolls back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Insert, Table, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from sagapost.core.errors import ConfigurationError
from sagapost.inbox.tables import InboxTables

__all__ = ["Dedup", "insert_once"]


def insert_once(table: Table, dialect: str) -> Insert:
    """Return an INSERT that leaves an existing row alone; `rowcount` tells. Portable by dialect, never by error.

    :raises ConfigurationError: for a database this is not known for.
    """
    match dialect:
        case "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing().inline()
        case "sqlite":
            return sqlite.insert(table).on_conflict_do_nothing().inline()
        case _:
            raise ConfigurationError(
                f"The inbox does not know how {dialect!r} inserts a row unless it exists. Use PostgreSQL or SQLite."
            )


class Dedup:
    """Which messages one consumer has handled."""

    def __init__(self, tables: InboxTables, *, dialect: str, consumer: int) -> None:
        self._consumer = consumer
        self._claim = insert_once(tables.seen, dialect)
        seen = tables.seen.c
        self._known = select(seen.key).where(
            seen.consumer == consumer, seen.key.in_(bindparam("keys", expanding=True))
        )

    def claim(self, connection: Connection, key: bytes) -> bool:
        """Write the key in the open transaction; False if it is there already.

        If another transaction has written it and not ended, this waits: for its commit (then False) or its rollback.
        """
        return connection.execute(self._claim, {"consumer": self._consumer, "key": key}).rowcount == 1

    def known(self, connection: Connection, keys: Sequence[bytes]) -> set[bytes]:
        """Return which of the keys are committed."""
        parameters: dict[str, Any] = {"keys": keys}
        return set(connection.execute(self._known, parameters).scalars())
