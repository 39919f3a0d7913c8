"""Findings a team lives with, each with its reason, kept as a file beside the manifests.

::

    [[accept]]
    code = "SP006"
    service = "payment"        # optional, like subject: without them, every finding of the code
    subject = "take_payment"
    reason = "the customer may name three cards; the row counts them"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from sagapost.core.errors import ConfigurationError
from sagapost.sagas.choreography.findings import Finding
from sagapost.sagas.choreography.rules import RULES, STALE

__all__ = ["Acceptance", "accept", "read_acceptances"]


class Acceptance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One decision to live with a finding."""

    code: str
    reason: str
    service: str | None = None
    subject: str | None = None
    """The step or event; None: every one of the service."""

    def covers(self, finding: Finding) -> bool:
        """Return whether it is about this finding."""
        return (
            finding.code == self.code
            and self.service in {None, finding.service}
            and self.subject in {None, finding.subject}
        )


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    accept: tuple[Acceptance, ...] = ()


def read_acceptances(path: Path) -> tuple[Acceptance, ...]:
    """Read a file of acceptances.

    :raises ConfigurationError: if it cannot be read, an entry has no reason, or a code is unknown.
    """
    try:
        accepted = msgspec.convert(tomllib.loads(path.read_text()), _File).accept
    except OSError as error:
        raise ConfigurationError(f"The acceptances {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(
            f"{path} is no file of acceptances: {error}. Each entry is [[accept]] with code and reason; service "
            "and subject narrow it."
        ) from error
    known = {rule.code for rule in RULES}
    for number, entry in enumerate(accepted, 1):
        if entry.code not in known:
            raise ConfigurationError(
                f"{path}, entry {number}: there is no rule {entry.code!r}. `sagapost saga lint --rules` lists them."
            )
        if not entry.reason.strip():
            raise ConfigurationError(
                f"{path}, entry {number}: {entry.code} is accepted without a reason. Say why, for the next reader."
            )
    return accepted


def accept(findings: Iterable[Finding], acceptances: Sequence[Acceptance]) -> list[Finding]:
    """Mark the findings that are accepted, and add one for each acceptance that accepts nothing any more."""
    marked: list[Finding] = []
    used: set[int] = set()
    for finding in findings:
        covering = [index for index, entry in enumerate(acceptances) if entry.covers(finding)]
        used.update(covering)
        marked.append(replace(finding, accepted=acceptances[covering[0]].reason) if covering else finding)
    stale = [
        Finding(
            STALE.code,
            STALE.severity,
            entry.service or "",
            entry.subject or entry.code,
            f"{entry.code} is accepted ({entry.reason}) and no longer found. Remove the acceptance.",
        )
        for index, entry in enumerate(acceptances)
        if index not in used
    ]
    return [*marked, *stale]
