"""Recognising a message that kills the process: its attempt begins on record, and the record outlives the process.

Only messages the broker has handed out before are recorded, so the good path pays nothing. A whole prefetch of them
comes back from a process that died, and at first they are recorded and handled in groups; those whose group did not
end either are handled one at a time, so that the innocent clear themselves one after the other and the killer is left.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import Connection, delete, insert, select, update

from sagapost.core.databases import Moments
from sagapost.inbox.declared.tables import InboxTables

__all__ = ["BegunAttempts"]


class BegunAttempts:
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

    def begin_all(self, connection: Connection, keys: Collection[bytes]) -> bool:
        """Record that a first attempt of each begins; False, and nothing is recorded, if one of any never ended."""
        columns = self._table.c
        unended = select(columns.key).where(columns.consumer == self._consumer, columns.key.in_(keys)).limit(1)
        if connection.execute(unended).first() is not None:
            return False
        # In one order everywhere: another replica may have copies of the same messages.
        rows = [{"consumer": self._consumer, "key": key, "started": 1} for key in sorted(keys)]
        connection.execute(self._moments.kit.insert_once(self._table).values(rows))
        return True

    def clear(self, connection: Connection, *keys: bytes) -> None:
        """Record that messages have come to an end, whichever."""
        columns = self._table.c
        connection.execute(delete(self._table).where(columns.consumer == self._consumer, columns.key.in_(keys)))

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
