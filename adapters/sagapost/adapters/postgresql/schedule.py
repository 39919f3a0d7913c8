"""Scheduled events: moved into the outbox when due, each exactly once among all relays."""

from __future__ import annotations

from datetime import timedelta

from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.adapters.postgresql.rows import ENVELOPE, qualified
from sagapost.core.errors import StoreError, StoreRefusedError, StoreUnavailableError
from sagapost.core.outbox_store import BuriedEvent, DueEvents
from sagapost.outbox.doorbell import ONE_PHASE
from sagapost.outbox.recorded import recorded
from sagapost.outbox.tables import OutboxTables

__all__ = ["PostgreSQLSchedule"]


class PostgreSQLSchedule:
    """`OutboxSchedule` on PostgreSQL."""

    def __init__(self, link: PostgreSQLLink, tables: OutboxTables) -> None:
        self._link = link
        outbox, scheduled, dead = (qualified(t) for t in (tables.outbox, tables.scheduled, tables.dead))

        # One statement deletes here and inserts there, so a crash leaves the row in exactly one of the tables, and
        # SKIP LOCKED gives two relays different rows. Moved rows get positions in the order in which they were due.
        # An event happens when it is published: one that was due long ago, since no relay ran, is not old.
        moving = ENVELOPE.replace('"time"', recorded('"time"'))

        def move(due: str) -> str:
            return f"""
                WITH due AS (
                    SELECT id FROM {scheduled} WHERE {due} FOR UPDATE SKIP LOCKED
                ), gone AS (
                    DELETE FROM {scheduled} s USING due WHERE s.id = due.id RETURNING s.*
                ), moved AS (
                    INSERT {ONE_PHASE} INTO {outbox} ({ENVELOPE})
                    SELECT {moving} FROM gone ORDER BY deliver_at, id RETURNING 1
                )
                SELECT count(*) FROM moved"""

        self._move = move("deliver_at <= clock_timestamp() ORDER BY deliver_at, id LIMIT $1::int")
        self._move_one = move("id = $1::bigint")
        self._due = f"""
            SELECT id FROM {scheduled} WHERE deliver_at <= clock_timestamp() ORDER BY deliver_at, id LIMIT $1::int"""
        # It never had a position. A negative one is free, and a redriven event goes first.
        self._bury = f"""
            WITH gone AS (DELETE FROM {scheduled} WHERE id = $1::bigint RETURNING *)
            INSERT INTO {dead} (position, {ENVELOPE}, attempts, last_error)
            SELECT -id, {ENVELOPE}, 0, $2::text FROM gone
            ON CONFLICT (position, event_id) DO NOTHING RETURNING position, event_id, type, partitionkey"""
        # Clamped to a day: of infinity, or of a year that no client knows, there is no interval.
        self._next = f"""
            SELECT extract(epoch FROM least(greatest(first, '0001-01-01 00:00:00+00'), now() + interval '1 day')
                                      - clock_timestamp())
            FROM (SELECT min(deliver_at) AS first FROM {scheduled}) s
            WHERE first IS NOT NULL"""

    async def move_due(self, *, limit: int) -> DueEvents:
        """See `OutboxSchedule.move_due`."""
        # Asked first: an INSERT of no rows would fire the statement trigger and ring the doorbell for nothing.
        upcoming = await self._upcoming()
        if upcoming is None or upcoming > timedelta(0):
            return DueEvents(0, upcoming)
        buried: list[BuriedEvent] = []
        try:
            moved = await self._link.fetchrow(self._move, limit)
            count = 0 if moved is None else int(moved[0])
        except (StoreUnavailableError, StoreRefusedError):
            raise
        except StoreError:
            count = await self._move_each(limit, buried)
        upcoming = await self._upcoming()
        return DueEvents(count, None if upcoming is None else max(upcoming, timedelta(0)), buried)

    async def _move_each(self, limit: int, buried: list[BuriedEvent]) -> int:
        """Move due events one by one: the outbox refuses one of them, which becomes a dead letter."""
        count = 0
        for (row,) in await self._link.fetch(self._due, limit):
            try:
                moved = await self._link.fetchrow(self._move_one, row)
                count += 0 if moved is None else int(moved[0])
            except (StoreUnavailableError, StoreRefusedError):
                raise
            except StoreError as error:
                reason = f"the outbox refuses this scheduled event: {error}"
                for position, event_id, type_, key in await self._link.fetch(self._bury, row, reason):
                    buried.append(BuriedEvent(int(position), str(event_id), str(type_), key, reason))
        return count

    async def _upcoming(self) -> timedelta | None:
        row = await self._link.fetchrow(self._next)
        return None if row is None else timedelta(seconds=float(row[0]))
