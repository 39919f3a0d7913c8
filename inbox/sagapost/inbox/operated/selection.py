"""Which parked messages an operator means."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Table

from sagapost.inbox.declared.outcomes import ParkReason
from sagapost.inbox.kept.parking import State

__all__ = ["Selection"]


@dataclass(frozen=True, slots=True)
class Selection:
    """A filter: every value that is given must match; nothing given is everything that is parked."""

    id: int | None = None
    """Of the parked row."""
    event_id: str | None = None
    source: str | None = None
    type: str | None = None
    key: str | None = None
    """The ordering key."""
    correlationid: str | None = None
    """The saga."""
    state: State | None = None
    reason: ParkReason | None = None
    parked_after: datetime | None = None
    parked_before: datetime | None = None

    def conditions(self, table: Table, consumer: int) -> list[ColumnElement[bool]]:
        """Return the filter as SQL."""
        columns = table.c
        equal: dict[str, Any] = {
            "id": self.id,
            "event_id": self.event_id,
            "source": self.source,
            "type": self.type,
            "partitionkey": self.key,
            "correlationid": self.correlationid,
            "state": self.state,
            "reason": self.reason,
        }
        conditions = [columns.consumer == consumer]
        conditions += [columns[name] == value for name, value in equal.items() if value is not None]
        if self.parked_after is not None:
            conditions.append(columns.parked_at >= self.parked_after)
        if self.parked_before is not None:
            conditions.append(columns.parked_at < self.parked_before)
        return conditions
