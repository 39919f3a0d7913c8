"""Screening: where duplicates are likely, ask for many at once which are known, outside any transaction.

A committed dedup key is a fact, so a message that has one can be acknowledged without a transaction of its own. The
question is asked only while duplicates turn up (a redelivery, a producer that repeats itself, a replay); in the normal
case nothing is spent on it.
"""

from __future__ import annotations

from sagapost.core.observer import Observer
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared.observations import Screened
from sagapost.inbox.kept.database import Database
from sagapost.inbox.kept.dedup import Dedup

__all__ = ["Screening"]

_AFTER_A_DUPLICATE = 500
"""How many messages are screened after one that turned out to be a duplicate."""


class Screening:
    """Sorts out duplicates between receiving and the workers; keeps the order of the rest."""

    def __init__(self, database: Database, dedup: Dedup, observer: Observer, *, consumer: str) -> None:
        self._database = database
        self._dedup = dedup
        self._observer = observer
        self._consumer = consumer
        self._left = 0

    @property
    def due(self) -> bool:
        """Whether what arrives now should be screened."""
        return self._left > 0

    def found_duplicate(self) -> None:
        """Take note that duplicates are about."""
        self._left = _AFTER_A_DUPLICATE

    async def known(self, messages: list[Message]) -> set[bytes]:
        """Return the keys that are committed.

        :raises StoreUnavailableError: if the database cannot tell.
        """
        keys = {message.key for message in messages}
        known = await self._database.run(lambda connection: self._dedup.known(connection, keys))
        if known:
            self._left = _AFTER_A_DUPLICATE
            self._observer.notify(Screened(self._consumer, len(messages), len(known)))
        else:
            self._left -= min(self._left, len(messages))
        return known
