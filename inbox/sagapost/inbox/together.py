"""Who may share a transaction, and bringing them to their end in it; else they are handled one by one."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from sagapost.inbox.database import Link
from sagapost.inbox.dispatch import Dispatcher
from sagapost.inbox.group_commit import GroupCommit
from sagapost.inbox.message import Arrival, Message
from sagapost.inbox.suspects import Suspects

__all__ = ["Together"]


class Together:
    """The groups of one consumer. Like the dispatcher's methods, `handle` may be called again with the same."""

    def __init__(self, dispatcher: Dispatcher, groups: GroupCommit, suspects: Suspects, *, ordered: bool) -> None:
        self._dispatcher = dispatcher
        self._groups = groups
        self._suspects = suspects
        self._ordered = ordered

    def may(self, arrival: Arrival) -> bool:
        """Tell whether an arrival may share a transaction with others."""
        if not isinstance(arrival, Message) or not arrival.calls:
            return False
        if arrival.parking is None:
            return self._dispatcher.too_old(arrival) is None
        return not (arrival.suspect or arrival.attempts) and anyio.current_time() <= arrival.begin_by

    async def handle(self, link: Link, messages: Sequence[Message]) -> bool:
        """Bring messages to their end in one transaction; False, and nothing has happened, if that cannot be."""
        if self._ordered and len({message.parking is None for message in messages}) > 1:
            # What was delivered comes after what is parked of its key, whichever was fed to the workers first.
            return False
        messages = sorted(messages, key=_place)
        suspects = [message for message in messages if message.redelivered]
        if not suspects:
            return await self._handle(link, messages)
        async with self._suspects.turn:
            await link.give_back()
            if not await self._suspects.begin_together(suspects):
                return False
            done = await self._handle(link, messages)
            if not done:
                # Nobody died of them. Each is put on record again when its own turn comes.
                await link.give_back()
                await self._suspects.clear(suspects)
            return done

    async def _handle(self, link: Link, messages: Sequence[Message]) -> bool:
        duplicates = await self._groups.run(link, messages)
        if duplicates is None:
            return False
        if duplicates:
            self._dispatcher.found_duplicate()
        keys = {message.event.partitionkey for message in messages if message.parking is not None}
        if self._ordered and keys:
            await link.give_back()
            for key in keys:
                if key is not None:
                    await self._dispatcher.promote(key)
        return True


def _place(message: Message) -> int:
    """Where it is in the order of parking."""
    return message.parking.id if message.parking is not None else 0
