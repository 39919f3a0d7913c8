"""Events that are on their way: in the outbox, scheduled, and parked by an inbox."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Table, func, select

from sagapost.core.broker import Malformed
from sagapost.core.envelope import Event
from sagapost.core.errors import DecodingError
from sagapost.core.findings import Severity
from sagapost.inbox.declared.inbox import Inbox
from sagapost.inbox.kept.envelope import restore
from sagapost.inbox.kept.registry import find_consumer
from sagapost.outbox.tables import OutboxTables
from sagapost.sagas.inflight.code import Code
from sagapost.sagas.inflight.findings import Collector
from sagapost.sagas.inflight.paging import pages
from sagapost.sagas.sagas import Sagas

__all__ = ["Taken", "check_deadlines", "check_outbox", "check_parked", "check_removed"]

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_KEEP = (
    "Keep a handler for it, or convert it (inbox.upcast), until none is on its way. Handlers elsewhere are known by "
    "their manifests (--manifest)."
)


class Taken:
    """What versions before this one took, by their own word (`inbox_types`)."""

    def __init__(self, connection: Connection, inboxes: Iterable[Inbox]) -> None:
        self.by: dict[str, list[str]] = {}
        """Event type -> the inboxes whose earlier versions took it."""
        self.silent: set[str] = set()
        """Inboxes that have never run."""
        self.numbers: dict[str, int] = {}
        for inbox in inboxes:
            number = find_consumer(connection, inbox.tables, inbox.name)
            types = inbox.tables.types.c
            if number is None:
                self.silent.add(inbox.name)
                continue
            self.numbers[inbox.name] = number
            known = list(connection.execute(select(types.type).where(types.consumer == number)).scalars())
            for type_ in known:
                self.by.setdefault(type_, []).append(inbox.name)
            if not known:
                self.silent.add(inbox.name)


def check_outbox(
    connection: Connection, tables: OutboxTables, code: Code, taken: Taken, found: Collector, *, deep: bool
) -> None:
    """Hold every event in the outbox against the handlers that take it, or took it."""
    for table, number in ((tables.outbox, tables.outbox.c.position), (tables.scheduled, tables.scheduled.c.id)):
        columns = table.c
        counts = select(columns.type, func.count().label("events"), func.min(columns.correlationid).label("saga"))
        types: list[str] = []
        for row in connection.execute(counts.group_by(columns.type).order_by(columns.type)):
            found.looked_at["events"] += row.events
            if code.takers(row.type):
                types.append(row.type)
            else:
                _untaken(code, taken, row, found)
        if deep and types:
            _read_all(connection, table, number, types, code, found)


def _untaken(code: Code, taken: Taken, row: Any, found: Collector) -> None:
    """An event that no inbox of this deployment takes: is it one of ours?"""
    if row.type in code.elsewhere:
        return
    owners, message = taken.by.get(row.type, []), "events are on their way that versions before this one took"
    other = code.other_version(row.type)
    if not owners and other is not None:
        # Nobody has said what the versions before this one took, where none has run since that is recorded.
        owners = [inbox.name for inbox in code.takers(other) if inbox.name in taken.silent]
        message = f"events are on their way of which the service takes another version only, {other!r}"
    for owner in owners:
        found.add(
            Severity.ERROR,
            "event",
            owner,
            row.type,
            message,
            _KEEP,
            count=row.events,
            saga=row.saga,
        )


def _read_all(
    connection: Connection, table: Table, number: Any, types: list[str], code: Code, found: Collector
) -> None:
    columns = table.c
    listed = select(number, columns.type, columns.topic, columns.correlationid, columns.data)
    for row in pages(connection, listed.where(columns.type.in_(types)), number):
        event = Event(id="in flight", source="in flight", type=row.type, time=_NEVER, data=row.data)
        for inbox in code.takers(row.type, row.topic):
            _read(inbox, event, row.topic, row.correlationid, Severity.ERROR, "on their way", found)


def _read(
    inbox: Inbox, event: Event, topic: str | None, saga: str | None, severity: Severity, where: str, found: Collector
) -> None:
    try:
        Code.read(inbox, event, topic)
    except DecodingError as error:
        found.add(
            severity,
            "payload",
            inbox.name,
            event.type,
            f"events are {where} whose data does not fit {error.cls.__name__} any more: {error.reason}",
            "Keep reading what was published: give new fields a default, keep the types of old ones, or name the new "
            "form with a version of its own.",
            saga=saga,
        )


def check_deadlines(connection: Connection, sagas: Sagas, code: Code, found: Collector) -> None:
    """Hold every deadline of a service against its handlers, and against the names its steps know."""
    columns = sagas.outbox.tables.scheduled.c
    prefix = sagas.deadline_name("")
    declared = {deadline.name for step in sagas.steps.values() for deadline in (*step.deadlines, *step.cancels)}
    counts = (
        select(columns.name, columns.type, func.count().label("events"), func.min(columns.correlationid).label("saga"))
        .where(columns.name.startswith(prefix, autoescape=True))
        .group_by(columns.name, columns.type)
        .order_by(columns.name)
    )
    for row in connection.execute(counts):
        name = row.name.removeprefix(prefix)
        found.looked_at["deadlines"] += row.events
        if not code.takers(row.type) and row.type not in code.elsewhere:
            found.add(
                Severity.ERROR,
                "deadline",
                sagas.service,
                name,
                f"deadlines are running whose event {row.type!r} nobody takes",
                _KEEP,
                count=row.events,
                saga=row.saga,
            )
        elif declared and name not in declared:
            found.add(
                Severity.ERROR,
                "deadline",
                sagas.service,
                name,
                "deadlines are running under a name that no step sets or takes back: they pass, whatever happens",
                "Keep the deadline's name, or keep cancelling the old one, until none is running.",
                count=row.events,
                saga=row.saga,
            )


def check_parked(connection: Connection, inbox: Inbox, taken: Taken, found: Collector, *, deep: bool) -> None:
    """Hold every parked message against the handlers that would be given it."""
    number = taken.numbers.get(inbox.name)
    if number is None:
        return
    columns = inbox.tables.parked.c
    listed = select(columns.id, columns.type, columns.topic, columns.state, columns.reason, columns.correlationid)
    listed = listed.add_columns(columns.envelope, columns.data) if deep else listed
    for row in pages(connection, listed.where(columns.consumer == number), columns.id):
        found.looked_at["parked messages"] += 1
        dead = row.state == "dead"
        severity = Severity.WARNING if dead else Severity.ERROR
        where = "kept as dead letters" if dead else "parked"
        if row.reason == "undecodable" or row.type is None:
            continue
        if not inbox.calls(row.type, row.topic):
            found.add(
                severity,
                "event",
                inbox.name,
                row.type,
                f"messages of type {row.type!r} are {where}, and no handler takes them",
                "Keep a handler until they are handled, or discard them.",
                saga=row.correlationid,
            )
        elif deep:
            content = _restored(row)
            if content is not None:
                _read(inbox, content, row.topic, row.correlationid, severity, where, found)


def _restored(row: Any) -> Event | None:
    try:
        content = restore(row.envelope, row.data)
    except (ValueError, TypeError, KeyError):
        return None
    return None if isinstance(content, Malformed) else content


def check_removed(code: Code, taken: Taken, found: Collector) -> None:
    """Name what earlier versions took and this one does not: some may be in the broker's queue."""
    for inbox in code.inboxes:
        for type_, owners in sorted(taken.by.items()):
            if inbox.name in owners and type_ not in inbox.takes and not inbox.calls(type_, type_):
                found.add(
                    Severity.ADVICE,
                    "event",
                    inbox.name,
                    type_,
                    "versions before this one took it, and its queue may be bound to it still",
                    "Remove the queue's binding once the new version is all that runs.",
                    count=0,
                )
