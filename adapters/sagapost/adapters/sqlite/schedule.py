"""Scheduled events: moved into the outbox when due, each exactly once."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from uuid import UUID

from sagapost.adapters.sqlite.connection import SQLiteLink
from sagapost.adapters.sqlite.rows import ENVELOPE, NOW, earlier, json_array, quoted, seconds_until
from sagapost.core.outbox_store import BuriedEvent, DueEvents
from sagapost.outbox.recorded import BEHIND
from sagapost.outbox.tables import OutboxTables

__all__ = ["SQLiteSchedule"]


class SQLiteSchedule:
    """`OutboxSchedule` on SQLite."""

    def __init__(self, link: SQLiteLink, tables: OutboxTables) -> None:
        self._link = link
        outbox, scheduled, dead = quoted(tables.outbox), quoted(tables.scheduled), quoted(tables.dead)
        # Looked at as text, as the due ones are: of what is no time there are no seconds until then.
        self._next = f"""
            SELECT CASE WHEN min(deliver_at) <= {NOW} THEN 0.0
                        ELSE min(coalesce({seconds_until("min(deliver_at)")}, 86400.0), 86400.0) END
            FROM {scheduled} HAVING count(*) > 0"""
        self._due = f"""
            SELECT id FROM {scheduled} WHERE deliver_at <= {NOW}
            ORDER BY deliver_at, id LIMIT ?"""
        chosen = "id IN (SELECT value FROM json_each(?))"
        # An event happens when it is published: one that was due long ago, since no relay ran, is not old.
        moving = ENVELOPE.replace('"time"', f'max("time", {earlier(BEHIND)})')
        # Moved rows get positions in the order in which they were due.
        self._insert = f"""
            INSERT INTO {outbox} ({ENVELOPE})
            SELECT {moving} FROM {scheduled} WHERE {chosen} ORDER BY deliver_at, id"""
        self._delete = f"DELETE FROM {scheduled} WHERE {chosen}"
        # It never had a position. A negative one is free, and a redriven event goes first.
        self._bury = f"""
            INSERT OR REPLACE INTO {dead} (position, {ENVELOPE}, attempts, last_error)
            SELECT -id, {ENVELOPE}, 0, ? FROM {scheduled} WHERE id = ?
            RETURNING position, event_id, type, partitionkey"""

    async def move_due(self, *, limit: int) -> DueEvents:
        """See `OutboxSchedule.move_due`."""
        wait = await self._link.read(self._wait)
        if wait is None or wait > timedelta(0):
            # The usual case takes no write lock.
            return DueEvents(0, wait)
        buried: list[BuriedEvent] = []
        return await self._link.write(
            lambda connection: DueEvents(self._move(connection, limit, buried), self._wait(connection), buried)
        )

    def _move(self, connection: sqlite3.Connection, limit: int, buried: list[BuriedEvent]) -> int:
        # One write transaction: the row is in exactly one of the tables, and no other relay sees it twice.
        ids = [row[0] for row in connection.execute(self._due, (limit,))]
        due = json_array(ids)
        moved = len(ids)
        try:
            connection.execute(self._insert, (due,))
        except sqlite3.IntegrityError:
            # The statement alone is undone. The outbox refuses one of them, which becomes a dead letter.
            moved = sum(self._move_one(connection, row, buried) for row in ids)
        connection.execute(self._delete, (due,))
        return moved

    def _move_one(self, connection: sqlite3.Connection, row: int, buried: list[BuriedEvent]) -> bool:
        try:
            connection.execute(self._insert, (json_array([row]),))
        except sqlite3.IntegrityError as error:
            reason = f"the outbox refuses this scheduled event: {error}"
            for position, event_id, type_, key in connection.execute(self._bury, (reason, row)).fetchall():
                name = None if key is None else str(key)
                buried.append(BuriedEvent(position, _written(event_id), str(type_), name, reason))
            return False
        return True

    def _wait(self, connection: sqlite3.Connection) -> timedelta | None:
        row = connection.execute(self._next).fetchone()
        return None if row is None else timedelta(seconds=max(row[0], 0.0))


def _written(event_id: object) -> str:
    """Return an id as events have it; SQLite keeps whatever it is given, also what is none."""
    try:
        return str(UUID(str(event_id)))
    except ValueError:
        return str(event_id)
