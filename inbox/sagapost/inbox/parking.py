"""Parking: what cannot be handled now is kept in a table, with the reason, and acknowledged to the broker.

So a retry needs no topology of the broker's, survives every restart, and can be seen and decided upon by a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from sqlalchemy import Connection, delete, update

from sagapost.core.broker import Malformed
from sagapost.core.event import Event
from sagapost.inbox.dedup import Dedup, insert_once
from sagapost.inbox.envelope import envelope_of, shown, shown_time
from sagapost.inbox.message import Message
from sagapost.inbox.moments import Moments
from sagapost.inbox.outcomes import ParkReason
from sagapost.inbox.tables import InboxTables

__all__ = ["Parked", "ParkingLot", "State"]

State = Literal["waiting", "behind", "dead"]


@dataclass(frozen=True, slots=True)
class Parked:
    """Why and until when a message is parked."""

    state: State
    reason: ParkReason
    error: str
    traceback: str | None = None
    attempts: int = 0
    retry_in: timedelta | None = None
    """Set if, and only if, the state is `waiting`."""


class ParkingLot:
    """The parked messages of one consumer; every method runs in the caller's transaction."""

    def __init__(
        self, tables: InboxTables, dedup: Dedup, moments: Moments, *, dialect: str, consumer: int, ordered: bool
    ) -> None:
        self._table = tables.parked
        self._dedup = dedup
        self._moments = moments
        self._consumer = consumer
        self._ordered = ordered
        self._insert = insert_once(tables.parked, dialect)

    def park(self, connection: Connection, message: Message, parked: Parked, *, unclaimed: bool = True) -> bool:
        """Park a delivered message under its dedup key; False if it was handled or parked before.

        `unclaimed=False`: park it even if its dedup key is there, because the transaction that wrote the key is the
        problem.
        """
        fresh = self._dedup.claim(connection, message.key)
        if not fresh and unclaimed:
            return False
        return self._add(connection, message.event, message.key, message.topic, parked)

    def park_malformed(
        self, connection: Connection, content: Malformed, key: bytes, topic: str, parked: Parked
    ) -> bool:
        """Park a message that is no event; False if it is parked already."""
        return self._add(connection, content, key, topic, parked)

    def park_again(self, connection: Connection, message: Message, parked: Parked) -> bool:
        """Record a failed round of a parked message; False if somebody else has taken or removed it meanwhile."""
        place = message.parking
        if place is None:
            raise ValueError("the message is not parked")
        statement = (
            update(self._table)
            .where(self._table.c.id == place.id, self._table.c.started == place.started)
            .values(
                state=parked.state,
                reason=parked.reason,
                error=shown(parked.error),
                traceback=shown(parked.traceback),
                attempts=parked.attempts,
                # A round that ended is not one a process died in.
                started=parked.attempts,
                claimed_until=None,
                next_attempt_at=None if parked.retry_in is None else self._moments.after(parked.retry_in),
            )
        )
        return connection.execute(statement).rowcount == 1

    def take_out(self, connection: Connection, place_id: int, started: int) -> bool:
        """Remove a parked message that is being handled; False if somebody else has taken or removed it."""
        statement = delete(self._table).where(self._table.c.id == place_id, self._table.c.started == started)
        return connection.execute(statement).rowcount == 1

    def _add(self, connection: Connection, content: Event | Malformed, key: bytes, topic: str, parked: Parked) -> bool:
        event = content if isinstance(content, Event) else None
        malformed = content if isinstance(content, Malformed) else None
        values = {
            "consumer": self._consumer,
            "key": key,
            "state": parked.state,
            "reason": parked.reason,
            "error": shown(parked.error),
            "traceback": shown(parked.traceback),
            "attempts": parked.attempts,
            "started": parked.attempts,
            "next_attempt_at": None if parked.retry_in is None else self._moments.after(parked.retry_in),
            "ordered": int(self._ordered),
            "topic": shown(topic),
            "event_id": shown(event.id if event is not None else malformed.message_id if malformed else None),
            "source": shown(event.source) if event is not None else None,
            "type": shown(event.type if event is not None else malformed.type if malformed else None),
            "time": shown_time(event.time) if event is not None else None,
            "correlationid": shown(event.correlationid) if event is not None else None,
            "partitionkey": shown(event.partitionkey) if event is not None else None,
            "envelope": envelope_of(content),
            "data": event.data if event is not None else malformed.body if malformed is not None else b"",
        }
        return connection.execute(self._insert.values(values)).rowcount == 1
