"""What can be asked about parked messages."""

from __future__ import annotations

from typing import get_args

from sagapost.core.where import Field, Fields
from sagapost.inbox.declared.outcomes import ParkReason
from sagapost.inbox.kept.parking import State

__all__ = ["PARKED"]

PARKED = Fields(
    Field("id", "id", "number"),
    Field("event_id", "event_id"),
    Field("type", "type"),
    Field("source", "source"),
    Field("topic", "topic"),
    Field("key", "partitionkey"),
    Field("correlationid", "correlationid"),
    Field("state", "state", "choice", get_args(State)),
    Field("reason", "reason", "choice", get_args(ParkReason)),
    Field("error", "error"),
    Field("attempts", "attempts", "number"),
    Field("crashes", "crashes", "number"),
    Field("before", "parked_at", "before"),
    Field("after", "parked_at", "after"),
)
"""The fields, as the command line and filters in code call them."""
