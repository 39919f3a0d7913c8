"""`sagapost saga list|show|tree|watch|rollback|retry`: where sagas are, asked of the tracker's database."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import anyio
import msgspec
import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.core.audit import Decision
from sagapost.core.errors import ConfigurationError, NotFoundError
from sagapost.core.where import plain_text
from sagapost.ops import database
from sagapost.ops.commands.desk import Actor, DryRun, at_desk, where_option
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.output import write_json, write_line, write_table, write_text
from sagapost.ops.settings import LoadedSettings
from sagapost.ops.tables import Tables
from sagapost.outbox import Outbox
from sagapost.sagas.choreography import Choreography, read_manifest
from sagapost.sagas.events import RetryRequested, RollbackRequested
from sagapost.sagas.tracker import SagaRow, SagaState, SagaView, Tracker, timeline, tree
from sagapost.sagas.tracker.listing import SAGAS

__all__ = ["differences", "list_", "retry", "rollback", "show", "tree_", "watch"]

T = TypeVar("T")

Saga: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="SAGA", help="Its id, or a business key: 4711, or order_id=4711."),
]
Where: TypeAlias = Annotated[list[str] | None, where_option(SAGAS)]
Manifests: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option("--manifest", help="Manifest file instead of those the tracker has; repeatable.", show_default=False),
]

_COLOURS = {
    SagaState.RUNNING: "cyan",
    SagaState.COMPLETED: "green",
    SagaState.ROLLING_BACK: "yellow",
    SagaState.ROLLED_BACK: "blue",
    SagaState.WAITING: "magenta",
    SagaState.STUCK: "bold red",
}


def list_(
    state: Annotated[
        list[SagaState] | None, typer.Option(help="Only sagas in this state; repeatable.", show_default=False)
    ] = None,
    where: Where = None,
    late: Annotated[bool, typer.Option("--late", help="Only those with a deadline that has passed.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show sagas, those that started last first. From the tracker's database, SAGAPOST_DATABASE_URL."""
    chosen = SAGAS.select(*(where or ()))
    rows = _ask(
        env_file, None, lambda tracker: tracker.sagas(states=state or (), late=late, selection=chosen, limit=limit)
    )
    if as_json:
        write_json([_plain(row) for row in rows])
        return
    write_table(
        ("saga", "state", "started", "last event", "events", "late", "keys", "why"),
        [_cells(row) for row in rows],
        prose={"why"},
        styles={"saga": "cyan", "state": "bold", "late": "red"},
    )


def show(saga: Saga, manifest: Manifests = None, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show one saga: its timeline, what is expected next, who is late, and how far its rollback is."""
    view = _view(saga, manifest, env_file)
    if as_json:
        write_json(_plain(view))
        return
    _print(timeline(view, now=datetime.now(UTC)), view)


def tree_(saga: Saga, manifest: Manifests = None, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show one saga's events, each below the one whose handling caused it."""
    view = _view(saga, manifest, env_file)
    if as_json:
        write_json([{"id": e.id, "cause": e.cause, "type": e.type, "source": e.source} for e in view.history])
        return
    _print(tree(view), view)


def watch(
    saga: Saga,
    manifest: Manifests = None,
    interval: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between two looks.")] = 1.0,
    env_file: EnvFile = None,
) -> None:
    """Show one saga again whenever something happened, until it is over."""

    async def follow(tracker: Tracker) -> None:
        known: str | None = None
        while True:
            view = await _found(tracker, saga)
            text = timeline(view)
            if text != known:
                known = text
                _print(text, view)
            if view.state.over:
                return
            await anyio.sleep(interval)

    _ask(env_file, manifest, follow)


def differences(manifest: Manifests = None, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Compare what services published with what their manifests declare."""
    found = _ask(env_file, manifest, lambda tracker: tracker.differences())
    if as_json:
        write_json([asdict(item) for item in found])
        return
    write_table(
        ("kind", "service", "event", "first seen in"),
        [(item.kind, item.service, item.event, item.saga or "") for item in found],
    )


def rollback(
    saga: Saga,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit, and by services with their rollback.")],
    actor: Actor,
    dry_run: DryRun = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Ask every service to undo its part of a saga. The request goes out through the tracker's outbox."""
    name = _request(env_file, saga, "rollback", Decision(actor, reason), dry_run=dry_run)
    _write_request(name, "rollback", "roll back saga", dry_run=dry_run, as_json=as_json)


def retry(
    saga: Saga,
    reason: Annotated[str, typer.Option(help="What has changed, so that it may work now; kept in the audit.")],
    actor: Actor,
    dry_run: DryRun = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Ask every service to try the compensations again at which its part of a saga is stuck."""
    name = _request(env_file, saga, "retry", Decision(actor, reason), dry_run=dry_run)
    _write_request(name, "retry", "try again where it is stuck: saga", dry_run=dry_run, as_json=as_json)


# --- inside ---


def _ask(env_file: Path | None, manifests: list[Path] | None, work: Callable[[Tracker], Awaitable[T]]) -> T:
    choreography = Choreography(read_manifest(path) for path in manifests) if manifests else None

    async def ask(loaded: LoadedSettings, tables: Tables) -> T:
        async with database.opened_engine(loaded) as engine:
            return await work(await _tracker(engine, tables, choreography))

    return at_desk(env_file, lambda tables: [tables.tracker.part], ask)


async def _tracker(engine: AsyncEngine, tables: Tables, choreography: Choreography | None) -> Tracker:
    tracker = Tracker(engine, choreography, tables=tables.tracker)
    if choreography is None:
        await tracker.recall()
    return tracker


def _view(saga: str, manifests: list[Path] | None, env_file: Path | None) -> SagaView:
    return _ask(env_file, manifests, lambda tracker: _found(tracker, saga))


async def _found(tracker: Tracker, asked: str) -> SagaView:
    """Return the saga of this id or business key.

    :raises NotFoundError: if there is none.
    :raises ConfigurationError: if there are several.
    """
    view = await tracker.show(plain_text(asked, what="The saga"))
    if view is not None:
        return view
    name, equals, value = asked.partition("=")
    sagas = await tracker.find(value, name=name) if equals else await tracker.find(asked)
    if len(sagas) > 1:
        shown = ", ".join(sagas[:5])
        raise ConfigurationError(f"{len(sagas)} sagas have the key {asked!r}: {shown}. Name one by its id.")
    view = await tracker.show(sagas[0]) if sagas else None
    if view is None:
        raise NotFoundError(
            f"The tracker knows no saga with the id or key {asked!r}. `sagapost saga list` shows what it knows."
        )
    return view


def _request(
    env_file: Path | None, saga: str, action: Literal["rollback", "retry"], decision: Decision, *, dry_run: bool
) -> str:
    """Ask every service for something, and record it in the same transaction; return the saga's id."""
    ask = RollbackRequested if action == "rollback" else RetryRequested

    async def work(loaded: LoadedSettings, tables: Tables) -> str:
        outbox = Outbox(source="urn:sagapost:tracker", tables=tables.outbox)
        async with database.opened_engine(loaded) as engine:
            name = (await _found(await _tracker(engine, tables, None), saga)).saga
            if not dry_run:
                async with engine.begin() as connection:
                    payload = ask(decision.reason, decision.actor)
                    event = await outbox.publish(connection, payload, correlationid=name)
                    about = {"subject": name, "correlationid": name, "event_id": event.id, "type": event.type}
                    await connection.execute(tables.audit.record(decision, "saga", action), [about])
            return name

    return at_desk(env_file, lambda tables: [tables.audit.part, tables.outbox.part, tables.tracker.part], work)


def _write_request(saga: str, action: str, asked: str, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        write_json({"saga": saga, "action": action, "dry_run": dry_run})
        return
    write_line(f"{'would ask' if dry_run else 'asked'} every service to {asked} {saga}")


def _cells(row: SagaRow) -> tuple[str, ...]:
    late = row.due is not None and row.due <= datetime.now(UTC)
    return (
        row.saga,
        row.state.value,
        row.started.isoformat(timespec="seconds"),
        row.last.isoformat(timespec="seconds"),
        str(row.events),
        "late" if late else "",
        " ".join(f"{name}={value}" for name, value in row.keys),
        row.reason or "",
    )


def _plain(value: object) -> Any:
    return msgspec.to_builtins(value)


def _print(text: str, view: SagaView) -> None:
    if not sys.stdout.isatty():
        write_text(text)
        return
    # Not needed, and not quick to import, where a program reads.
    from rich.console import Console
    from rich.text import Text

    lines = Text(text)
    lines.highlight_regex(rf"(?<=  ){view.state.value}", _COLOURS[view.state])
    lines.highlight_regex(r"✗.*|late by.*|stuck at.*", "red")
    lines.highlight_regex(r"^ +\+[0-9.]+s", "dim")
    lines.highlight_regex(r"^  (rollback|asks|deadline|expected) .*", "yellow")
    Console(file=sys.stdout, highlight=False).print(lines, end="")
