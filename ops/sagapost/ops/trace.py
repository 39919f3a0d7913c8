"""One event, or the events of one ordering key, from the row in the outbox to the saga, as one database knows it.

What is not here is somebody else's to say: an event that was confirmed is in the queues of its consumers, whose
inboxes may be in other databases; the same command there goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, select

from sagapost.core.audit import DECISIONS, AuditEntry
from sagapost.core.databases import kit_of
from sagapost.core.sightings import EventNames, Sighting
from sagapost.inbox.operated.whereabouts import Whereabouts
from sagapost.ops import database
from sagapost.ops.settings import LoadedSettings
from sagapost.ops.status.seen import ask_broker, installed
from sagapost.ops.tables import Tables, tables_of
from sagapost.outbox.inspection import EVENTS, KeptEvent, OutboxInspection
from sagapost.sagas.whereabouts import saga_of_event, saga_sightings, tracked_sighting

__all__ = ["Trace", "trace_event", "trace_key"]

_SOURCES = 1_000
"""How many rows are looked at for the sources of events that are known here."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What is known of an event, and where it was seen, in the order of its way."""

    names: EventNames
    sightings: Sequence[Sighting]

    @property
    def nothing_known(self) -> bool:
        """Whether this database knows nothing of the event: not even that there was one."""
        return [sighting.state for sighting in self.sightings] == ["no row"]

    def as_json(self) -> dict[str, Any]:
        """Return it for a program."""
        return {
            **asdict(self.names),
            "sightings": [
                {**asdict(each), "at": None if each.at is None else each.at.isoformat()} for each in self.sightings
            ],
        }


async def trace_event(loaded: LoadedSettings, names: EventNames) -> Trace:
    """Follow an event; what is given of its names besides its id need not be looked for."""
    async with database.connect(loaded) as connection:
        trace, waiting = await connection.run_sync(lambda sync: _Look(sync, loaded).follow(names))
    if not waiting:
        return trace
    broker = await ask_broker(loaded, waiting)
    if broker is None or broker.problem is not None:
        return trace
    depths = {queue.queue: queue for queue in broker.queues}
    sightings = list(trace.sightings)
    for place, sighting in enumerate(sightings):
        depth = depths.get(sighting.place.removeprefix("inbox "))
        if sighting.state == "not arrived" and depth is not None and depth.messages is not None:
            facts = {"queued": depth.messages, "consumers": depth.consumers, "dead_letters": depth.dead_letters}
            what = f"{sighting.what}; {depth.messages} wait in its queue, for {depth.consumers} consumers"
            if depth.dead_letters:
                what += f", and {depth.dead_letters} are in {depth.dead_letter_queue}"
            sightings[place] = Sighting(sighting.place, sighting.state, what, sighting.at, facts)
    return Trace(trace.names, sightings)


async def trace_key(loaded: LoadedSettings, key: str, *, limit: int) -> Sequence[Sighting]:
    """Return the events of an ordering key that are on their way, in its order: the others wait for the first."""
    async with database.connect(loaded) as connection:
        return await connection.run_sync(lambda sync: _Look(sync, loaded).of_key(key, limit))


class _Look:
    """One look at one database, in one transaction."""

    def __init__(self, connection: Connection, loaded: LoadedSettings) -> None:
        self._connection = connection
        self._tables: Tables = tables_of(loaded.settings, with_tracker=True)
        self._there = {
            part.name for part in self._tables.parts if installed(connection, loaded, self._tables.versions, part)
        }
        self._outbox = OutboxInspection(self._tables.outbox)
        self._inboxes = Whereabouts(self._tables.inbox)

    def of_key(self, key: str, limit: int) -> Sequence[Sighting]:
        """Return what is parked with this key, then what is in the outbox: that was published later."""
        sightings: list[Sighting] = []
        if "inbox" in self._there:
            names = self._inboxes.consumers(self._connection)
            rows = self._inboxes.parked(self._connection, key=key)
            sightings += [self._inboxes.parked_sighting(names[row.consumer], row) for row in rows]
        events = self._outbox.list(self._connection, EVENTS.equal(key=key), limit=limit)
        for event in sorted(events, key=lambda each: (each.state == "scheduled", each.position)):
            sighting = self._outbox.sighting(self._connection, event)
            facts = {**sighting.facts, "event_id": event.event_id}
            sightings.append(Sighting(sighting.place, sighting.state, sighting.what, sighting.at, facts))
        return sightings

    def follow(self, names: EventNames) -> tuple[Trace, list[str]]:
        """Return the trace, and the inboxes in whose queues the event may be."""
        rows = self._outbox.find(self._connection, names.id)
        for row in rows:
            names = names.and_also(_names_of_row(row))
        decisions = self._decisions(names.id)
        for entry in decisions:
            names = names.and_also(EventNames(names.id, entry.source, entry.type, entry.key, entry.correlationid))
        names, arrived, waiting = self._in_inboxes(names)
        sightings = [self._outbox.sighting(self._connection, row) for row in rows]
        if not rows:
            sightings.append(_gone(arrived, decisions))
        sightings += [*map(_decided, decisions), *arrived]
        if not rows:
            sightings += [
                Sighting(f"inbox {inbox}", "not arrived", "takes events of this type and has not handled this one")
                for inbox in waiting
            ]
        return Trace(*self._in_saga(names, sightings)), [] if rows else waiting

    # --- inside ---

    def _decisions(self, event_id: str) -> Sequence[AuditEntry]:
        if "audit" not in self._there:
            return ()
        audit = self._tables.audit
        query = audit.select(DECISIONS.equal(event_id=event_id), kit_of(self._connection))
        return [*reversed(audit.entries(self._connection.execute(query).all()))]

    def _in_inboxes(self, names: EventNames) -> tuple[EventNames, Sequence[Sighting], list[str]]:
        """Return what more is known of the event, where it was seen, and which inboxes it has still to reach."""
        if "inbox" not in self._there:
            return names, (), []
        connection, inboxes = self._connection, self._inboxes
        for row in inboxes.parked(connection, event_id=names.id):
            names = names.and_also(EventNames(names.id, row.source, row.type, row.partitionkey, row.correlationid))
        if names.source is None:
            found = inboxes.source_of(connection, names, self._known_sources())
            names = names.and_also(EventNames(names.id, found))
        sightings = list(inboxes.handled(connection, names))
        if names.source is None and (number := inboxes.perhaps(connection, names)):
            what = (
                f"{number} events of the same millisecond were handled; which, follows from their sources: "
                "name this one's with --source"
            )
            sightings.append(Sighting("inbox", "unknown", what))
        if names.type is None:
            return names, sightings, []
        seen = {sighting.place for sighting in sightings}
        takers = inboxes.takers(connection, names.type)
        return names, sightings, [inbox for inbox in takers if f"inbox {inbox}" not in seen]

    def _known_sources(self) -> list[str]:
        """Return the sources of events that are known here, from small tables and the latest rows of larger ones."""
        tables = self._tables
        columns = [tables.inbox.parked.c.source, tables.outbox.outbox.c.source, tables.outbox.dead.c.source]
        if "sagas" in self._there:
            columns.append(tables.sagas.tasks.c.source)
        if "tracker" in self._there:
            columns.append(tables.tracker.observed.c.source)
        found: dict[str, None] = {}
        for column in columns:
            order = next(iter(column.table.primary_key.columns))
            latest = select(column).where(column.is_not(None)).order_by(order.desc()).limit(_SOURCES).subquery()
            found |= dict.fromkeys(self._connection.execute(select(latest.c.source).distinct()).scalars())
        return list(found)

    def _in_saga(self, names: EventNames, sightings: list[Sighting]) -> tuple[EventNames, Sequence[Sighting]]:
        tables = self._tables
        if "sagas" in self._there:
            if names.correlationid is None:
                found = saga_of_event(self._connection, tables.sagas, names.id)
                names = names.and_also(EventNames(names.id, correlationid=found))
            if names.correlationid is not None:
                sightings += saga_sightings(self._connection, tables.sagas, names.correlationid, names.id)
        if "tracker" in self._there and names.correlationid is not None:
            tracked = tracked_sighting(self._connection, tables.tracker, names.correlationid)
            sightings += [] if tracked is None else [tracked]
        return names, sightings


def _names_of_row(row: KeptEvent) -> EventNames:
    return EventNames(row.event_id, row.source, row.type, row.key, row.correlationid)


def _gone(arrived: Sequence[Sighting], decisions: Sequence[AuditEntry]) -> Sighting:
    """Return what it means that an event has no row in the outbox."""
    if any(entry.desk == "dead" and entry.action == "discard" for entry in decisions):
        return Sighting("outbox", "discarded", "an operator gave the event up before it was published")
    if any(sighting.state != "unknown" for sighting in arrived):
        return Sighting(
            "outbox", "confirmed", "no row any more: the broker has confirmed the event, which was handed on"
        )
    return Sighting(
        "outbox",
        "no row",
        "the broker has confirmed the event and its row was deleted; or it was published from another database, or "
        "its transaction was rolled back",
    )


def _decided(entry: AuditEntry) -> Sighting:
    what = f"{entry.actor} decided: {entry.action} {entry.desk} {entry.subject}, since {json.dumps(entry.reason)}"
    return Sighting("audit", entry.action, what, entry.at, {"id": entry.id})
