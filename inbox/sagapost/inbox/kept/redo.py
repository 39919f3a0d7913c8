"""Handling an event once more that counts as handled: it is parked as if it had been retried, due at a given time."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, DateTime, literal, select

from sagapost.core.databases import Moments
from sagapost.core.envelope import Event
from sagapost.core.identity import dedup_key
from sagapost.inbox.arriving.keys import unit_key
from sagapost.inbox.declared.tables import InboxTables
from sagapost.inbox.kept.dedup import Dedup
from sagapost.inbox.kept.parked_order import ParkedOrder
from sagapost.inbox.kept.parking import ParkingLot

__all__ = ["redo"]


def redo(
    connection: Connection,
    tables: InboxTables,
    moments: Moments,
    *,
    consumer: str,
    transaction: str,
    event: Event,
    topic: str | None,
    why: str,
    until: datetime | None = None,
) -> str | None:
    """Let a consumer handle an event again, in the caller's transaction; return why not, if it cannot be.

    Its dedup key stays, so that a copy from the broker is still a duplicate. Whoever calls this sees to it that it is
    done once for one decision. In an ordered inbox the event goes on its own: it was handled, and later events of its
    key may have gone past it. Only where one of them is parked before it does it wait for that.

    :param transaction: name of that whose handlers handle it; empty: those without a name.
    :param until: not before this time, by the database's clock; default: at once.
    """
    number = connection.execute(
        select(tables.consumers.c.id).where(tables.consumers.c.name == consumer)
    ).scalar_one_or_none()
    if number is None:
        return f"this database knows no inbox {consumer!r}, so the event cannot be handled again here."
    dedup = Dedup(tables, moments.kit, consumer=number)
    order = ParkedOrder(tables, moments, consumer=number, on_dead="skip")
    lot = ParkingLot(tables, dedup, moments, order, consumer=number, ordered=False)
    at = moments.now() if until is None else literal(until.astimezone(UTC), DateTime(timezone=True))
    key = unit_key(dedup_key(event), transaction)
    if not lot.park_anew(connection, event, key, topic or event.type, why=why, at=at):
        return f"event {event.id} is parked in the inbox {consumer!r} already. See: sagapost parked list {consumer}"
    return None
