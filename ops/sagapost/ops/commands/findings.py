"""What `sagapost saga lint` and `sagapost saga check` share: how grave a finding fails a command, and its JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagapost.sagas.choreography import Finding, Severity

if TYPE_CHECKING:
    # It brings the inbox with it, which the lint does not need.
    from sagapost.sagas.inflight import InFlightFinding

__all__ = ["FailOn", "FailOnOption", "fails", "findings_as_json"]


class FailOn(StrEnum):
    """The least grave finding that fails the command."""

    ERROR = "error"
    WARNING = "warning"
    ADVICE = "advice"
    NEVER = "never"


FailOnOption = Annotated[
    FailOn, typer.Option("--fail-on", help="Exit with code 1 if something at least this grave is found.")
]


def fails(finding: Finding | InFlightFinding, fail_on: FailOn) -> bool:
    """Return whether a finding is so grave that the command fails."""
    return fail_on is not FailOn.NEVER and finding.severity.rank <= Severity(fail_on.value).rank


def findings_as_json(findings: Iterable[Finding | InFlightFinding]) -> list[dict[str, Any]]:
    """Return findings as they are written with `--json`."""
    return [{**asdict(finding), "severity": finding.severity.value} for finding in findings]
