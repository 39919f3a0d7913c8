"""The dedup key in the database: claimed in the transaction of the message, forgotten when it rolls back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Insert, LargeBinary, SmallInteger, Table, bindparam, column, func, literal, select
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
    """Which messages one consumer has handled or parked."""

    def __init__(self, tables: InboxTables, *, dialect: str, consumer: int) -> None:
        self._consumer = consumer
        self._arrays = dialect == "postgresql"
        self._claim = insert_once(tables.seen, dialect)
        seen = tables.seen.c
        if self._arrays:
            # One text for any number of keys, so that it is compiled and prepared once.
            keys = bindparam("keys", type_=postgresql.ARRAY(LargeBinary))
            self._known = select(seen.key).where(seen.consumer == consumer, seen.key == func.any(keys))
            incoming = func.unnest(keys).table_valued(column("key", LargeBinary), name="incoming").render_derived()
            self._claim_all = (
                postgresql.insert(tables.seen)
                .from_select(["consumer", "key"], select(literal(consumer, SmallInteger), incoming.c.key))
                .on_conflict_do_nothing()
                .returning(seen.key)
            )
        else:
            self._known = select(seen.key).where(
                seen.consumer == consumer, seen.key.in_(bindparam("keys", expanding=True))
            )

    def claim(self, connection: Connection, key: bytes) -> bool:
        """Write the key in the open transaction; False if it is there already.

        If another transaction has written it and not ended, this waits: for its commit (then False) or its rollback.
        """
        return connection.execute(self._claim, {"consumer": self._consumer, "key": key}).rowcount == 1

    def claim_all(self, connection: Connection, keys: Collection[bytes]) -> set[bytes]:
        """Write several keys; return those that were not there."""
        # In one order everywhere, so that two transactions with keys in common wait for each other one way only.
        ordered = sorted(keys)
        if not self._arrays:
            return {key for key in ordered if self.claim(connection, key)}
        return set(connection.execute(self._claim_all, {"keys": ordered}).scalars())

    def known(self, connection: Connection, keys: Collection[bytes]) -> set[bytes]:
        """Return which of the keys are committed."""
        parameters: dict[str, Any] = {"keys": list(keys)}
        return set(connection.execute(self._known, parameters).scalars())
