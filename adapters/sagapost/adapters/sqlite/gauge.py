"""How far behind the outbox is."""

from __future__ import annotations

import sqlite3

from sagapost.adapters.sqlite.connection import SQLiteLink
from sagapost.adapters.sqlite.rows import quoted, seconds_until
from sagapost.core.outbox_store import OutboxBacklog, age_of
from sagapost.outbox.tables import OutboxTables

__all__ = ["SQLiteGauge"]

_COUNT_CAP = 100_000
"""Counting stops here: an exact count of a large backlog would scan it."""


class SQLiteGauge:
    """`OutboxGauge` on SQLite."""

    def __init__(self, link: SQLiteLink, tables: OutboxTables) -> None:
        self._link = link
        outbox, dead, scheduled = (quoted(t) for t in (tables.outbox, tables.dead, tables.scheduled))
        self._measure = f"""
            SELECT (SELECT count(*) FROM (SELECT 1 FROM {outbox} LIMIT {_COUNT_CAP})),
                   (SELECT -{seconds_until("time")} FROM {outbox} ORDER BY position LIMIT 1),
                   (SELECT count(*) FROM (SELECT 1 FROM {scheduled} LIMIT {_COUNT_CAP})),
                   (SELECT count(*) FROM (SELECT 1 FROM {outbox} WHERE attempts > 0 LIMIT {_COUNT_CAP})),
                   (SELECT count(*) FROM (SELECT 1 FROM {dead} LIMIT {_COUNT_CAP}))"""

    async def measure(self) -> OutboxBacklog:
        """See `OutboxGauge.measure`."""

        def work(connection: sqlite3.Connection) -> OutboxBacklog:
            pending, age, scheduled, held, dead = connection.execute(self._measure).fetchone()
            return OutboxBacklog(pending=pending, oldest_age=age_of(age), scheduled=scheduled, held=held, dead=dead)

        return await self._link.read(work)
