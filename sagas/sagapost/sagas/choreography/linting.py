"""Mistakes in a choreography that can be seen before it ships."""

from __future__ import annotations

from collections.abc import Sequence

from sagapost.sagas.choreography.acceptances import Acceptance, accept
from sagapost.sagas.choreography.findings import Finding
from sagapost.sagas.choreography.manifest import Choreography
from sagapost.sagas.choreography.rules import RULES

__all__ = ["lint"]


def lint(
    choreography: Choreography, *, ignore: frozenset[str] = frozenset(), acceptances: Sequence[Acceptance] = ()
) -> list[Finding]:
    """Return the findings of all rules, in the order of the rules.

    :param ignore: codes of rules to leave out altogether.
    :param acceptances: findings the team lives with; they are returned with their reason in `Finding.accepted`. One
        that matches nothing is itself a finding, unless its rule is left out.
    """
    findings = [
        Finding(rule.code, rule.severity, service, subject, message)
        for rule in RULES
        if rule.code not in ignore
        for service, subject, message in rule.check(choreography)
    ]
    return accept(findings, [entry for entry in acceptances if entry.code not in ignore])
