"""`sagapost dead`: events the relay gave up on, and what to do about them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Annotated, TypeAlias

import anyio
import typer
from sqlalchemy.ext.asyncio import AsyncConnection

from sagapost.core.audit import Decision
from sagapost.ops import database
from sagapost.ops.commands.desk import Actor, After, DryRun, Limit, Reason
from sagapost.ops.commands.loading import load
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.output import write_json, write_line, write_table
from sagapost.ops.tables import tables_of
from sagapost.outbox.dead_letters import DeadLetter, DeadLetters

__all__ = ["discard", "list_", "redrive"]


Position: TypeAlias = Annotated[
    int | None, typer.Argument(metavar="POSITION", help="Position of the dead letter, as listed.", show_default=False)
]
Key: TypeAlias = Annotated[str | None, typer.Option(help="Those of this ordering key.", show_default=False)]
Type: TypeAlias = Annotated[str | None, typer.Option("--type", help="Those of this event type.", show_default=False)]
Everything: TypeAlias = Annotated[bool, typer.Option("--all", help="Every dead letter.")]


def list_(
    limit: Limit = 100,
    after: After = 0,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the dead letters, oldest position first."""
    letters = _run(env_file, lambda dead, connection: dead.list(connection, limit=limit, after=after))
    _show(letters, as_json=as_json)


def redrive(
    reason: Reason,
    actor: Actor,
    position: Position = None,
    key: Key = None,
    type_: Type = None,
    everything: Everything = False,
    dry_run: DryRun = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters again, each with all others of its key, in the key's order."""
    decision = Decision(actor, reason)
    letters = _run(
        env_file,
        lambda dead, connection: dead.redrive(
            connection, decision, position=position, key=key, type_=type_, everything=everything, dry_run=dry_run
        ),
    )
    _show(letters, as_json=as_json)
    if not as_json:
        write_line(f"{len(letters)} would be redriven" if dry_run else f"{len(letters)} redriven")


def discard(
    reason: Reason,
    actor: Actor,
    position: Position = None,
    key: Key = None,
    type_: Type = None,
    everything: Everything = False,
    dry_run: DryRun = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters; each is kept in the audit. What waited behind them goes on without them."""
    decision = Decision(actor, reason)
    letters = _run(
        env_file,
        lambda dead, connection: dead.discard(
            connection, decision, position=position, key=key, type_=type_, everything=everything, dry_run=dry_run
        ),
    )
    _show(letters, as_json=as_json)
    if not as_json:
        write_line(f"{len(letters)} would be discarded" if dry_run else f"{len(letters)} discarded")


def _run(
    env_file: EnvFile, act: Callable[[DeadLetters, AsyncConnection], Awaitable[Sequence[DeadLetter]]]
) -> Sequence[DeadLetter]:
    """Act in one transaction on the settings' database."""
    loaded = load(required=("database_url",), env_file=env_file)
    tables = tables_of(loaded.settings)

    async def run() -> Sequence[DeadLetter]:
        async with database.connect(loaded) as connection:
            await database.check(connection, tables.versions, [tables.audit.part, tables.outbox.part])
            return await act(DeadLetters(tables.outbox), connection)

    return anyio.run(run)


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
