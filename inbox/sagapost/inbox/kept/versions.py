"""Which version of a consumer takes what: what one of them does not know is still to come, or was removed.

Versions of a service run side by side while it is deployed, and share its queue. Each says at its start which event
types it takes. So an old replica that is handed a new type can tell it from one that a new replica does not take any
more: only older starts than its own have said that they take that.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Connection, select, update

from sagapost.core.databases import Moments, aware
from sagapost.core.envelope import MAX_NAME_LENGTH
from sagapost.inbox.declared.tables import InboxTables

__all__ = ["Versions"]


class Versions:
    """What one consumer has taken in any version; every method runs in the caller's transaction.

    :param takes: the event types this version takes.
    """

    def __init__(self, tables: InboxTables, moments: Moments, *, consumer: int, takes: Iterable[str]) -> None:
        self._table = tables.types
        self._moments = moments
        self._consumer = consumer
        self.takes = sorted(type_ for type_ in takes if len(type_) <= MAX_NAME_LENGTH)
        self._started: datetime | None = None

    def announce(self, connection: Connection) -> None:
        """Record what this version takes, and that it starts now."""
        self._started = aware(connection.execute(select(self._moments.now())).scalar_one())
        if not self.takes:
            return
        columns, started = self._table.c, {"known_at": self._started}
        mine = (columns.consumer == self._consumer, columns.type.in_(self.takes))
        # In one order, so that replicas that start at once wait for each other one way only.
        order = select(columns.type).where(*mine).order_by(columns.type).with_for_update()
        known = set(connection.execute(order).scalars())
        connection.execute(update(self._table).where(*mine).values(started))
        new = [{"consumer": self._consumer, "type": each, **started} for each in self.takes if each not in known]
        if new:
            connection.execute(self._moments.kit.insert_once(self._table), new)

    def was_removed(self, connection: Connection, type_: str) -> bool:
        """Return whether a type that this version does not take was taken by older ones, and by no newer one."""
        columns = self._table.c
        asked = select(columns.known_at).where(
            columns.consumer == self._consumer, columns.type == type_[:MAX_NAME_LENGTH]
        )
        known_at = connection.execute(asked).scalar_one_or_none()
        return known_at is not None and self._started is not None and aware(known_at) < self._started
