"""The dedup key in the database: claimed in the transaction of the message, forgotten when it rolls back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, select

from sagapost.core.databases import DatabaseKit
from sagapost.inbox.declared.tables import InboxTables

__all__ = ["Dedup"]


class Dedup:
    """Which messages one consumer has handled or parked."""

    def __init__(self, tables: InboxTables, kit: DatabaseKit, *, consumer: int) -> None:
        self._consumer = consumer
        self._in_plain = kit.insert_once_in_plain(tables.seen, tables.seen.c.consumer, tables.seen.c.key)
        self._claim = kit.insert_once(tables.seen)
        seen = tables.seen.c
        self._known = select(seen.key).where(seen.consumer == consumer, kit.is_any(seen.key, "keys"))
        self._claim_all = kit.insert_missing(tables.seen, seen.key, {"consumer": consumer})

    def claim(self, connection: Connection, key: bytes) -> bool:
        """Write the key in the open transaction; False if it is there already.

        If another transaction has written it and not ended, this waits: for its commit (then False) or its rollback.
        """
        return connection.execute(self._claim, {"consumer": self._consumer, "key": key}).rowcount == 1

    def in_plain(self, key: bytes) -> str | None:
        """Return the statement of `claim` without parameters, for what is sent together with others; None: no such."""
        return None if self._in_plain is None else self._in_plain.format(self._consumer, key.hex())

    def claim_all(self, connection: Connection, keys: Collection[bytes]) -> set[bytes]:
        """Write several keys; return those that were not there."""
        # In one order everywhere, so that two transactions with keys in common wait for each other one way only.
        return self._claim_all(connection, sorted(keys))

    def known(self, connection: Connection, keys: Collection[bytes]) -> set[bytes]:
        """Return which of the keys are committed."""
        parameters: dict[str, Any] = {"keys": list(keys)}
        return set(connection.execute(self._known, parameters).scalars())
