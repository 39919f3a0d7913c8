"""Scheduled events: moved into the outbox when due, each exactly once among all relays."""

from __future__ import annotations

from datetime import timedelta

from sagapost.adapters.postgresql.connection import Link
from sagapost.adapters.postgresql.rows import ENVELOPE, qualified
from sagapost.outbox.tables import OutboxTables

__all__ = ["Schedule"]


class Schedule:
    """The statements that move due events."""

    def __init__(self, link: Link, tables: OutboxTables) -> None:
        self._link = link
        outbox, scheduled = qualified(tables.outbox), qualified(tables.scheduled)
        # One statement deletes here and inserts there, so a crash leaves the row in exactly one of the tables, and
        # SKIP LOCKED gives two relays different rows. Moved rows get positions in the order in which they were due.
        self._move = f"""
            WITH due AS (
                SELECT id FROM {scheduled} WHERE deliver_at <= clock_timestamp()
                ORDER BY deliver_at, id LIMIT $1::int FOR UPDATE SKIP LOCKED
            ), gone AS (
                DELETE FROM {scheduled} s USING due WHERE s.id = due.id RETURNING s.*
            ), moved AS (
                INSERT INTO {outbox} ({ENVELOPE}) SELECT {ENVELOPE} FROM gone ORDER BY deliver_at, id RETURNING 1
            )
            SELECT count(*) FROM moved"""
        self._next = f"SELECT min(deliver_at) - clock_timestamp() FROM {scheduled}"

    async def move_due(self, *, limit: int) -> tuple[int, timedelta | None]:
        """See `OutboxStore.move_due`."""
        # Asked first: an INSERT of no rows would fire the statement trigger and ring the doorbell for nothing.
        upcoming = await self._upcoming()
        if upcoming is None or upcoming > timedelta(0):
            return 0, upcoming
        moved = await self._link.fetchrow(self._move, limit)
        upcoming = await self._upcoming()
        return (0 if moved is None else int(moved[0])), None if upcoming is None else max(upcoming, timedelta(0))

    async def _upcoming(self) -> timedelta | None:
        row = await self._link.fetchrow(self._next)
        wait: timedelta | None = None if row is None else row[0]
        return wait
