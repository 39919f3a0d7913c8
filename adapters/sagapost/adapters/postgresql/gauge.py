"""How far behind the outbox is."""

from __future__ import annotations

from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.adapters.postgresql.rows import qualified
from sagapost.core.outbox_store import OutboxBacklog, age_of
from sagapost.outbox.tables import OutboxTables

__all__ = ["PostgreSQLGauge"]

_COUNT_CAP = 100_000
"""Counting stops here: an exact count of a large backlog would scan it."""


class PostgreSQLGauge:
    """`OutboxGauge` on PostgreSQL."""

    def __init__(self, link: PostgreSQLLink, tables: OutboxTables) -> None:
        self._link = link
        outbox, dead, scheduled = (qualified(t) for t in (tables.outbox, tables.dead, tables.scheduled))
        self._measure = f"""
            SELECT (SELECT count(*) FROM (SELECT FROM {outbox} LIMIT {_COUNT_CAP}) o),
                   -- In seconds: another writer's time may be infinite, which no interval is everywhere.
                   (SELECT extract(epoch FROM clock_timestamp()) - extract(epoch FROM time)
                    FROM {outbox} WHERE isfinite(time) ORDER BY position LIMIT 1),
                   (SELECT count(*) FROM (SELECT FROM {scheduled} LIMIT {_COUNT_CAP}) s),
                   (SELECT count(*) FROM (SELECT FROM {outbox} WHERE attempts > 0 LIMIT {_COUNT_CAP}) h),
                   (SELECT count(*) FROM (SELECT FROM {dead} LIMIT {_COUNT_CAP}) d)"""

    async def measure(self) -> OutboxBacklog:
        """See `OutboxGauge.measure`."""
        row = await self._link.fetchrow(self._measure)
        assert row is not None  # noqa: S101 - a SELECT without FROM always has a row
        pending, age, scheduled, held, dead = row
        return OutboxBacklog(pending=pending, oldest_age=age_of(age), scheduled=scheduled, held=held, dead=dead)
