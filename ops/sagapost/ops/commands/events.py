"""`sagapost events`: where events are, from the row in the outbox to the saga."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, TypeAlias
from uuid import UUID

import typer
from sqlalchemy import Connection, select

from sagapost.core.databases import aware
from sagapost.core.errors import ConfigurationError, NotFoundError
from sagapost.core.sightings import EventNames, Sighting
from sagapost.core.where import plain_text
from sagapost.ops import database
from sagapost.ops.commands.desk import Limit, ShowData, at_desk, where_option
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.output import write_json, write_line, write_table
from sagapost.ops.settings import LoadedSettings
from sagapost.ops.tables import Tables
from sagapost.ops.trace import Trace, trace_event, trace_key
from sagapost.outbox.inspection import EVENTS, KeptEvent, OutboxInspection

__all__ = ["list_", "show", "trace"]

_NEXT = (
    "If it was published here, --type and --source say where it is to be looked for; else ask in the database of the "
    "service that published or consumes it."
)

EventId: TypeAlias = Annotated[str, typer.Argument(metavar="EVENT", help="The event's id.")]
Where: TypeAlias = Annotated[list[str] | None, where_option(EVENTS)]


def list_(where: Where = None, limit: Limit = 100, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show the events in the outbox: dead letters, then those that wait in their order, then those not due yet."""
    chosen = EVENTS.select(*(where or ()))

    async def work(loaded: LoadedSettings, tables: Tables) -> Sequence[KeptEvent]:
        inspection = OutboxInspection(tables.outbox)
        async with database.connect(loaded) as connection:
            return await connection.run_sync(lambda sync: inspection.list(sync, chosen, limit=limit))

    events = at_desk(env_file, lambda tables: [tables.outbox.part], work)
    if as_json:
        write_json([_plain(event) for event in events])
        return
    write_table(
        ("state", "position", "event", "type", "key", "attempts", "due", "why"),
        [
            (
                event.state,
                str(event.position),
                event.event_id,
                event.type,
                event.key or "-",
                str(event.attempts),
                "-" if event.due_at is None else event.due_at.isoformat(timespec="seconds"),
                event.error or "-",
            )
            for event in events
        ],
        prose={"why"},
        styles={"event": "cyan", "state": "bold"},
    )


def show(event: EventId, data: ShowData = False, env_file: EnvFile = None) -> None:
    """Show one event that the outbox keeps, with its whole envelope, as JSON."""
    plain_text(event, what="The event's id")

    async def work(loaded: LoadedSettings, tables: Tables) -> dict[str, Any] | None:
        async with database.connect(loaded) as connection:
            return await connection.run_sync(lambda sync: _whole(sync, tables, event, data=data))

    found = at_desk(env_file, lambda tables: [tables.outbox.part], work)
    if found is None:
        raise NotFoundError(
            f"The outbox keeps no event {event!r}: it was published, or never written here. Follow it with: "
            f"sagapost events trace {event}"
        )
    write_json(found)


def trace(
    event: Annotated[str | None, typer.Argument(metavar="EVENT", help="The event's id.", show_default=False)] = None,
    key: Annotated[
        str | None, typer.Option(help="Instead: what is on its way with this ordering key.", show_default=False)
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="The event's source, where nothing here knows it any more.", show_default=False),
    ] = None,
    type_: Annotated[
        str | None, typer.Option("--type", help="The event's type; likewise.", show_default=False)
    ] = None,
    limit: Limit = 100,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Follow one event, or one key: from its row through the broker and the inboxes of this database to the saga."""
    for value, what in ((event, "The event's id"), (key, "The key"), (source, "The source"), (type_, "The type")):
        plain_text(value or "", what=what)
    if (event is None) == (key is None):
        raise ConfigurationError("Name one event by its id, or one ordering key with --key.")

    async def work(loaded: LoadedSettings, _: Tables) -> Trace | Sequence[Sighting]:
        if key is not None:
            return await trace_key(loaded, key, limit=limit)
        return await trace_event(loaded, EventNames(event or "", source, type_))

    found = at_desk(env_file, lambda tables: [tables.outbox.part], work)
    if isinstance(found, Trace):
        if found.nothing_known:
            raise NotFoundError(
                f"This database knows nothing of the event {event!r}: {found.sightings[0].what}. {_NEXT}"
            )
        if as_json:
            write_json(found.as_json())
            return
        names = {name: value for name, value in asdict(found.names).items() if value is not None}
        for name, value in names.items():
            write_line(f"{name:<14} {value}")
        _write(found.sightings, about=False)
    elif as_json:
        write_json([{**asdict(each), "at": None if each.at is None else each.at.isoformat()} for each in found])
    else:
        _write(found, about=True)


# --- inside ---


def _write(sightings: Sequence[Sighting], *, about: bool) -> None:
    columns = ("where", "state", *(("event",) if about else ()), "at", "what")
    write_table(
        columns,
        [
            (
                each.place,
                each.state,
                *((str(each.facts.get("event_id") or "-"),) if about else ()),
                "-" if each.at is None else each.at.isoformat(timespec="seconds"),
                each.what,
            )
            for each in sightings
        ],
        prose={"what"},
        styles={"where": "cyan", "state": "bold"},
    )


def _whole(connection: Connection, tables: Tables, event: str, *, data: bool) -> dict[str, Any] | None:
    """Return the row of an event, column by column, with its place in the outbox."""
    inspection = OutboxInspection(tables.outbox)
    kept = inspection.find(connection, event)
    if not kept:
        return None
    table = {"dead": tables.outbox.dead, "scheduled": tables.outbox.scheduled}.get(kept[0].state, tables.outbox.outbox)
    row = connection.execute(select(table).where(table.c.event_id == UUID(event))).mappings().first()
    if row is None:
        return None
    shown = _plain(kept[0])
    for name, value in row.items():
        if name in {
            "subject",
            "datacontenttype",
            "dataschema",
            "causationid",
            "traceparent",
            "tracestate",
            "extensions",
        }:
            shown[name] = value
    shown = {name: value for name, value in shown.items() if value is not None}
    shown["waits_for"] = inspection.sighting(connection, kept[0]).facts.get("waits_for")
    if data:
        shown["data"] = row["data"].decode("utf-8", "backslashreplace")
    return shown


def _plain(event: KeptEvent) -> dict[str, Any]:
    due = None if event.due_at is None else event.due_at.isoformat()
    return {**asdict(event), "time": aware(event.time).isoformat(), "due_at": due}
