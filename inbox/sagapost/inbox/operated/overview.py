"""What the inboxes of a database have parked, with the errors: what people look at first.

For reading beside running consumers. Every statement is bounded: counting stops at 100,000 messages of an inbox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from sagapost.core.databases import aware
from sagapost.core.databases.looking import moment
from sagapost.inbox.declared.tables import InboxTables

__all__ = ["InboxOverview", "ParkedExample", "inbox_overview"]

COUNTED = 100_000


@dataclass(frozen=True, slots=True)
class ParkedExample:
    """One parked message, in brief."""

    id: int
    state: str
    reason: str
    error: str
    type: str | None
    event_id: str | None
    key: str | None
    attempts: int
    age: timedelta
    """Since it was parked."""
    behind: int
    """How many later messages of its key wait for it; 0 in an inbox that is not ordered."""


@dataclass(frozen=True, slots=True)
class InboxOverview:
    """What one inbox has parked, by the database's clock."""

    by_state: Mapping[str, int]
    by_reason: Mapping[str, int]
    oldest: datetime | None
    """When the first message was parked that is still here."""
    oldest_waiting: timedelta | None
    """For how long the first of those that wait or are behind one has been parked."""
    examples: Sequence[ParkedExample]
    """Some of those that are dead, then of those that wait after a failure; the oldest first."""


def inbox_overview(connection: Connection, tables: InboxTables, *, examples: int = 5) -> dict[str, InboxOverview]:
    """Return what each inbox of a database has parked, by the inbox's name. In the caller's transaction.

    :param examples: how many messages in each state are named.
    """
    consumers = tables.consumers.c
    now = moment(connection)
    names = {name: number for number, name in connection.execute(select(consumers.id, consumers.name))}
    return {name: _overview(connection, tables, names[name], now, examples) for name in sorted(names)}


def _overview(
    connection: Connection, tables: InboxTables, consumer: int, now: datetime, examples: int
) -> InboxOverview:
    parked = tables.parked.c
    some = (
        select(parked.state, parked.reason, parked.parked_at)
        .where(parked.consumer == consumer)
        .limit(COUNTED)
        .subquery()
    )
    grouped = select(some.c.state, some.c.reason, func.count(), func.min(some.c.parked_at)).group_by(
        some.c.state, some.c.reason
    )
    states: dict[str, int] = {}
    reasons: dict[str, int] = {}
    first: dict[str, datetime] = {}
    for state, reason, count, since in connection.execute(grouped):
        states[state] = states.get(state, 0) + count
        reasons[reason] = reasons.get(reason, 0) + count
        first[state] = min(aware(since), first.get(state, aware(since)))
    waiting = [since for state, since in first.items() if state != "dead"]
    found = [
        each
        for state in ("dead", "waiting")
        if states.get(state)
        for each in _examples(connection, tables, consumer, state, now, examples)
    ]
    return InboxOverview(
        by_state=states,
        by_reason=reasons,
        oldest=min(first.values(), default=None),
        oldest_waiting=now - min(waiting) if waiting else None,
        examples=found,
    )


def _examples(
    connection: Connection, tables: InboxTables, consumer: int, state: str, now: datetime, limit: int
) -> list[ParkedExample]:
    parked = tables.parked.c
    oldest = (
        select(
            parked.id,
            parked.state,
            parked.reason,
            parked.error,
            parked.type,
            parked.event_id,
            parked.partitionkey,
            parked.attempts,
            parked.ordered,
            parked.parked_at,
        )
        .where(parked.consumer == consumer)
        .order_by(parked.id)
        .limit(COUNTED)
        .subquery()
    )
    rows = connection.execute(select(oldest).where(oldest.c.state == state).order_by(oldest.c.id).limit(limit)).all()
    return [
        ParkedExample(
            id=row.id,
            state=row.state,
            reason=row.reason,
            error=row.error,
            type=row.type,
            event_id=row.event_id,
            key=row.partitionkey,
            attempts=row.attempts,
            age=now - aware(row.parked_at),
            behind=_behind(connection, tables, consumer, row.partitionkey, row.id) if row.ordered else 0,
        )
        for row in rows
    ]


def _behind(connection: Connection, tables: InboxTables, consumer: int, key: str | None, after: int) -> int:
    if key is None:
        return 0
    parked = tables.parked.c
    followers = (
        select(parked.id)
        .where(parked.consumer == consumer, parked.partitionkey == key, parked.ordered == 1, parked.id > after)
        .limit(COUNTED)
        .subquery()
    )
    return connection.execute(select(func.count()).select_from(followers)).scalar_one()
