"""What `saga lint`, `saga check` and `doctor` share: how grave a finding fails a command, and its JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagapost.core.findings import Diagnosis, Severity

if TYPE_CHECKING:
    # They bring the choreography and the inbox with them, which not every command needs.
    from sagapost.sagas.choreography import Finding
    from sagapost.sagas.inflight import InFlightFinding

__all__ = ["FailOn", "FailOnOption", "fails", "findings_as_json"]


class FailOn(StrEnum):
    """The least grave finding that fails the command."""

    ERROR = "error"
    WARNING = "warning"
    ADVICE = "advice"
    NEVER = "never"


FailOnOption = Annotated[
    FailOn, typer.Option("--fail-on", help="Exit with code 1 (doctor: 9) if something at least this grave is found.")
]


def fails(finding: Finding | InFlightFinding | Diagnosis, fail_on: FailOn) -> bool:
    """Return whether a finding is so grave that the command fails."""
    return fail_on is not FailOn.NEVER and finding.severity.rank <= Severity(fail_on.value).rank


def findings_as_json(findings: Iterable[Finding | InFlightFinding | Diagnosis]) -> list[dict[str, Any]]:
    """Return findings as they are written with `--json`; times are ISO 8601."""
    return [
        {name: _plain(value) for name, value in asdict(finding).items()} | {"severity": finding.severity.value}
        for finding in findings
    ]


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
