"""`sagapost tasks`: decisions that sagas wait for, and deciding them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import typer

from sagapost.core.errors import ConfigurationError
from sagapost.ops import database
from sagapost.ops.commands.desk import (
    Actor,
    After,
    DryRun,
    Everything,
    Limit,
    Reason,
    at_desk,
    meant,
    where_option,
)
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.output import write_json, write_line, write_table
from sagapost.ops.settings import LoadedSettings
from sagapost.ops.tables import Tables
from sagapost.sagas import Task, TaskDesk
from sagapost.sagas.task_desk import TASKS, Resolution

__all__ = ["list_", "resolve", "show"]


T = TypeVar("T")

_MOST_AT_ONCE = 10_000
"""Tasks that one command decides."""

TaskId: TypeAlias = Annotated[int, typer.Argument(metavar="TASK", help="Number of the task, as listed.")]
TaskIds: TypeAlias = Annotated[
    list[int] | None, typer.Argument(metavar="TASK...", help="Numbers of the tasks, as listed.", show_default=False)
]
Where: TypeAlias = Annotated[list[str] | None, where_option(TASKS)]


def list_(
    where: Where = None,
    everything: Annotated[bool, typer.Option("--all", help="Resolved and withdrawn ones too.")] = False,
    limit: Limit = 100,
    after: After = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the open tasks, oldest first."""
    chosen, state, start = TASKS.select(*(where or ())), None if everything else "open", -1 if after is None else after
    found = _run(env_file, lambda desk: desk.list(state=state, selection=chosen, after=start, limit=limit))
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
    (number,) = TASKS.select(numbers=[task]).numbers
    found = _run(env_file, lambda desk: desk.show(number))
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
    outcome: Annotated[str, typer.Option(help="One of the tasks' outcomes; see `sagapost tasks show`.")],
    reason: Reason,
    actor: Actor,
    tasks: TaskIds = None,
    where: Where = None,
    everything: Everything = False,
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
    dry_run: DryRun = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Decide open tasks: the outcome is carried out once, in one transaction with the record of who decided and why.

    Several tasks are decided one after the other; the first that refuses the outcome ends the command.
    """
    chosen = meant(TASKS, tasks, where, everything=everything)
    fields = dict(_field(entry) for entry in field or [])
    moment = _moment(until) if until is not None else None
    done: list[Resolution] = []

    async def decide(desk: TaskDesk) -> None:
        listed = () if chosen.numbers else await desk.list(selection=chosen, limit=_MOST_AT_ONCE)
        for number in chosen.numbers or [task.id for task in listed]:
            resolution = await desk.resolve(
                number, outcome, by=actor, note=reason, fields=fields, until=moment, dry_run=dry_run
            )
            done.append(resolution)

    try:
        _run(env_file, decide)
    finally:
        # Those before the one that refused stay decided.
        _write(done, dry_run=dry_run, as_json=as_json)


# --- inside ---


def _run(env_file: Path | None, work: Callable[[TaskDesk], Awaitable[T]]) -> T:
    async def at_tasks(loaded: LoadedSettings, tables: Tables) -> T:
        async with database.opened_engine(loaded) as engine:
            return await work(TaskDesk(engine, sagas=tables.sagas, outbox=tables.outbox, inbox=tables.inbox))

    return at_desk(env_file, lambda tables: [tables.audit.part, tables.sagas.part], at_tasks)


def _write(done: Sequence[Resolution], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        write_json([asdict(each) | {"dry_run": dry_run} for each in done])
        return
    for each in done:
        write_line(f"task {each.task} {'would be' if dry_run else 'is'} resolved as {each.outcome}: {each.did}")


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
