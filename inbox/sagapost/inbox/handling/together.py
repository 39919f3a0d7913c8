"""Who may share a transaction, and bringing them to their end in it; else they are handled one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import anyio

from sagapost.inbox.arriving.message import Arrival, Message
from sagapost.inbox.handling.dispatch import Dispatcher
from sagapost.inbox.handling.group_commit import Broken, GroupCommit
from sagapost.inbox.handling.guarded import EndedError
from sagapost.inbox.handling.pace import Pace
from sagapost.inbox.handling.savepoint_groups import GroupWork, SavepointGroups
from sagapost.inbox.handling.suspects import Suspects
from sagapost.inbox.handling.verdicts import broke_contract, in_group, not_begun
from sagapost.inbox.kept.database import Database, Link
from sagapost.inbox.kept.dedup import Dedup

__all__ = ["Batches", "Together", "WithSavepoints"]


class Together(ABC):
    """The groups of one consumer. Like the dispatcher's methods, `handle` may be called again with the same."""

    leaves_to_any: ClassVar[bool]
    """Whether what a group has left may be taken by any worker: it will not be in a group again with what failed."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    @abstractmethod
    def size(self, waiting: int, idle: int) -> int:
        """Return how many of the messages that wait a worker takes.

        :param idle: workers that have nothing to do, it included.
        """

    def shares(self, arrival: Arrival) -> bool:
        """Return whether a worker may take it together with others."""
        return isinstance(arrival, Message) and self._may(arrival)

    @abstractmethod
    async def handle(self, link: Link, messages: Sequence[Message]) -> Sequence[Message]:
        """Bring a group to its end in one transaction; return those to be handled one by one, in this order."""

    @abstractmethod
    def _may(self, arrival: Message) -> bool:
        """Return whether a message may share a transaction."""

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


class WithSavepoints(Together):
    """What was delivered and is handled for the first time, by quick handlers; a lone message waits for nobody."""

    leaves_to_any = True

    def __init__(self, dispatcher: Dispatcher, groups: SavepointGroups, pace: Pace, database: Database, dedup: Dedup):
        super().__init__(dispatcher)
        self._groups = groups
        self._pace = pace
        self._database = database
        self._dedup = dedup

    def size(self, waiting: int, idle: int) -> int:
        """A share of what waits, so that groups grow with the backlog only once all workers have something to do."""
        return max(1, min(self._pace.size(), waiting // idle))

    def _may(self, arrival: Message) -> bool:
        return (
            bool(arrival.calls)
            and arrival.parking is None
            and not (arrival.losses or arrival.redelivered or arrival.raised is not None)
            and self._pace.is_quick(arrival)
            and self._dispatcher.too_old(arrival) is None
        )

    async def handle(self, link: Link, messages: Sequence[Message]) -> Sequence[Message]:
        """See `Together.handle`."""
        work = await self._groups.run(link, messages)
        if work.duplicates:
            self._dispatcher.found_duplicate()
        if work.broken is None:
            return work.left
        await link.give_back(broken=True)
        ended = {id(message) for message in await self._settle_broken(work, work.broken)}
        return [message for message in messages if id(message) not in ended]

    async def _settle_broken(self, work: GroupWork, broken: EndedError) -> list[Message]:
        """Park the message whose handler ended the transaction of all; return it, and what was committed before it."""
        culprit, done = work.culprit, [message for message, *_ in work.done]
        if culprit is None:
            return []
        keys = {message.key for message in done}
        # Each was complete before the next began. If the handler has committed, all of them are.
        known = await self._database.run(lambda connection: self._dedup.known(connection, keys)) if keys else set()
        await self._dispatcher.park_broken(culprit, broke_contract(culprit, broken))
        if not keys or known != keys:
            return [culprit]
        self._groups.found_committed(work)
        return [*done, culprit]


class Batches(Together):
    """Group commit without savepoints: what fails in a batch makes all of it run one by one."""

    leaves_to_any = False

    def __init__(self, dispatcher: Dispatcher, groups: GroupCommit, suspects: Suspects, *, size: int) -> None:
        super().__init__(dispatcher)
        self._groups = groups
        self._suspects = suspects
        self._size = size

    def size(self, waiting: int, idle: int) -> int:
        """As many as there are, up to what is set."""
        del waiting, idle
        return self._size

    def shares(self, arrival: Arrival) -> bool:
        """Any: what may not share a transaction is handled after those that do."""
        del arrival
        return True

    def _may(self, arrival: Message) -> bool:
        if not arrival.calls:
            return False
        if arrival.parking is None:
            return self._dispatcher.too_old(arrival) is None
        return not (arrival.suspect or arrival.attempts) and anyio.current_time() <= arrival.begin_by

    async def handle(self, link: Link, messages: Sequence[Message]) -> Sequence[Message]:
        """See `Together.handle`: all of them, or none."""
        return () if await self._try(link, messages) else messages

    async def _try(self, link: Link, messages: Sequence[Message]) -> bool:
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
