"""`sagapost saga check`: a gate for deployments, before the new code runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from sagapost.inbox.declared.inbox import Inbox
from sagapost.ops import database
from sagapost.ops.commands.choreography import FailOn
from sagapost.ops.commands.loading import load
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.consuming import parts_of
from sagapost.ops.inbox_path import load_inboxes
from sagapost.ops.output import write_json, write_line, write_table
from sagapost.ops.settings import LoadedSettings
from sagapost.sagas.choreography import Choreography, Severity, read_manifest
from sagapost.sagas.inflight import InFlightFinding, InFlightReport, check_in_flight

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
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Exit with code 1 if something at least this grave is found.")
    ] = FailOn.ERROR,
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
        write_json({"looked_at": report.looked_at, "findings": [_as_json(each) for each in report.findings]})
    else:
        _write(report)
    if any(_fails(each, fail_on) for each in report.findings):
        raise typer.Exit(1)


async def _look(loaded: LoadedSettings, inboxes: list[Inbox], elsewhere: frozenset[str]) -> InFlightReport:
    async with database.connect(loaded) as connection:
        for versions, parts in parts_of(inboxes).items():
            await database.check(connection, versions, parts)
        return await connection.run_sync(lambda sync: check_in_flight(sync, inboxes, elsewhere=elsewhere))


def _fails(finding: InFlightFinding, fail_on: FailOn) -> bool:
    return fail_on is not FailOn.NEVER and finding.severity.rank <= Severity(fail_on.value).rank


def _as_json(finding: InFlightFinding) -> dict[str, Any]:
    return {**asdict(finding), "severity": finding.severity.value}


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
