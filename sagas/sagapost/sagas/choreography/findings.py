"""What the lint says: findings, how grave they are, and the rules that make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sagapost.core.findings import Severity
from sagapost.sagas.choreography.manifest import Choreography

__all__ = ["Check", "Finding", "LintRule", "Severity"]

Check = Callable[[Choreography], Iterator[tuple[str, str, str]]]
"""Yields service, subject (a step or an event) and message of each mistake."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake."""

    code: str
    severity: Severity
    service: str
    subject: str
    """The step or event it is about."""
    message: str
    accepted: str | None = None
    """Why the team lives with it; None: it does not."""


@dataclass(frozen=True, slots=True)
class LintRule:
    """One thing that is looked for."""

    code: str
    severity: Severity
    title: str
    explanation: str
    """What is wrong, and what comes of it when the saga runs."""
    remedy: str
    """What to do about it, and when to accept it instead."""
    check: Check
