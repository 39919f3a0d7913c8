"""Scheduled events: moved into the outbox when due, each exactly once."""

from __future__ import annotations

import sqlite3
from datetime import timedelta

from sagapost.adapters.sqlite.connection import Link
from sagapost.adapters.sqlite.rows import ENVELOPE, NOW, json_array, quoted, seconds_until
from sagapost.outbox.tables import OutboxTables

__all__ = ["Schedule"]


class Schedule:
    """The statements that move due events."""

    def __init__(self, link: Link, tables: OutboxTables) -> None:
        self._link = link
        outbox, scheduled = quoted(tables.outbox), quoted(tables.scheduled)
        self._next = f"SELECT {seconds_until('min(deliver_at)')} FROM {scheduled}"
        self._due = f"""
            SELECT id FROM {scheduled} WHERE deliver_at <= {NOW}
            ORDER BY deliver_at, id LIMIT ?"""
        chosen = "id IN (SELECT value FROM json_each(?))"
        # Moved rows get positions in the order in which they were due.
        self._insert = f"""
            INSERT INTO {outbox} ({ENVELOPE})
            SELECT {ENVELOPE} FROM {scheduled} WHERE {chosen} ORDER BY deliver_at, id"""
        self._delete = f"DELETE FROM {scheduled} WHERE {chosen}"

    async def move_due(self, *, limit: int) -> tuple[int, timedelta | None]:
        """See `OutboxStore.move_due`."""
        wait = await self._link.read(self._wait)
        if wait is None or wait > timedelta(0):
            # The usual case takes no write lock.
            return 0, wait
        return await self._link.write(lambda connection: (self._move(connection, limit), self._wait(connection)))

    def _move(self, connection: sqlite3.Connection, limit: int) -> int:
        # One write transaction: the row is in exactly one of the tables, and no other relay sees it twice.
        due = json_array([row[0] for row in connection.execute(self._due, (limit,))])
        connection.execute(self._insert, (due,))
        return connection.execute(self._delete, (due,)).rowcount

    def _wait(self, connection: sqlite3.Connection) -> timedelta | None:
        (seconds,) = connection.execute(self._next).fetchone()
        return None if seconds is None else timedelta(seconds=max(seconds, 0.0))
