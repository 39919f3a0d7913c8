"""`sagapost saga map|lint`: the choreography as declared in code: drawn, checked."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sagapost.core.errors import ConfigurationError
from sagapost.ops.commands.findings import FailOn, FailOnOption, fails, findings_as_json
from sagapost.ops.commands.loading import hint_misspelt
from sagapost.ops.commands.options import AsJson
from sagapost.ops.output import write_json, write_line, write_table, write_text
from sagapost.sagas.choreography import (
    RULES,
    STALE,
    Choreography,
    Finding,
    LintRule,
    graph_of,
    read_acceptances,
    read_manifest,
    to_asyncapi,
    to_bpmn,
    to_dot,
    to_mermaid,
    to_svg,
)
from sagapost.sagas.choreography import lint as find_mistakes

__all__ = ["draw", "lint"]


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


def draw(
    manifests: Manifests,
    format_: Annotated[MapFormat, typer.Option("--format", "-f", help="What to write.")] = MapFormat.MERMAID,
) -> None:
    """Draw the choreography that the manifests make."""
    hint_misspelt()
    choreography = Choreography(read_manifest(path) for path in manifests)
    write_text(_DRAWN[format_](choreography))


def lint(
    manifests: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MANIFEST...", help="Manifest files, one for each service.", show_default=False),
    ] = None,
    fail_on: FailOnOption = FailOn.ERROR,
    accept: Annotated[
        Path | None,
        typer.Option("--accept", help="TOML file of findings you live with, and why.", show_default=False),
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option("--ignore", help="Code of a rule to leave out.")] = None,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="CODE", help="Say what a rule means, and stop.")
    ] = None,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for mistakes in the choreography; exit code 1 if there is an error that is not accepted."""
    hint_misspelt()
    if explain is not None:
        _explain(explain)
        return
    if rules:
        write_table(("code", "severity", "rule"), [(r.code, r.severity.value, r.title) for r in RULES], prose={"rule"})
        return
    if not manifests:
        raise typer.BadParameter("Name the manifests: sagapost saga lint orders.json payment.json ...")
    for code in ignore or ():
        _rule(code)
    choreography = Choreography(read_manifest(path) for path in manifests)
    findings = find_mistakes(
        choreography,
        ignore=frozenset(ignore or ()),
        acceptances=read_acceptances(accept) if accept is not None else (),
    )
    if as_json:
        write_json(findings_as_json(findings))
    else:
        _write_findings(choreography, findings)
    if any(finding.accepted is None and fails(finding, fail_on) for finding in findings):
        raise typer.Exit(1)


def _write_findings(choreography: Choreography, findings: Sequence[Finding]) -> None:
    open_ = [finding for finding in findings if finding.accepted is None]
    if open_:
        write_table(
            ("code", "severity", "service", "what"),
            [(f.code, f.severity.value, f.service, f.message) for f in open_],
            prose={"what"},
        )
    else:
        steps = sum(1 for _ in choreography.steps())
        accepted = f" ({len(findings)} accepted)" if findings else ""
        write_line(f"{len(choreography.services)} services, {steps} steps: nothing to complain about{accepted}")


def _rule(code: str) -> LintRule:
    for rule in RULES:
        if rule.code == code.upper():
            return rule
    raise ConfigurationError(f"There is no rule {code!r}. `sagapost saga lint --rules` lists them.")


def _explain(code: str) -> None:
    rule = STALE if code.upper() == STALE.code else _rule(code)
    write_line(f"{rule.code} ({rule.severity.value}): {rule.title}")
    for text in (rule.explanation, rule.remedy):
        write_line()
        write_line(textwrap.fill(text, width=100))
    write_line()
    write_line(f"With an example: docs/lint.md, {rule.code}.")
