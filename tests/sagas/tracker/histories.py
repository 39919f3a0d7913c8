"""Histories of sagas for the tracker's tests, over the choreography in which nothing is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from sagapost.core.envelope import Event
from sagapost.core.ids import new_id
from sagapost.core.naming import event_type_of

__all__ = ["START", "Story"]

START = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


class Story:
    """Tells a saga event by event; each is caused by the one before unless another is named."""

    def __init__(self, saga: str = "order-4711", *, start: datetime = START) -> None:
        self.saga = saga
        self.events: list[Event] = []
        self._time = start

    def says(
        self,
        service: str,
        what: object,
        *,
        cause: Event | None = None,
        after: timedelta = timedelta(seconds=1),
        data: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> Event:
        """Add an event: of a type by name, or one of the library's own as an object."""
        self._time += after
        before = cause if cause is not None else (self.events[-1] if self.events else None)
        event = Event(
            id=new_id(),
            source=f"https://{service}.example",
            type=what if isinstance(what, str) else event_type_of(type(what)),
            time=self._time,
            data=msgspec.json.encode(data or {} if isinstance(what, str) else what),
            correlationid=self.saga,
            causationid=before.id if before is not None else None,
            partitionkey=key,
        )
        self.events.append(event)
        return event

    def completed(self) -> Sequence[Event]:
        """Everything goes well."""
        self.says("orders", "order-placed", data={"order_id": "4711"})
        self.says("payment", "payment-taken")
        self.says("warehouse", "goods-dispatched")
        self.says("orders", "order-completed")
        return self.events
