"""Recognising a message that kills the process: its attempt begins on record, and the record outlives the process.

Only messages the broker has handed out before are recorded, so the good path pays nothing; and only one of them is in
work at a time, so that the innocent ones which were in hand beside the killer clear themselves one after the other.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, delete, insert, select, update

from sagapost.inbox.moments import Moments
from sagapost.inbox.tables import InboxTables

__all__ = ["Attempts"]


class Attempts:
    """Attempts of one consumer that have begun and not ended; every method runs in the caller's transaction."""

    def __init__(self, tables: InboxTables, moments: Moments, *, consumer: int) -> None:
        self._table = tables.attempts
        self._moments = moments
        self._consumer = consumer

    def begin(self, connection: Connection, key: bytes) -> int:
        """Record that an attempt begins; return how many before it never ended."""
        columns = self._table.c
        mine = (columns.consumer == self._consumer, columns.key == key)
        # The row is there only after a crash, and only one attempt of a message is recorded at a time.
        unended = connection.execute(select(columns.started).where(*mine).with_for_update()).scalar_one_or_none()
        if unended is None:
            connection.execute(insert(self._table).values(consumer=self._consumer, key=key, started=1))
            return 0
        connection.execute(
            update(self._table).where(*mine).values(started=unended + 1, last_started_at=self._moments.now())
        )
        found: int = unended
        return found

    def clear(self, connection: Connection, key: bytes) -> None:
        """Record that the message has come to an end, whichever."""
        columns = self._table.c
        connection.execute(delete(self._table).where(columns.consumer == self._consumer, columns.key == key))

    def withdraw(self, connection: Connection, key: bytes) -> None:
        """Take back the attempt that was begun last: it was called off in order."""
        columns = self._table.c
        mine = (columns.consumer == self._consumer, columns.key == key)
        connection.execute(update(self._table).where(*mine).values(started=columns.started - 1))
        connection.execute(delete(self._table).where(*mine, columns.started <= 0))

    def forget(self, connection: Connection, *, older_than: timedelta) -> int:
        """Delete records of messages that never came back; return how many."""
        columns = self._table.c
        statement = delete(self._table).where(
            columns.consumer == self._consumer, columns.last_started_at < self._moments.after(-older_than)
        )
        return connection.execute(statement).rowcount
