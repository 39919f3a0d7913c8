"""Rows for tests of the relay's bookkeeping, without a database."""

from __future__ import annotations

from datetime import UTC, datetime

from sagapost.core.envelope import Event
from sagapost.core.outbox_store import OutboxRow, Partition, Position

__all__ = ["TOPIC", "make_row"]

TOPIC = "orders.order-placed.v1"
_LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def make_row(
    position: int,
    *,
    key: str | None = "k",
    topic: str = TOPIC,
    partition: int = 0,
    size: int = 10,
    attempts: int = 0,
    retry_in: float = 0.0,
) -> OutboxRow:
    """Return a row; its event's id tells the position."""
    return OutboxRow(
        position=Position(position),
        partition=Partition(partition),
        topic=topic,
        event=Event(
            id=f"event-{position}",
            source="tests",
            type=topic,
            time=_LONG_AGO,
            data=b"x" * size,
            partitionkey=key,
        ),
        attempts=attempts,
        retry_in=retry_in,
    )
