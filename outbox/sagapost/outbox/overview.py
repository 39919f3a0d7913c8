"""What an operator wants to know of an outbox: who publishes from it, what waits for how long, what is held, and why.

For reading beside running relays. Every statement is bounded: it follows an index, or looks at the oldest rows only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Integer, Select, case, func, literal_column, select

from sagapost.core.databases import aware
from sagapost.core.databases.looking import count_up_to, moment
from sagapost.outbox import rules
from sagapost.outbox.tables import OutboxTables

__all__ = ["BlockedKey", "HeldEvent", "OutboxOverview", "RelaySeen", "TopicAge", "outbox_overview"]

WINDOW = 20_000
"""Topics and followers are looked for among so many of the oldest rows: no index has them, and a scan of a backlog of
millions would take seconds."""
COUNTED = 10_000
"""Counting stops here: whether it is ten thousand or a million changes nothing of what is to be done."""

# Written out and not as parameters: a generic plan must see that the partial indexes apply.
_REFUSED: ColumnElement[bool] = literal_column("attempts > 0")
_BLOCKING: ColumnElement[bool] = literal_column("blocks_key = 1")


@dataclass(frozen=True, slots=True)
class RelaySeen:
    """One relay that has announced itself and was not cleared."""

    relay: UUID
    since: datetime | None
    """When it started, by its host's clock: its id says so. None where the id is not one of this library's relays."""
    expires_in: timedelta
    """Until its announcement lapses; negative: it has, and the relay is taken for dead."""
    partitions: int
    """How many it owns now."""


@dataclass(frozen=True, slots=True)
class TopicAge:
    """What waits under one topic, among the oldest rows."""

    topic: str
    events: int
    oldest: timedelta


@dataclass(frozen=True, slots=True)
class HeldEvent:
    """An event that was refused; the relay tries it again."""

    position: int
    event_id: str
    type: str
    key: str | None
    attempts: int
    reason: str
    published_at: datetime | None
    """Its time; None where that is none."""
    due: datetime
    behind: int
    """How many events of its key wait for it, among the oldest rows."""


@dataclass(frozen=True, slots=True)
class BlockedKey:
    """A key that waits for an operator because of a dead letter."""

    position: int
    event_id: str
    type: str
    key: str | None
    attempts: int
    reason: str
    died_at: datetime
    behind: int


@dataclass(frozen=True, slots=True)
class OutboxOverview:
    """An outbox at one moment, by the database's clock."""

    now: datetime
    relays: Sequence[RelaySeen]
    """The oldest first."""
    partitions: int
    owned: int
    """Partitions whose owner lives."""
    topics: Sequence[TopicAge]
    """The one with the oldest event first."""
    held: int
    """Counted up to 10,000, as are the others."""
    held_events: Sequence[HeldEvent]
    """Some of them: those that are tried again first."""
    blocked: int
    blocked_keys: Sequence[BlockedKey]
    """Some of them, in the order of their keys."""
    overdue: int
    """Scheduled events whose time has come and that nobody has moved to the outbox."""
    overdue_for: timedelta | None
    """How long the first of them has been due."""

    @property
    def alive(self) -> Sequence[RelaySeen]:
        """The relays whose announcement has not lapsed."""
        return [relay for relay in self.relays if relay.expires_in > timedelta(0)]


def outbox_overview(connection: Connection, tables: OutboxTables, *, examples: int = 20) -> OutboxOverview:
    """Look at an outbox, in the caller's transaction, and change nothing.

    :param examples: how many held events, blocked keys and topics are named.
    """
    now = moment(connection)
    partitions, owners = _leases(connection, tables, now)
    held = _rows(connection, _held(tables, examples))
    blocked = _rows(connection, _blocking(tables, examples))
    behind = _behind(connection, tables, {row["key"] for row in (*held, *blocked)} - {None})
    outbox, dead, scheduled = tables.outbox, tables.dead, tables.scheduled
    overdue = scheduled.c.deliver_at <= now
    first = connection.execute(
        select(scheduled.c.deliver_at).where(overdue).order_by(scheduled.c.deliver_at).limit(1)
    ).scalar_one_or_none()
    return OutboxOverview(
        now=now,
        relays=_relays(connection, tables, now, owners),
        partitions=partitions,
        owned=sum(owners.values()),
        topics=_topics(connection, tables, now, examples),
        held=count_up_to(COUNTED, connection, outbox, _REFUSED, outbox.c.next_attempt_at),
        held_events=[_held_event(row, behind) for row in held],
        blocked=count_up_to(COUNTED, connection, dead, _BLOCKING, dead.c.partitionkey),
        blocked_keys=[_blocked_key(row, behind) for row in blocked],
        overdue=count_up_to(COUNTED, connection, scheduled, overdue, scheduled.c.deliver_at),
        overdue_for=None if first is None else now - aware(first),
    )


def _rows(connection: Connection, query: Select[*tuple[Any, ...]]) -> list[Mapping[str, Any]]:
    return [dict(row) for row in connection.execute(query).mappings()]


# --- who publishes ---


def _leases(connection: Connection, tables: OutboxTables, now: datetime) -> tuple[int, dict[UUID, int]]:
    leases, relays = tables.leases.c, tables.relays.c
    owned = connection.execute(
        select(leases.owner, func.count())
        .select_from(tables.leases.join(tables.relays, relays.relay == leases.owner))
        .where(relays.expires_at > now)
        .group_by(leases.owner)
    )
    owners: dict[UUID, int] = dict(owned.all())
    return connection.execute(select(func.count()).select_from(tables.leases)).scalar_one(), owners


def _relays(
    connection: Connection, tables: OutboxTables, now: datetime, owners: Mapping[UUID, int]
) -> Sequence[RelaySeen]:
    relays = tables.relays.c
    query = select(relays.relay, relays.expires_at).order_by(relays.relay).limit(COUNTED)
    return [
        RelaySeen(relay, _started(relay), aware(expires_at) - now, owners.get(relay, 0))
        for relay, expires_at in connection.execute(query)
    ]


def _started(relay: UUID) -> datetime | None:
    """Return when an identity was made: the first 48 bits of a UUIDv7 are milliseconds (RFC 9562)."""
    return datetime.fromtimestamp((relay.int >> 80) / 1000, UTC) if relay.version == 7 else None


# --- what waits ---


def _topics(connection: Connection, tables: OutboxTables, now: datetime, limit: int) -> Sequence[TopicAge]:
    outbox = tables.outbox
    oldest = (
        select(func.coalesce(outbox.c.topic, outbox.c.type).label("topic"), outbox.c.time)
        .order_by(outbox.c.position)
        .limit(WINDOW)
        .subquery()
    )
    first = func.min(oldest.c.time)
    query = (
        select(oldest.c.topic, func.count(), first)
        # Another writer's time may be none that a client can read. Asked of the window, for inside it the planner
        # would take the condition to leave few rows, and read the whole table for them.
        .where(rules.TIME)
        .group_by(oldest.c.topic)
        .order_by(first)
        .limit(limit)
    )
    return [
        TopicAge(topic, count, max(now - aware(since), timedelta(0)))
        for topic, count, since in connection.execute(query)
    ]


def _refused(columns: Any) -> Sequence[ColumnElement[Any]]:
    """Return what an outbox and its dead letters alike have of an event that the broker refused."""
    return (
        columns.position,
        columns.event_id,
        columns.type,
        columns.partitionkey.label("key"),
        columns.attempts,
        columns.last_error.label("reason"),
    )


def _held(tables: OutboxTables, limit: int) -> Select[*tuple[Any, ...]]:
    columns = tables.outbox.c
    return (
        select(
            *_refused(columns),
            case((rules.TIME, columns.time)).label("published_at"),
            columns.next_attempt_at.label("due"),
        )
        .where(_REFUSED)
        .order_by(columns.next_attempt_at)
        .limit(limit)
    )


def _blocking(tables: OutboxTables, limit: int) -> Select[*tuple[Any, ...]]:
    columns = tables.dead.c
    return (
        select(*_refused(columns), columns.died_at)
        .where(_BLOCKING)
        # As the index has them: the oldest first would be all of them, sorted.
        .order_by(columns.partitionkey)
        .limit(limit)
    )


def _behind(connection: Connection, tables: OutboxTables, keys: Collection[str]) -> Mapping[str, int]:
    """Count what was never sent of each of these keys."""
    if not keys:
        return {}
    outbox = tables.outbox
    oldest = select(outbox.c.partitionkey, outbox.c.attempts).order_by(outbox.c.position).limit(WINDOW).subquery()
    query = (
        select(oldest.c.partitionkey, func.sum(case((oldest.c.attempts == 0, 1), else_=0), type_=Integer))
        .where(oldest.c.partitionkey.in_(keys))
        .group_by(oldest.c.partitionkey)
    )
    return {key: int(count) for key, count in connection.execute(query)}


def _held_event(row: Mapping[str, Any], behind: Mapping[str, int]) -> HeldEvent:
    moment = row["published_at"]
    return HeldEvent(
        position=row["position"],
        event_id=str(row["event_id"]),
        type=row["type"],
        key=row["key"],
        attempts=row["attempts"],
        reason=row["reason"],
        published_at=None if moment is None else aware(moment),
        due=aware(row["due"]),
        behind=behind.get(row["key"], 0),
    )


def _blocked_key(row: Mapping[str, Any], behind: Mapping[str, int]) -> BlockedKey:
    return BlockedKey(
        position=row["position"],
        event_id=str(row["event_id"]),
        type=row["type"],
        key=row["key"],
        attempts=row["attempts"],
        reason=row["reason"],
        died_at=aware(row["died_at"]),
        behind=behind.get(row["key"], 0),
    )
