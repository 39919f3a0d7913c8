"""Stranded transactions: their client is gone, the server has not noticed, and they hold what others wait for."""

from __future__ import annotations

from datetime import timedelta

import anyio
from sqlalchemy import Executable

from sagapost.core.observer import Observer
from sagapost.inbox.declared.observations import StrandedEnded
from sagapost.inbox.declared.tables import InboxTables
from sagapost.inbox.kept.database import Database

__all__ = ["Stranded"]


class Stranded:
    """Ends transactions on the inbox's tables that a lost client left in the middle of a statement.

    They hold dedup keys and parked messages. Whoever claims one of them waits for it in vain, again and again, while
    the database answers everything else.
    """

    def __init__(
        self, database: Database, tables: InboxTables, observer: Observer, *, consumer: str, silent_for: timedelta
    ) -> None:
        """Open nothing.

        :param silent_for: longer than any transaction of ours is allowed to last, and the time between two looks.
        """
        self._database = database
        self._observer = observer
        self._consumer = consumer
        self._every = silent_for.total_seconds()
        # At once: the predecessor of this process may be the one that was lost.
        self._due = 0.0
        self._statement: Executable | None = database.kit.end_stranded(
            (tables.seen, tables.parked, tables.attempts), silent_for=silent_for
        )

    async def look(self) -> None:
        """End those there are, if a look is due.

        :raises StoreUnavailableError: if the database went away; the look is made again at the next call.
        """
        statement = self._statement
        if statement is None or anyio.current_time() < self._due:
            return
        ended = await self._database.run(lambda connection: sum(map(bool, connection.execute(statement).scalars())))
        self._due = anyio.current_time() + self._every
        if ended:
            self._observer.notify(StrandedEnded(self._consumer, ended))
