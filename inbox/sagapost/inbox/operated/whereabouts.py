"""Where an event is in the inboxes of a database: not there yet, in work, handled, or parked, and why.

For reading beside running consumers. An inbox remembers what it handled by a key that follows from source and id (and,
of ids that are no UUIDv7, the type), so those have to be known, or found among those that the database knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select

from sagapost.core.databases import aware
from sagapost.core.envelope import Event
from sagapost.core.identity import KEY_BYTES, dedup_key
from sagapost.core.sightings import EventNames, Sighting
from sagapost.inbox.declared.tables import InboxTables

__all__ = ["Whereabouts"]

_BEYOND = b"\xff" * 4
"""No key of a named transaction of an event is beyond its own key and this."""
_TIME_BYTES = 6


class Whereabouts:
    """The inboxes of one database; every method runs in the caller's transaction and changes nothing."""

    def __init__(self, tables: InboxTables) -> None:
        self._tables = tables

    def consumers(self, connection: Connection) -> Mapping[int, str]:
        """Return the inboxes that have ever run here, by number."""
        columns = self._tables.consumers.c
        rows = connection.execute(select(columns.id, columns.name).order_by(columns.name))
        return {row.id: row.name for row in rows}

    def parked(self, connection: Connection, *, event_id: str | None = None, key: str | None = None) -> Sequence[Any]:
        """Return the parked rows of an event, or of an ordering key in the order of parking; at most a hundred."""
        columns = self._tables.parked.c
        query = select(self._tables.parked).order_by(columns.id).limit(100)
        if event_id is not None:
            query = query.where(columns.event_id == event_id)
        if key is not None:
            query = query.where(columns.partitionkey == key)
        return connection.execute(query).all()

    def takers(self, connection: Connection, type_: str) -> Mapping[str, datetime]:
        """Return the inboxes that take a type, with when a process that does so started last."""
        consumers, types = self._tables.consumers.c, self._tables.types.c
        rows = connection.execute(
            select(consumers.name, types.known_at)
            .where(types.consumer == consumers.id, types.type == type_)
            .order_by(consumers.name)
        )
        return {row.name: aware(row.known_at).astimezone(UTC) for row in rows}

    def source_of(self, connection: Connection, names: EventNames, sources: Iterable[str]) -> str | None:
        """Return which of some sources an event came from, if an inbox remembers it under that one."""
        seen, consumers = self._tables.seen.c, list(self.consumers(connection))
        for source in sources:
            key = _key(names, source)
            if key is None:
                continue
            # From its own key to those of named transactions.
            remembered = select(seen.key).where(
                seen.consumer.in_(consumers), seen.key >= key, seen.key <= key + _BEYOND
            )
            if connection.execute(remembered.limit(1)).first() is not None:
                return source
        return None

    def handled(self, connection: Connection, names: EventNames) -> Sequence[Sighting]:
        """Return where an event is remembered, parked or in work, in each inbox that knows of it.

        Several of one inbox: handlers in transactions of their own.
        """
        consumers = self.consumers(connection)
        rows = self.parked(connection, event_id=names.id)
        sightings = [self.parked_sighting(consumers[row.consumer], row) for row in rows]
        key = _key(names, names.source)
        if key is None:
            return sightings
        parked = {(row.consumer, row.key) for row in rows}
        for table, state, what in (
            (self._tables.seen, "handled", "its effects are committed; another copy would be a duplicate"),
            (self._tables.attempts, "in work", "handed out again after a process had died with it, and being handled"),
        ):
            at = table.c.seen_at if state == "handled" else table.c.last_started_at
            found = select(table.c.consumer, table.c.key, at.label("at")).where(
                table.c.consumer.in_(consumers), table.c.key >= key, table.c.key <= key + _BEYOND
            )
            sightings += [
                Sighting(
                    f"inbox {consumers[row.consumer]}", state, _apart(row.key, what), aware(row.at).astimezone(UTC)
                )
                for row in connection.execute(found)
                # What is parked is remembered too, so that a copy of it is a duplicate.
                if (row.consumer, row.key) not in parked
            ]
        return sightings

    def perhaps(self, connection: Connection, names: EventNames) -> int:
        """Return how many events of the id's millisecond were handled here: what is known without the source."""
        key = _key(names, "")
        if key is None or not _is_timed(names.id):
            return 0
        seen = self._tables.seen.c
        first = key[:_TIME_BYTES]
        found = select(seen.key).where(
            seen.consumer.in_(list(self.consumers(connection))),
            seen.key >= first,
            seen.key <= first + b"\xff" * KEY_BYTES,
        )
        return len({row.key[:KEY_BYTES] for row in connection.execute(found.limit(1_000))})

    def parked_sighting(self, inbox: str, row: Any) -> Sighting:
        """Return what a parked row says."""
        facts: dict[str, str | int | None] = {
            "id": row.id,
            "reason": row.reason,
            "attempts": row.attempts,
            "event_id": row.event_id,
        }
        place, at = f"inbox {inbox}", aware(row.parked_at).astimezone(UTC)
        due = None if row.next_attempt_at is None else aware(row.next_attempt_at).astimezone(UTC)
        if row.claimed:
            return Sighting(place, "in work", f"taken out of the parked messages; before: {row.error}", at, facts)
        match row.state:
            case "waiting":
                when = "" if due is None else f" at {due.isoformat(timespec='seconds')}"
                what = f"{row.error} It is tried again{when}"
            case "behind":
                what = "parked behind an earlier message of its ordering key"
            case _:
                what = f"{row.error} An operator decides: sagapost parked show {inbox} {row.id}"
        return Sighting(place, f"parked, {row.state}", _apart(row.key, what), at, facts)


def _key(names: EventNames, source: str | None) -> bytes | None:
    """Return the dedup key, if enough is known for it."""
    if source is None or (names.type is None and not _is_timed(names.id)):
        return None
    return dedup_key(Event(id=names.id, source=source, type=names.type or "", time=datetime.now(UTC)))


def _is_timed(id_: str) -> bool:
    """Return whether the key of an id does not depend on the type of the event (see `sagapost.core.identity`)."""
    one, other = (dedup_key(Event(id=id_, source="", type=type_, time=datetime.now(UTC))) for type_ in ("a", "b"))
    return one == other


def _apart(key: bytes, what: str) -> str:
    return f"{what} (in a transaction of its own)" if len(key) > KEY_BYTES else what
