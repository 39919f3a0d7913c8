"""`sagapost dead`: events the relay gave up on, and what to do about them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import typer
from sqlalchemy.ext.asyncio import AsyncConnection

from sagapost.core.audit import Decision
from sagapost.core.databases import aware
from sagapost.ops import database
from sagapost.ops.commands.desk import (
    Actor,
    After,
    DryRun,
    Everything,
    Limit,
    Reason,
    ShowData,
    at_desk,
    meant,
    where_option,
)
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.output import write_json, write_line, write_table
from sagapost.ops.settings import LoadedSettings
from sagapost.ops.tables import Tables
from sagapost.outbox.dead_letters import DEAD_LETTERS, DeadLetter, DeadLetters

__all__ = ["discard", "list_", "redrive", "show"]

T = TypeVar("T")

Position: TypeAlias = Annotated[int, typer.Argument(metavar="POSITION", help="Position of the letter, as listed.")]
Positions: TypeAlias = Annotated[
    list[int] | None,
    typer.Argument(metavar="POSITION...", help="Positions of the letters, as listed.", show_default=False),
]
Where: TypeAlias = Annotated[list[str] | None, where_option(DEAD_LETTERS)]


def list_(
    where: Where = None, limit: Limit = 100, after: After = None, env_file: EnvFile = None, as_json: AsJson = False
) -> None:
    """Show the dead letters, oldest position first."""
    chosen, start = DEAD_LETTERS.select(*(where or ())), -1 if after is None else after
    letters = _run(env_file, lambda dead, connection: dead.list(connection, chosen, limit=limit, after=start))
    _show(letters, as_json=as_json)


def show(position: Position, data: ShowData = False, env_file: EnvFile = None) -> None:
    """Show one dead letter with its whole envelope and what the broker said, as JSON."""
    selection = DEAD_LETTERS.select(numbers=[position])
    for row in _run(env_file, lambda dead, connection: dead.show(connection, *selection.numbers)):
        write_json(_whole(row, data=data))


def redrive(
    reason: Reason,
    actor: Actor,
    positions: Positions = None,
    where: Where = None,
    everything: Everything = False,
    dry_run: DryRun = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters again, each with all others of its key, in the key's order."""
    decision, chosen = Decision(actor, reason), meant(DEAD_LETTERS, positions, where, everything=everything)
    letters = _run(env_file, lambda dead, connection: dead.redrive(connection, chosen, decision, dry_run=dry_run))
    _show(letters, as_json=as_json)
    if not as_json:
        write_line(f"{len(letters)} would be redriven" if dry_run else f"{len(letters)} redriven")


def discard(
    reason: Reason,
    actor: Actor,
    positions: Positions = None,
    where: Where = None,
    everything: Everything = False,
    dry_run: DryRun = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters; each is kept in the audit. What waited behind them goes on without them."""
    decision, chosen = Decision(actor, reason), meant(DEAD_LETTERS, positions, where, everything=everything)
    letters = _run(env_file, lambda dead, connection: dead.discard(connection, chosen, decision, dry_run=dry_run))
    _show(letters, as_json=as_json)
    if not as_json:
        write_line(f"{len(letters)} would be discarded" if dry_run else f"{len(letters)} discarded")


# --- inside ---


def _run(env_file: Path | None, act: Callable[[DeadLetters, AsyncConnection], Awaitable[T]]) -> T:
    """Act in one transaction on the settings' database."""

    async def work(loaded: LoadedSettings, tables: Tables) -> T:
        async with database.connect(loaded) as connection:
            return await act(DeadLetters(tables.outbox), connection)

    return at_desk(env_file, lambda tables: [tables.audit.part, tables.outbox.part], work)


def _whole(row: Mapping[str, Any], *, data: bool) -> dict[str, Any]:
    shown = {name: value for name, value in row.items() if name not in {"data", "slot", "key_hash"}}
    shown |= {"died_at": aware(row["died_at"]).isoformat(), "time": aware(row["time"]).isoformat()}
    shown |= {"event_id": str(row["event_id"]), "blocks_key": bool(row["blocks_key"]), "bytes": len(row["data"])}
    if data:
        shown["data"] = row["data"].decode("utf-8", "backslashreplace")
    return {name: value for name, value in shown.items() if value is not None}


def _show(letters: Sequence[DeadLetter], *, as_json: bool) -> None:
    if as_json:
        write_json([{**asdict(letter), "died_at": letter.died_at.isoformat()} for letter in letters])
        return
    write_table(
        ("position", "type", "key", "attempts", "died", "blocks", "reason"),
        [
            (
                str(letter.position),
                letter.type,
                letter.key or "-",
                str(letter.attempts),
                letter.died_at.isoformat(timespec="seconds"),
                "yes" if letter.blocks_key else "no",
                letter.reason,
            )
            for letter in letters
        ],
        prose={"reason"},
        styles={"position": "cyan"},
    )
