"""What the code that is about to run could no longer handle, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from sagapost.core.findings import Severity

__all__ = ["Collector", "InFlightFinding", "InFlightKind", "InFlightReport"]

InFlightKind: TypeAlias = Literal[
    "compensation",
    "arguments",
    "island",
    "island-step",
    "island-state",
    "deadline",
    "event",
    "payload",
    "task",
    "step",
]
"""What is recorded and has nobody any more: a compensation's name or arguments, an island, its step or its state, a
deadline, an event or its data, a task's event, a step that the tracker expects."""

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class InFlightFinding:
    """One kind of thing in flight that the code cannot handle."""

    severity: Severity
    """Error: a saga stops, or is not undone. Warning: only if something else happens too. Advice: nothing is seen in
    flight, but may be where nobody can look (in the broker's queue)."""
    kind: InFlightKind
    service: str
    subject: str
    """The name or event type it is about."""
    count: int
    """How many there are."""
    sagas: tuple[str, ...]
    """Up to three of the sagas they belong to."""
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class InFlightReport:
    """What was looked at, and what was found."""

    findings: tuple[InFlightFinding, ...]
    """The gravest first."""
    looked_at: Mapping[str, int]
    """How many of each there were: intents, runs, tasks, events, parked messages, sagas of the tracker."""


@dataclass(slots=True)
class Collector:
    """Puts together what is alike."""

    looked_at: Counter[str] = field(default_factory=Counter[str])
    _found: dict[tuple[Severity, InFlightKind, str, str, str, str], tuple[int, list[str]]] = field(
        default_factory=dict[tuple[Severity, InFlightKind, str, str, str, str], tuple[int, list[str]]]
    )

    def add(
        self,
        severity: Severity,
        kind: InFlightKind,
        service: str,
        subject: str,
        message: str,
        remedy: str,
        *,
        count: int = 1,
        saga: str | None = None,
    ) -> None:
        """Note something."""
        key = (severity, kind, service, subject, message, remedy)
        before, sagas = self._found.setdefault(key, (0, []))
        if saga is not None and saga not in sagas and len(sagas) < _EXAMPLES:
            sagas.append(saga)
        self._found[key] = (before + count, sagas)

    def report(self) -> InFlightReport:
        """Return what was found."""
        findings = [
            InFlightFinding(severity, kind, service, subject, count, tuple(sagas), message, remedy)
            for (severity, kind, service, subject, message, remedy), (count, sagas) in self._found.items()
        ]
        findings.sort(key=lambda each: (each.severity.rank, each.kind, each.service, each.subject))
        return InFlightReport(tuple(findings), dict(self.looked_at))
