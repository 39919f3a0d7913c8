"""`sagapost tasks`: decisions that sagas wait for, and deciding them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import anyio
import typer

from sagapost.core.errors import ConfigurationError
from sagapost.ops import database
from sagapost.ops.commands.desk import Actor
from sagapost.ops.commands.loading import load
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.output import write_json, write_line, write_table
from sagapost.ops.tables import tables_of
from sagapost.sagas import Task, TaskDesk

__all__ = ["list_", "resolve", "show"]


T = TypeVar("T")

TaskId: TypeAlias = Annotated[int, typer.Argument(metavar="TASK", help="Number of the task, as listed.")]
Service: TypeAlias = Annotated[str | None, typer.Option(help="Only this service's.", show_default=False)]
Saga: TypeAlias = Annotated[str | None, typer.Option(help="Only this saga's (correlation id).", show_default=False)]
Name: TypeAlias = Annotated[str | None, typer.Option(help="Only tasks of this name.", show_default=False)]


def list_(
    service: Service = None,
    saga: Saga = None,
    name: Name = None,
    everything: Annotated[bool, typer.Option("--all", help="Resolved and withdrawn ones too.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    after: Annotated[int, typer.Option(help="Begin after this number.")] = 0,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the open tasks, oldest first."""
    state = None if everything else "open"
    found = _run(
        env_file,
        lambda desk: desk.list(state=state, service=service, saga=saga, name=name, after=after, limit=limit),
    )
    if as_json:
        write_json([_plain(task) for task in found])
        return
    now = datetime.now(UTC)
    rows = [
        (
            str(task.id),
            "late" if task.state == "open" and task.due_at is not None and task.due_at < now else task.state,
            task.opened_at.isoformat(timespec="seconds"),
            task.service,
            task.saga,
            task.name,
            task.title,
        )
        for task in found
    ]
    write_table(
        ("task", "state", "opened", "service", "saga", "name", "title"),
        rows,
        prose={"title"},
        styles={"task": "cyan", "state": "bold"},
    )


def show(task: TaskId, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show one task: what is to be decided, what is known, and what each outcome does."""
    found = _run(env_file, lambda desk: desk.show(task))
    if as_json:
        write_json(_plain(found))
        return
    write_line(f"task {found.id} ({found.name}) of {found.service}, {found.state}")
    write_line(f"saga    {found.saga}")
    write_line(f"opened  {found.opened_at.isoformat(timespec='seconds')}")
    if found.due_at is not None:
        write_line(f"due     {found.due_at.isoformat(timespec='seconds')}")
    write_line(f"what    {found.title}")
    for field, value in found.details.items():
        write_line(f"  {field}: {value if isinstance(value, str) else json.dumps(value)}")
    if found.state != "open":
        outcome = f"as {found.outcome} by {found.decided_by}: " if found.outcome is not None else ""
        write_line(f"{found.state} {outcome}{found.note or ''}")
        return
    write_line("outcomes:")
    for name, does in found.outcomes.items():
        asks = "".join(f" --set {field}=..." for field in found.asks.get(name, ()))
        write_line(f"  {name}{asks}: {does}")


def resolve(
    task: TaskId,
    outcome: Annotated[str, typer.Option(help="One of the task's outcomes; see `sagapost tasks show`.")],
    note: Annotated[str, typer.Option(help="Why; kept with the task.")],
    actor: Actor,
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="What the outcome asks for; the value as JSON, or as plain text.",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Retry the step not before this time, in ISO 8601 with a timezone.",
            show_default=False,
        ),
    ] = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Decide a task: its outcome is carried out once, in the same transaction as the record of who decided and why."""
    fields = dict(_field(entry) for entry in field or [])
    moment = _moment(until) if until is not None else None
    done = _run(env_file, lambda desk: desk.resolve(task, outcome, by=actor, note=note, fields=fields, until=moment))
    if as_json:
        write_json(asdict(done))
        return
    write_line(f"task {done.task} is resolved as {done.outcome}: {done.did}")


# --- inside ---


def _run(env_file: Path | None, work: Callable[[TaskDesk], Awaitable[T]]) -> T:
    loaded = load(required=("database_url",), env_file=env_file)

    async def run() -> T:
        tables = tables_of(loaded.settings)
        async with database.connect(loaded) as connection:
            await database.check(connection, tables.versions, [tables.sagas.part])
        async with database.opened_engine(loaded) as engine:
            return await work(TaskDesk(engine, sagas=tables.sagas, outbox=tables.outbox, inbox=tables.inbox))

    return anyio.run(run)


def _field(entry: str) -> tuple[str, Any]:
    name, equals, value = entry.partition("=")
    if not equals:
        raise ConfigurationError(f"--set {entry!r} is not of the form FIELD=VALUE. Example: --set courier=DHL")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"--until {text!r} is no time in ISO 8601. Example: 2026-12-01T08:00+01:00") from None


def _plain(task: Task) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(task).items()}
