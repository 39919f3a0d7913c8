"""`sagapost audit`: what operators decided, when and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from sagapost.core.audit import DECISIONS, AuditEntry
from sagapost.core.databases import kit_of
from sagapost.core.errors import NotFoundError
from sagapost.core.where import MOST, Selection
from sagapost.ops import database
from sagapost.ops.commands.desk import Limit, ShowData, at_desk, where_option
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.output import write_json, write_table
from sagapost.ops.settings import LoadedSettings
from sagapost.ops.tables import Tables

__all__ = ["list_", "show"]

Where: TypeAlias = Annotated[list[str] | None, where_option(DECISIONS)]
EntryId: TypeAlias = Annotated[int, typer.Argument(metavar="ID", help="Number of the decision, as listed.")]


def list_(
    where: Where = None,
    limit: Limit = 100,
    end: Annotated[
        int | None,
        typer.Option("--before", min=1, max=MOST, help="Begin before this number: the next page.", show_default=False),
    ] = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what operators decided, the latest first."""
    entries = _read(env_file, DECISIONS.select(*(where or ())), limit=limit, end=end)
    if as_json:
        write_json([_brief(entry) for entry in entries])
        return
    write_table(
        ("id", "at", "actor", "action", "what", "event", "reason"),
        [
            (
                str(entry.id),
                entry.at.isoformat(timespec="seconds"),
                entry.actor,
                entry.action,
                " ".join(filter(None, (entry.desk, entry.place, entry.subject))),
                entry.event_id or "-",
                entry.reason,
            )
            for entry in entries
        ],
        prose={"reason"},
        styles={"id": "cyan", "action": "bold"},
    )


def show(number: EntryId, data: ShowData = False, env_file: EnvFile = None) -> None:
    """Show one decision with what it removed or replaced, as JSON."""
    entries = _read(env_file, DECISIONS.select(numbers=[number]))
    if not entries:
        raise NotFoundError(f"The audit has no decision {number}. List them with `sagapost audit list`.")
    (entry,) = entries
    shown = _brief(entry)
    if entry.original is not None and entry.data is not None:
        shown |= {"original": json.loads(entry.original), "bytes": len(entry.data)}
        if data:
            shown["data"] = entry.data.decode("utf-8", "backslashreplace")
    write_json(shown)


def _read(
    env_file: Path | None, selection: Selection, *, limit: int = 1, end: int | None = None
) -> Sequence[AuditEntry]:
    async def work(loaded: LoadedSettings, tables: Tables) -> Sequence[AuditEntry]:
        audit = tables.audit
        async with database.connect(loaded) as connection:
            query = audit.select(selection, kit_of(connection), limit=limit, end=end)
            return audit.entries((await connection.execute(query)).all())

    return at_desk(env_file, lambda tables: [tables.audit.part], work)


def _brief(entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": entry.at.isoformat(),
        "actor": entry.actor,
        "action": entry.action,
        "reason": entry.reason,
        "desk": entry.desk,
        "place": entry.place,
        "subject": entry.subject,
        "did": entry.did,
        "event_id": entry.event_id,
        "source": entry.source,
        "type": entry.type,
        "key": entry.key,
        "correlationid": entry.correlationid,
    }
