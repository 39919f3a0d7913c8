"""Who may share a transaction, and bringing them to their end in it; else they are handled one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import anyio

from sagapost.inbox.arriving.message import Arrival, Message
from sagapost.inbox.handling.dispatch import Dispatcher
from sagapost.inbox.handling.group_commit import Broken, GroupCommit
from sagapost.inbox.handling.suspects import Suspects
from sagapost.inbox.handling.verdicts import in_group, not_begun
from sagapost.inbox.kept.database import Link

__all__ = ["Together"]


class Together:
    """The groups of one consumer. Like the dispatcher's methods, `handle` may be called again with the same."""

    def __init__(self, dispatcher: Dispatcher, groups: GroupCommit, suspects: Suspects) -> None:
        self._dispatcher = dispatcher
        self._groups = groups
        self._suspects = suspects

    def split(self, arrivals: Sequence[Arrival]) -> tuple[list[list[Message]], list[Arrival]]:
        """Return those that may share a transaction, in groups, and the rest, which is to be handled one by one.

        In an ordered inbox, with the groups handled first and in turn, no message comes before another of its key.
        """
        parked: list[Message] = []
        delivered: list[Message] = []
        rest: list[Arrival] = []
        for lane in self._lanes(arrivals):
            sharing = [arrival for arrival in lane if isinstance(arrival, Message) and self._may(arrival)]
            if len(sharing) < len(lane):
                rest += lane
                continue
            # What was delivered comes after what is parked of its key, whichever was fed to the workers first.
            parked += [message for message in sharing if message.parking is not None]
            delivered += [message for message in sharing if message.parking is None]
        return [group for group in (sorted(parked, key=_place), delivered) if group], rest

    def _lanes(self, arrivals: Sequence[Arrival]) -> Iterable[Sequence[Arrival]]:
        """Return together what one of has to wait for another of."""
        lanes: dict[str, list[Arrival]] = {}
        for arrival in arrivals:
            key = arrival.lane if isinstance(arrival, Message) else None
            if key is None:
                yield [arrival]
            else:
                lanes.setdefault(key, []).append(arrival)
        yield from lanes.values()

    def _may(self, arrival: Message) -> bool:
        if not arrival.calls:
            return False
        if arrival.parking is None:
            return self._dispatcher.too_old(arrival) is None
        return not (arrival.suspect or arrival.attempts) and anyio.current_time() <= arrival.begin_by

    async def handle(self, link: Link, messages: Sequence[Message]) -> bool:
        """Bring a group to its end in one transaction; False, and nothing has happened, if that cannot be."""
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
        ended = await self._groups.run(link, messages)
        if ended is None:
            return False
        if ended.broken is not None:
            await link.give_back(broken=True)
            await self._park_broken(ended.broken)
            return True
        if ended.duplicates:
            self._dispatcher.found_duplicate()
        self._dispatcher.parked_behind(ended.behind)
        # What they waited for may have gone between the look and the commit, as for one that is parked alone.
        moved = [*ended.behind, *(message for message in messages if message.parking is not None)]
        keys = {key for message in moved if (key := message.order) is not None}
        if keys:
            await link.give_back()
            await self._dispatcher.promote(keys)
        return True

    async def _park_broken(self, broken: Broken) -> None:
        for message in broken.begun:
            await self._dispatcher.park_broken(message, in_group(broken.error))
        for message in broken.not_begun:
            await self._dispatcher.park_broken(message, not_begun(message, broken.error))


def _place(message: Message) -> int:
    """Where it is in the order of parking."""
    return message.parking.id if message.parking is not None else 0
