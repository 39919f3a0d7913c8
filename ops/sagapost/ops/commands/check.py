"""`sagapost saga check`: a gate for deployments, before the new code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import anyio
import typer

from sagapost.inbox.declared.inbox import Inbox
from sagapost.ops import database
from sagapost.ops.commands.findings import FailOn, FailOnOption, fails, findings_as_json
from sagapost.ops.commands.loading import load
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.consuming import parts_of
from sagapost.ops.inbox_path import load_inboxes
from sagapost.ops.output import write_json, write_line, write_table
from sagapost.ops.settings import LoadedSettings
from sagapost.sagas.choreography import Choreography, read_manifest
from sagapost.sagas.inflight import InFlightReport, check_in_flight

__all__ = ["check"]


def check(
    inboxes: Annotated[
        list[str],
        typer.Argument(metavar="MODULE:SERVICE...", help="The services as the new code declares them, all of them."),
    ],
    manifests: Annotated[
        list[Path] | None,
        typer.Option("--manifest", help="Manifest of another service, which takes events too; repeatable."),
    ] = None,
    fail_on: FailOnOption = FailOn.ERROR,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Hold what is in flight against the code that is about to run, and name what it could no longer handle.

    Intents, islands, tasks, deadlines, events in the outbox, parked messages, steps that the tracker expects.
    """
    loaded = load(required=("database_url",), env_file=env_file)
    choreography = Choreography(read_manifest(path) for path in manifests or ())
    report = anyio.run(_look, loaded, load_inboxes(inboxes), frozenset(choreography.handled()))
    if as_json:
        write_json({"looked_at": report.looked_at, "findings": findings_as_json(report.findings)})
    else:
        _write(report)
    if any(fails(each, fail_on) for each in report.findings):
        raise typer.Exit(1)


async def _look(loaded: LoadedSettings, inboxes: list[Inbox], elsewhere: frozenset[str]) -> InFlightReport:
    async with database.connect(loaded) as connection:
        for versions, parts in parts_of(inboxes).items():
            await database.check(connection, versions, parts)
        return await connection.run_sync(lambda sync: check_in_flight(sync, inboxes, elsewhere=elsewhere))


def _write(report: InFlightReport) -> None:
    if report.findings:
        write_table(
            ("severity", "service", "what", "count", "why, and what to do"),
            [
                (f.severity.value, f.service, f"{f.kind} {f.subject}", str(f.count), f"{f.message}. {f.remedy}")
                for f in report.findings
            ],
            prose={"why, and what to do"},
        )
        return
    looked_at = ", ".join(f"{count} {what}" for what, count in sorted(report.looked_at.items())) or "nothing"
    write_line(f"in flight: {looked_at}; this code can handle all of it")
