"""`sagapost parked`: messages an inbox could not handle, and what to do about them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import typer
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.core.audit import Decision
from sagapost.core.broker import Malformed
from sagapost.core.errors import ConfigurationError, ConflictError, NotFoundError
from sagapost.inbox.declared.tables import InboxTables
from sagapost.inbox.operated.inspection import ParkedMessage
from sagapost.inbox.operated.redrive import ParkedMessages
from sagapost.inbox.operated.selection import PARKED
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

__all__ = ["discard", "edit", "list_", "redrive", "show"]


T = TypeVar("T")

InboxName: TypeAlias = Annotated[str, typer.Argument(metavar="INBOX", help="Name of the inbox, e.g. warehouse.")]
ParkedId: TypeAlias = Annotated[int, typer.Argument(metavar="ID", help="Number of the parked message, as listed.")]
ParkedIds: TypeAlias = Annotated[
    list[int] | None,
    typer.Argument(metavar="ID...", help="Numbers of the parked messages, as listed.", show_default=False),
]
Where: TypeAlias = Annotated[list[str] | None, where_option(PARKED)]


def list_(
    inbox: InboxName,
    where: Where = None,
    limit: Limit = 100,
    after: After = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what is parked, in the order of parking."""
    chosen, start = PARKED.select(*(where or ())), -1 if after is None else after
    found = _run(env_file, inbox, lambda parked: parked.list(chosen, limit=limit, after=start))
    if as_json:
        write_json([_brief(message) for message in found])
        return
    columns = ("id", "state", "reason", "attempts", "parked", "type", "event")
    rows = [
        (
            str(message.id),
            message.state,
            message.reason,
            str(message.attempts),
            message.parked_at.isoformat(timespec="seconds"),
            message.content.type or "-",
            _event_id(message) or "-",
        )
        for message in found
    ]
    write_table(columns, rows, styles={"id": "cyan", "state": "bold"})


def show(
    inbox: InboxName,
    number: ParkedId,
    data: ShowData = False,
    env_file: EnvFile = None,
) -> None:
    """Show one parked message with its error, traceback and attributes, as JSON."""
    chosen = PARKED.select(numbers=[number])
    found = _run(env_file, inbox, lambda parked: parked.list(chosen))
    if not found:
        raise NotFoundError(f"The inbox {inbox!r} has no parked message {number}.")
    message = found[0]
    content = message.content
    shown = _brief(message) | {"error": message.error, "traceback": message.traceback, "topic": message.topic}
    if isinstance(content, Malformed):
        shown["headers"], shown["properties"] = dict(content.headers), dict(content.properties)
        body = content.body
    else:
        attributes = {name: getattr(content, name) for name in content.__struct_fields__ if name != "data"}
        shown["attributes"] = {name: _plain(value) for name, value in attributes.items() if value is not None}
        body = content.data
    shown["bytes"] = len(body)
    if data:
        shown["data"] = body.decode("utf-8", "backslashreplace")
    write_json(shown)


def redrive(
    inbox: InboxName,
    reason: Reason,
    actor: Actor,
    numbers: ParkedIds = None,
    where: Where = None,
    everything: Everything = False,
    per_second: Annotated[float | None, typer.Option(help="Spread them over time.", show_default=False)] = None,
    dry_run: DryRun = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Let parked messages be handled again, with a fresh budget of attempts; the order of a key is kept."""
    decision, chosen = Decision(actor, reason), meant(PARKED, numbers, where, everything=everything)
    result = _run(
        env_file,
        inbox,
        lambda parked: parked.redrive(chosen, decision, per_second=per_second, dry_run=dry_run),
    )
    if as_json:
        write_json(asdict(result) | {"dry_run": dry_run})
        _require_idle(numbers, result.in_work)
        return
    verb = "would be" if dry_run else "are"
    write_line(f"{result.waiting + result.behind} {verb} handled again ({result.behind} behind an earlier one)")
    if result.unreadable:
        write_line(f"{result.unreadable} of them could not be read as events; a consumer reads them again")
    if result.in_work:
        write_line(f"{result.in_work} left alone: being handled now")
    _require_idle(numbers, result.in_work)


def discard(
    inbox: InboxName,
    reason: Reason,
    actor: Actor,
    numbers: ParkedIds = None,
    where: Where = None,
    everything: Everything = False,
    dry_run: DryRun = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Give parked messages up; each is kept in the audit. The next message of its key goes on."""
    decision, chosen = Decision(actor, reason), meant(PARKED, numbers, where, everything=everything)
    count = _run(
        env_file,
        inbox,
        lambda parked: parked.discard(chosen, decision, dry_run=dry_run),
    )
    if as_json:
        write_json({"discarded": count, "dry_run": dry_run})
    else:
        write_line(f"{count} {'would be' if dry_run else 'are'} discarded")
    _require_idle(numbers, len(set(numbers or ())) - count)


def edit(
    inbox: InboxName,
    number: ParkedId,
    reason: Reason,
    actor: Actor,
    data_file: Annotated[Path | None, typer.Option(help="File with the new payload.", show_default=False)] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="CloudEvents attribute to replace.", show_default=False),
    ] = None,
    env_file: EnvFile = None,
) -> None:
    """Correct a parked message; the original goes to the audit. Redrive it afterwards."""
    decision = Decision(actor, reason)
    attributes: dict[str, str] = {}
    for entry in attribute or []:
        name, equals, value = entry.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {entry!r} is not of the form NAME=VALUE. Example: --set type=a.b.v1")
        attributes[name.strip()] = value
    try:
        data = None if data_file is None else data_file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"The file {data_file} cannot be read: {error.strerror}.") from None
    if data is None and not attributes:
        raise ConfigurationError("Say what to change, with --data-file or --set.")
    _run(env_file, inbox, lambda parked: parked.edit(number, decision, data=data, attributes=attributes))
    write_line(f"message {number} is changed; redrive it with: sagapost parked redrive {inbox} {number}")


# --- inside ---


def _require_idle(numbers: Sequence[int] | None, in_work: int) -> None:
    """Complain where messages that were named one by one were left alone; of a condition that is no surprise.

    :raises ConflictError: if there are such.
    """
    if numbers and in_work:
        raise ConflictError(f"{in_work} of the messages named are being handled just now. Try again later.")


def _run(env_file: Path | None, inbox: str, work: Callable[[ParkedMessages], Awaitable[T]]) -> T:
    async def at_inbox(loaded: LoadedSettings, tables: Tables) -> T:
        on_dead = loaded.settings.consumer.on_dead
        async with database.opened_engine(loaded) as engine:
            await _require_inbox(engine, tables.inbox, inbox)
            return await work(ParkedMessages(engine, tables.inbox, inbox, on_dead=on_dead))

    return at_desk(env_file, lambda tables: [tables.audit.part, tables.inbox.part], at_inbox)


async def _require_inbox(engine: AsyncEngine, tables: InboxTables, inbox: str) -> None:
    async with engine.connect() as connection:
        names = set((await connection.execute(select(tables.consumers.c.name))).scalars())
    if inbox not in names:
        known = ", ".join(sorted(names)) or "none has run yet"
        raise NotFoundError(f"This database knows no inbox {inbox!r}; it knows: {known}.")


def _event_id(message: ParkedMessage) -> str | None:
    content = message.content
    return content.message_id if isinstance(content, Malformed) else content.id


def _brief(message: ParkedMessage) -> dict[str, Any]:
    due = message.next_attempt_at
    return {
        "id": message.id,
        "state": message.state,
        "reason": message.reason,
        "attempts": message.attempts,
        "crashes": message.crashes,
        "next_attempt_at": None if due is None else due.isoformat(),
        "parked_at": message.parked_at.isoformat(),
        "type": message.content.type,
        "event_id": _event_id(message),
    }


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | dict) else str(value)
