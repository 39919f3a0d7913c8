"""Events that become due later: which are legal, and taking one back in the caller's transaction."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import Connection, Delete, delete
from sqlalchemy.orm import Session

from sagapost.core.envelope import MAX_NAME_LENGTH, Event
from sagapost.core.errors import InvalidEventError
from sagapost.outbox.asyncpg import AsyncpgConnection
from sagapost.outbox.psycopg import DriverConnection, execute
from sagapost.outbox.rows import RowValues, Target
from sagapost.outbox.session import withdraw_pending

__all__ = ["Cancellation", "due_time", "validate_schedule"]

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
_LATEST = datetime(9999, 12, 30, tzinfo=UTC)


def due_time(deliver_at: datetime) -> datetime:
    """Return `deliver_at` in UTC, a day inside what a datetime can say: ``datetime.min`` is at once, ``max`` is never.

    At the very edge it has no UTC, and drivers take it for infinity.
    """
    try:
        return min(max(deliver_at.astimezone(UTC), _EARLIEST), _LATEST)
    except OverflowError:
        return _EARLIEST if deliver_at.year == 1 else _LATEST


def validate_schedule(event: Event, *, deliver_at: datetime | None, name: str | None) -> None:
    """Check the arguments of a scheduled event.

    :raises InvalidEventError: if `deliver_at` has no timezone, or `name` could never be found again.
    """
    if deliver_at is not None and deliver_at.tzinfo is None:
        raise InvalidEventError(
            attribute="deliver_at",
            value=deliver_at,
            reason="it needs a timezone, for example datetime.now(UTC) + timedelta(hours=1).",
        )
    if name is None:
        return
    if deliver_at is None:
        raise InvalidEventError(
            attribute="name", value=name, reason="only a scheduled event has a name. Pass deliver_at= as well."
        )
    if not 0 < len(name) <= MAX_NAME_LENGTH or _UNSTORABLE.search(name):
        raise InvalidEventError(
            attribute="name",
            value=name,
            reason=f"a name has 1 to {MAX_NAME_LENGTH} characters, none of them NUL or half of a surrogate pair.",
        )
    if event.correlationid is None:
        raise InvalidEventError(
            attribute="name",
            value=name,
            reason="a named event is cancelled by (correlationid, name), and this one belongs to no saga. "
            "Pass correlationid= as well, or leave the name out and cancel by event id.",
        )


class Cancellation:
    """Which scheduled events to take back: those that match every value.

    A row that a relay has moved in the meantime is gone, and its event on its way: the count tells.
    """

    def __init__(
        self, target: Target, *, source: str, event_id: str | None, correlationid: str | None, name: str | None
    ) -> None:
        self.target = target
        self._matching: RowValues
        if event_id is not None and correlationid is None and name is None:
            self._matching = {"event_id": UUID(event_id)}
        elif event_id is None and correlationid is not None and name is not None:
            self._matching = {"correlationid": correlationid, "name": name, "source": source}
        else:
            raise TypeError("cancel() takes either event_id=, or both correlationid= and name=")

    @property
    def statement(self) -> Delete:
        """What takes back what is in the table."""
        columns = self.target.table.c
        return delete(self.target.table).where(*(columns[name] == value for name, value in self._matching.items()))

    def in_session(self, session: Session) -> int:
        """Take back what is pending in the session and what is in the table; return how many."""
        withdrawn = withdraw_pending(session, self._matching, table=self.target.table)
        return withdrawn + self.on_connection(session.connection(bind_arguments={"clause": self.statement}))

    def on_connection(self, connection: Connection) -> int:
        """Take back what is in the table; return how many."""
        return connection.execute(self.statement).rowcount

    async def on_asyncpg(self, connection: AsyncpgConnection) -> int:
        """Take back what is in the table; return how many."""
        matches = " AND ".join(f"{column} = ${n}" for n, column in enumerate(self._matching, 1))
        statement = f"DELETE FROM {self.target.name} WHERE {matches}"  # noqa: S608 names are ours
        tag = await connection.execute(statement, *self._matching.values())
        return int(tag.rpartition(" ")[2])

    def on_driver(self, connection: DriverConnection) -> int:
        """Take back what is in the table; return how many."""
        matches = " AND ".join(f"{column} = %s" for column in self._matching)
        statement = f"DELETE FROM {self.target.name} WHERE {matches}"  # noqa: S608 names are ours
        return execute(connection, statement, [str(value) for value in self._matching.values()])
