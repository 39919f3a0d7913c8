"""`sagapost saga`: the choreography as declared in code: exported, drawn, checked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sagapost.ops.commands.options import AsJson
from sagapost.ops.commands.output import write_json, write_line, write_table
from sagapost.ops.inbox_path import load_inbox
from sagapost.sagas.choreography import (
    RULES,
    Choreography,
    Severity,
    graph_of,
    read_manifest,
    to_asyncapi,
    to_bpmn,
    to_dot,
    to_mermaid,
    to_svg,
    write_manifest,
)
from sagapost.sagas.choreography import lint as find_mistakes
from sagapost.sagas.declaration import manifest_of

__all__ = ["app"]

app = typer.Typer(help="The choreography as declared in code: export, draw, check.", no_args_is_help=True)

Manifests = Annotated[
    list[Path], typer.Argument(metavar="MANIFEST...", help="Manifest files, one for each service.", show_default=False)
]


class MapFormat(StrEnum):
    """Ways to draw a choreography."""

    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"
    BPMN = "bpmn"
    ASYNCAPI = "asyncapi"


_DRAWN: Mapping[MapFormat, Callable[[Choreography], str]] = {
    MapFormat.MERMAID: lambda choreography: to_mermaid(graph_of(choreography)),
    MapFormat.DOT: lambda choreography: to_dot(graph_of(choreography)),
    MapFormat.SVG: lambda choreography: to_svg(graph_of(choreography)),
    MapFormat.BPMN: to_bpmn,
    MapFormat.ASYNCAPI: to_asyncapi,
}


@app.command()
def manifest(
    inbox: Annotated[str, typer.Argument(metavar="MODULE:INBOX", help="The service's inbox, e.g. warehouse:inbox.")],
) -> None:
    """Write a service's manifest as JSON; keep it beside the code, and merge all of them with `map` and `lint`."""
    sys.stdout.buffer.write(write_manifest(manifest_of(load_inbox(inbox))))


@app.command("map")
def draw(
    manifests: Manifests,
    format_: Annotated[MapFormat, typer.Option("--format", "-f", help="What to write.")] = MapFormat.MERMAID,
) -> None:
    """Draw the choreography that the manifests make."""
    choreography = Choreography(read_manifest(path) for path in manifests)
    sys.stdout.write(_DRAWN[format_](choreography))


@app.command()
def lint(
    manifests: Manifests,
    ignore: Annotated[list[str] | None, typer.Option("--ignore", help="Code of a rule to leave out.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings and advice fail as well.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each rule looks for, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for mistakes in the choreography; exit code 1 if there is an error."""
    if explain:
        write_table(("code", "severity", "rule"), [(r.code, r.severity.value, r.explanation) for r in RULES])
        return
    choreography = Choreography(read_manifest(path) for path in manifests)
    findings = find_mistakes(choreography, ignore=frozenset(ignore or ()))
    if as_json:
        write_json([{**asdict(finding), "severity": finding.severity.value} for finding in findings])
    elif findings:
        write_table(
            ("code", "severity", "service", "what"),
            [(f.code, f.severity.value, f.service, f.message) for f in findings],
        )
    else:
        steps = sum(1 for _ in choreography.steps())
        write_line(f"{len(choreography.services)} services, {steps} steps: nothing to complain about")
    if any(strict or finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(1)
