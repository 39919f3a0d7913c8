"""Messages that were in flight when a connection or a process ended: recorded while handled, few at a time."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from sagapost.core.observer import Observer
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.kept.attempts import BegunAttempts
from sagapost.inbox.kept.database import Database

__all__ = ["Suspects"]


class Suspects:
    """The suspects of one consumer. Methods raise StoreUnavailableError, and may be called again with the same."""

    def __init__(self, database: Database, attempts: BegunAttempts, observer: Observer, *, consumer: str) -> None:
        self._database = database
        self._attempts = attempts
        self._observer = observer
        self._consumer = consumer
        self.turn = anyio.Lock()
        """Held while a suspect is handled, or a group of them: what dies with the process is among so many."""

    async def begin(self, message: Message) -> int:
        """Put an attempt on record; return how many before it never ended."""
        unended = await self._database.run(lambda connection: self._attempts.begin(connection, message.key))
        self._begun(message, unended)
        return unended

    async def begin_together(self, messages: Sequence[Message]) -> bool:
        """Put an attempt at each on record; False, and none is, if one of any never ended: they are handled alone."""
        if all(message.recorded for message in messages):
            return True
        keys = {message.key for message in messages}
        if not await self._database.run(lambda connection: self._attempts.begin_all(connection, keys)):
            return False
        for message in messages:
            self._begun(message, 0)
        return True

    async def clear(self, messages: Sequence[Message]) -> None:
        """Strike attempts from the record: they have ended."""
        keys = {message.key for message in messages}
        await self._database.run(lambda connection: self._attempts.clear(connection, *keys))
        for message in messages:
            message.recorded = False

    async def withdraw(self, message: Message) -> None:
        """Take back the attempt that was begun last: it was called off in order."""
        await self._database.run(lambda connection: self._attempts.withdraw(connection, message.key))

    def _begun(self, message: Message, unended: int) -> None:
        message.recorded = True
        self._observer.notify(obs.AttemptBegun(self._consumer, message.event.id, unended))
