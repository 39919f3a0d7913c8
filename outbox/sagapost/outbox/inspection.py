"""The events that an outbox keeps: those that wait, are held, are dead, or not due yet. For reading, beside relays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    FromClause,
    Integer,
    String,
    Text,
    case,
    func,
    literal,
    literal_column,
    null,
    select,
)
from sqlalchemy import cast as sql_cast

from sagapost.core.databases import aware, kit_of
from sagapost.core.sightings import Sighting
from sagapost.core.where import Field, Fields, Selection
from sagapost.outbox.tables import OutboxTables

__all__ = ["EVENTS", "EventState", "KeptEvent", "OutboxInspection"]

EventState: TypeAlias = Literal["pending", "held", "scheduled", "dead"]

EVENTS = Fields(
    Field("event_id", "event_id", "uuid"),
    Field("state", "state", "choice", ("pending", "held", "scheduled", "dead")),
    Field("position", "position", "number"),
    Field("type", "type"),
    Field("source", "source"),
    Field("topic", "topic"),
    Field("key", "partitionkey"),
    Field("correlationid", "correlationid"),
    Field("attempts", "attempts", "number"),
    Field("error", "last_error"),
    Field("due", "due_at", "time"),
    Field("before", "time", "before"),
    Field("after", "time", "after"),
    number="position",
)
"""What can be asked about events in the outbox; `before` and `after` are about the event's own time."""


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """One event that has not been published yet. Its data is not shown: it may be personal."""

    state: EventState
    """`pending`: waits for a relay. `held`: the broker refused it, and it is tried again. `scheduled`: not due yet.
    `dead`: given up."""
    position: int
    """Of its row: where it is in the order of the outbox, or the number of a scheduled event."""
    event_id: str
    type: str
    source: str
    topic: str
    key: str | None
    correlationid: str | None
    time: datetime
    attempts: int
    error: str | None
    due_at: datetime | None
    """When it is tried or published."""
    blocks_key: bool
    """Later events of its key wait for it."""
    size: int
    """Bytes of data."""


class OutboxInspection:
    """The events that one outbox keeps; every method runs in the caller's transaction and changes nothing."""

    def __init__(self, tables: OutboxTables) -> None:
        self._tables = tables

    def list(self, connection: Connection, selection: Selection, *, limit: int = 100) -> Sequence[KeptEvent]:
        """Return events: the dead letters, then what waits in the order of the outbox, then what is not due yet."""
        kit = kit_of(connection)
        found: Sequence[KeptEvent] = ()
        for rows in self._sources():
            if len(found) < limit:
                query = select(rows).where(*selection.clauses(rows, kit)).order_by(rows.c.position)
                found = [*found, *map(_kept, connection.execute(query.limit(limit - len(found))))]
        return found

    def find(self, connection: Connection, event_id: str) -> Sequence[KeptEvent]:
        """Return the rows of an event: one, or none once it was published. Reads the whole outbox."""
        try:
            return self.list(connection, EVENTS.equal(event_id=UUID(event_id)))
        except ValueError:
            # Not ours: ids in the outbox are UUIDs.
            return ()

    def in_front_of(self, connection: Connection, event: KeptEvent) -> KeptEvent | None:
        """Return the first event of its key that a waiting event waits for; None: it may go."""
        if event.key is None or event.state not in {"pending", "held"}:
            return None
        outbox, dead = self._tables.outbox.c, self._tables.dead.c
        # Literals: both conditions are those of partial indexes.
        refused, blocking = outbox.attempts > literal_column("0"), dead.blocks_key == literal_column("1")
        held = select(func.min(outbox.position)).where(
            refused, outbox.partitionkey == event.key, outbox.position < event.position
        )
        given_up = select(func.min(dead.position)).where(blocking, dead.partitionkey == event.key)
        positions = [connection.execute(query).scalar() for query in (given_up, held)]
        first = min((position for position in positions if position is not None), default=None)
        if first is None:
            return None
        states = ("dead", "held") if first == positions[0] else ("held",)
        found = self.list(connection, EVENTS.equal(position=first, key=event.key), limit=2)
        return next((each for each in found if each.state in states), None)

    def sighting(self, connection: Connection, event: KeptEvent) -> Sighting:
        """Return where an event is in the outbox, and what it waits for."""
        facts: dict[str, str | int | None] = {"position": event.position, "attempts": event.attempts}
        place = "outbox"
        match event.state:
            case "dead":
                what = f"given up: {event.error}. See: sagapost dead redrive {event.position}"
                return Sighting(place, event.state, what, event.time, facts | {"blocks_key": int(event.blocks_key)})
            case "scheduled":
                return Sighting(place, event.state, f"is published at {_shown(event.due_at)}", event.time, facts)
            case "held":
                what = f"refused: {event.error}. It is tried again at {_shown(event.due_at)}"
            case "pending":
                what = "committed, and waits for a relay to publish it"
        front = self.in_front_of(connection, event)
        if front is not None:
            what = f"waits for event {front.event_id} of its key, which is {front.state}: {front.error}"
            facts |= {"waits_for": front.event_id}
        return Sighting(place, event.state, what, event.time, facts)

    # --- inside ---

    def _sources(self) -> Sequence[FromClause]:
        """The three tables with the same columns, in the order in which an operator wants to see them."""
        outbox, dead, scheduled = self._tables.outbox.c, self._tables.dead.c, self._tables.scheduled.c
        # NULLs and text with their types: a condition may be put on any of them.
        never, nothing = sql_cast(null(), DateTime(timezone=True)), sql_cast(null(), Text)
        refused = outbox.attempts > 0
        return [
            _rows(
                dead, dead.position, literal("dead", String), (dead.attempts, dead.last_error, never, dead.blocks_key)
            ),
            _rows(
                outbox,
                outbox.position,
                case((refused, literal("held", String)), else_=literal("pending", String)),
                (outbox.attempts, outbox.last_error, outbox.next_attempt_at, case((refused, 1), else_=0)),
            ),
            _rows(
                scheduled,
                scheduled.id,
                literal("scheduled", String),
                (literal(0, Integer), nothing, scheduled.deliver_at, literal(0, Integer)),
            ),
        ]


def _rows(
    columns: Any, position: ColumnElement[int], state: ColumnElement[str], way: tuple[ColumnElement[Any], ...]
) -> FromClause:
    same = [columns[name] for name in ("event_id", "type", "source", "partitionkey", "correlationid", "time")]
    topic = func.coalesce(columns.topic, columns.type).label("topic")
    size = func.length(columns.data).label("size")
    names = ("attempts", "last_error", "due_at", "blocks_key")
    differs = [value.label(name) for name, value in zip(names, way, strict=True)]
    return select(position.label("position"), state.label("state"), topic, size, *same, *differs).subquery()


def _kept(row: Any) -> KeptEvent:
    return KeptEvent(
        state=row.state,
        position=row.position,
        event_id=str(row.event_id),
        type=row.type,
        source=row.source,
        topic=row.topic,
        key=row.partitionkey,
        correlationid=row.correlationid,
        time=aware(row.time).astimezone(UTC),
        attempts=row.attempts,
        error=row.last_error,
        due_at=None if row.due_at is None else aware(row.due_at).astimezone(UTC),
        blocks_key=bool(row.blocks_key),
        size=row.size,
    )


def _shown(moment: datetime | None) -> str:
    return "once a relay runs" if moment is None else moment.isoformat(timespec="seconds")
