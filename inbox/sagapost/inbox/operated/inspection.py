"""Looking at what is parked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.core.broker import Malformed
from sagapost.core.clock import Clock, SystemClock
from sagapost.core.databases import aware
from sagapost.core.envelope import Event
from sagapost.core.where import Selection
from sagapost.inbox.declared.outcomes import ParkReason
from sagapost.inbox.declared.tables import InboxTables
from sagapost.inbox.kept.database import Database
from sagapost.inbox.kept.envelope import restore
from sagapost.inbox.kept.parking import State
from sagapost.inbox.kept.registry import find_consumer

__all__ = ["Inspection", "ParkedCounts", "ParkedMessage"]

T = TypeVar("T")

_TIMEOUT = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class ParkedMessage:
    """One parked message."""

    id: int
    state: State
    reason: ParkReason
    error: str
    traceback: str | None
    attempts: int
    crashes: int
    next_attempt_at: datetime | None
    parked_at: datetime
    topic: str
    content: Event | Malformed


@dataclass(frozen=True, slots=True)
class ParkedCounts:
    """How much is parked, and since when."""

    by_state: Mapping[State, int]
    by_reason: Mapping[ParkReason, int]
    oldest: datetime | None

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.by_state.values())


class Inspection:
    """The parked messages of one consumer, for reading. Safe beside running consumers.

    :param consumer: name of the inbox.
    """

    def __init__(self, engine: AsyncEngine, tables: InboxTables, consumer: str, *, clock: Clock | None = None) -> None:
        self._database = Database(engine, concurrency=1, timeout=_TIMEOUT)
        self._tables = tables
        self._table = tables.parked
        self._name = consumer
        self._moments = self._database.kit.moments(clock if clock is not None else SystemClock())

    async def list(
        self, selection: Selection | None = None, *, limit: int = 100, after: int = -1
    ) -> Sequence[ParkedMessage]:
        """Return parked messages in the order of parking; `after` is the id of the last one seen."""

        def read(connection: Connection, consumer: int) -> Sequence[ParkedMessage]:
            table = self._table
            rows = connection.execute(
                select(table)
                .where(*self._chosen(selection, consumer), table.c.id > after)
                .order_by(table.c.id)
                .limit(limit)
            )
            return [_message(row) for row in rows]

        return await self._run(read, ())

    async def counts(self) -> ParkedCounts:
        """Return how much is parked."""

        def read(connection: Connection, consumer: int) -> ParkedCounts:
            columns = self._table.c
            states: dict[State, int] = {}
            reasons: dict[ParkReason, int] = {}
            oldest: datetime | None = None
            for state, reason, number, since in connection.execute(
                select(columns.state, columns.reason, func.count(), func.min(columns.parked_at))
                .where(columns.consumer == consumer)
                .group_by(columns.state, columns.reason)
            ):
                states[state] = states.get(state, 0) + number
                reasons[reason] = reasons.get(reason, 0) + number
                oldest = aware(since) if oldest is None else min(oldest, aware(since))
            return ParkedCounts(states, reasons, oldest)

        return await self._run(read, ParkedCounts({}, {}, None))

    def _chosen(self, selection: Selection | None, consumer: int) -> Sequence[ColumnElement[bool]]:
        meant = [] if selection is None else selection.clauses(self._table, self._database.kit)
        return [self._table.c.consumer == consumer, *meant]

    async def _run(self, work: Callable[[Connection, int], T], nothing: T) -> T:
        def look_up(connection: Connection) -> T:
            consumer = find_consumer(connection, self._tables, self._name)
            return nothing if consumer is None else work(connection, consumer)

        return await self._database.run(look_up)


def _message(row: Any) -> ParkedMessage:
    return ParkedMessage(
        id=row.id,
        state=row.state,
        reason=row.reason,
        error=row.error,
        traceback=row.traceback,
        attempts=row.attempts,
        crashes=row.crashes,
        next_attempt_at=None if row.next_attempt_at is None else aware(row.next_attempt_at),
        parked_at=aware(row.parked_at),
        topic=row.topic,
        content=restore(row.envelope, row.data),
    )
