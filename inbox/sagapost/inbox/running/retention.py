"""Forgetting: dedup keys from before the window are deleted in small chunks, each in a transaction of its own."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, Row, delete, select

from sagapost.core.databases import Moments
from sagapost.inbox.declared.observations import PrunedKeys
from sagapost.inbox.declared.tables import InboxTables
from sagapost.inbox.handling.dispatch import Dispatcher
from sagapost.inbox.kept.attempts import BegunAttempts
from sagapost.inbox.running.shared import Shared

__all__ = ["Pruner", "Retention"]

_LONGER_THAN_THE_WINDOW = 1.1
"""Keys outlive the window by a tenth: `time` is stamped by the producer's clock, which may be ahead of ours."""

_REST = 0.05


class Retention:
    """The statements that forget; each method runs in the caller's transaction."""

    def __init__(self, tables: InboxTables, moments: Moments, *, consumer: int, window: timedelta) -> None:
        self._table = tables.seen
        self._moments = moments
        self._consumer = consumer
        self._age = window * _LONGER_THAN_THE_WINDOW
        self._from: datetime | None = None

    def prune(self, connection: Connection, *, limit: int) -> int:
        """Delete up to `limit` of the oldest keys from before the window; return how many.

        Several may do so at once: rows that another transaction holds are passed over. Each call begins where the
        last one of this object ended, and not among the index entries of what is deleted already.
        """
        columns = self._table.c
        oldest = (
            select(columns.key)
            .where(columns.consumer == self._consumer, columns.seen_at < self._moments.after(-self._age))
            .order_by(columns.seen_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        if self._from is not None:
            oldest = oldest.where(columns.seen_at >= self._from)
        rows: list[Row[tuple[datetime]]] = list(
            connection.execute(
                delete(self._table)
                .where(columns.consumer == self._consumer, columns.key.in_(oldest))
                .returning(columns.seen_at)
            )
        )
        # Nothing left: the next pass looks from the start, for what others held or an operator put in.
        self._from = max(row.seen_at for row in rows) if len(rows) >= limit else None
        return len(rows)


class Pruner:
    """Prunes from time to time, and learns how far the host's clock is from the database's while it is at it."""

    def __init__(
        self,
        shared: Shared,
        retention: Retention,
        attempts: BegunAttempts,
        moments: Moments,
        dispatcher: Dispatcher,
    ) -> None:
        self._retention = retention
        self._attempts = attempts
        self._moments = moments
        self._dispatcher = dispatcher
        self._database = shared.database
        self._availability = shared.availability
        self._settings = shared.settings
        self._observer = shared.observer
        self._runtime = shared.runtime
        self._consumer = shared.name

    async def run(self) -> None:
        """Prune until stopped."""
        await self._runtime.every(
            self._settings.prune_interval, lambda: self._availability.until_available(self._turn)
        )

    async def _turn(self) -> None:
        await self.read_clock()
        await self._pass()

    async def read_clock(self) -> None:
        """Compare the clocks."""
        theirs: datetime = await self._database.run(
            lambda connection: connection.execute(select(self._moments.now())).scalar_one()
        )
        ahead = self._runtime.clock.now() - theirs if theirs.tzinfo is not None else timedelta(0)
        self._dispatcher.clock_ahead = ahead

    async def _pass(self) -> None:
        chunk = self._settings.prune_chunk
        window = self._settings.retention
        forgotten = await self._database.run(lambda connection: self._attempts.forget(connection, older_than=window))
        if forgotten:
            self._observer.notify(PrunedKeys(self._consumer, 0, forgotten))
        while not self._runtime.stop.is_set():
            pruned = await self._database.run(lambda connection: self._retention.prune(connection, limit=chunk))
            if pruned:
                self._observer.notify(PrunedKeys(self._consumer, pruned))
            if pruned < chunk:
                return
            # Rest, so that a large backlog of old keys does not compete with the handlers.
            await self._runtime.clock.sleep(_REST)
