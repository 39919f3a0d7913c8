"""A saga as a line of a list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sagapost.core.databases import aware
from sagapost.core.where import Field, Fields
from sagapost.sagas.tracker.view import SagaState

__all__ = ["SAGAS", "SagaRow", "saga_row"]

SAGAS = Fields(
    Field("saga", "saga"),
    Field("state", "state", "choice", tuple(state.value for state in SagaState)),
    Field("reason", "reason"),
    Field("events", "events", "number"),
    Field("last", "last_at", "time"),
    Field("ended", "ended_at", "time"),
    Field("due", "due_at", "time"),
    Field("before", "started_at", "before"),
    Field("after", "started_at", "after"),
    number="version",
)
"""What can be asked about sagas, which have no numbers."""


@dataclass(frozen=True, slots=True)
class SagaRow:
    """A saga in a list."""

    saga: str
    state: SagaState
    reason: str | None
    started: datetime
    last: datetime
    ended: datetime | None
    due: datetime | None
    """When its next running deadline passes, or passed."""
    events: int
    keys: tuple[tuple[str, str], ...]


def saga_row(row: Mapping[str, Any], keys: Iterable[tuple[str, str]]) -> SagaRow:
    """Make one of a row of the tracker's table and the business keys of the saga."""
    return SagaRow(
        saga=row["saga"],
        state=SagaState(row["state"]),
        reason=row["reason"],
        started=aware(row["started_at"]),
        last=aware(row["last_at"]),
        ended=aware(row["ended_at"]) if row["ended_at"] is not None else None,
        due=aware(row["due_at"]) if row["due_at"] is not None else None,
        events=row["events"],
        keys=tuple(keys),
    )
