"""The workers: a bounded number of tasks that bring messages to their end, through outages of the database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import anyio

from sagapost.core.context import bind
from sagapost.core.errors import StoreUnavailableError
from sagapost.inbox.arriving.message import Arrival, Message, Unreadable
from sagapost.inbox.arriving.ordering import Lanes
from sagapost.inbox.handling.dispatch import Dispatcher
from sagapost.inbox.handling.guarded import ConnectionLostError
from sagapost.inbox.handling.together import Together
from sagapost.inbox.kept.database import Link
from sagapost.inbox.running.shared import Shared

__all__ = ["Workers"]


class Workers:
    """Live as long as the consumer; what they are fed comes from subscriptions and from the parked messages."""

    def __init__(
        self,
        shared: Shared,
        dispatcher: Dispatcher,
        together: Together,
    ) -> None:
        self._dispatcher = dispatcher
        self._together = together
        self._database = shared.database
        self._availability = shared.availability
        self._idle = 0
        self._stop = shared.runtime.stop
        self._lanes: Lanes[Arrival] = Lanes()
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._left: list[Arrival] = []
        self.unfinished = 0
        """Messages in work when the drain budget ran out, or when stopped during an outage."""

    def feed(self, arrival: Arrival) -> None:
        """Hand over a message; in an ordered inbox behind the others of its ordering key."""
        self._lanes.put(arrival, arrival.lane if isinstance(arrival, Message) else None)

    def withdraw(self, which: Callable[[Arrival], bool]) -> list[Arrival]:
        """Take back what is not yet in work."""
        return self._lanes.withdraw(which)

    async def run(self) -> None:
        """Work until `drain`."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    for _ in range(self._database.concurrency):
                        tasks.start_soon(self._work)
        finally:
            self._ended.set()

    async def drain(self, budget: timedelta) -> None:
        """Take nothing new, and finish what is in work, within the budget."""
        self._left += self._lanes.close()
        for arrival in self._left:
            _let_go(arrival)
        with anyio.move_on_after(budget.total_seconds()):
            await self._ended.wait()
        self._scope.cancel()
        await self._ended.wait()

    def left(self) -> list[Arrival]:
        """Return what was not begun, after the workers have ended."""
        self._left += self._lanes.close()
        left, self._left = self._left, []
        return left

    async def _work(self) -> None:
        link = Link(self._database)
        try:
            # Nothing of the place where the consumer was started reaches a handler.
            with bind(None):
                while not self._stop.is_set():
                    taken = await self._take(link)
                    if len(taken) == 1:
                        await self._finish(link, taken[0][1])
                    else:
                        await self._finish_all(link, [arrival for _, arrival in taken])
                    for lane in {lane for lane, _ in taken}:
                        self._lanes.done(lane)
        finally:
            await link.give_back()

    async def _take(self, link: Link) -> list[tuple[str | None, Arrival]]:
        """Wait for something to do; empty once nothing more comes."""
        self._idle += 1
        try:
            taken = self._lanes.take_nowait(self._size(), self._together.shares)
            if not taken:
                await link.give_back()
                taken = await self._lanes.take(self._size, self._together.shares)
        finally:
            self._idle -= 1
        return taken

    def _size(self) -> int:
        return self._together.size(len(self._lanes), self._idle)

    async def _finish_all(self, link: Link, arrivals: Sequence[Arrival]) -> None:
        """Bring what was taken to its end: together where that is possible, else one by one in order."""
        groups, rest = self._together.split(arrivals)
        for index, group in enumerate(groups):
            left = self._put_back(await self._finish_together(link, group)) if len(group) > 1 else group
            if not await self._finish_each(link, left):
                self.unfinished += sum(map(len, groups[index + 1 :])) + len(rest)
                return
        await self._finish_each(link, rest)

    def _put_back(self, left: Sequence[Message]) -> Sequence[Message]:
        """Let any worker handle what a group has left; return what this one must: for order, or at a stop."""
        if self._lanes.closed or not self._together.leaves_to_any:
            return left
        for message in left:
            if message.lane is None:
                self._lanes.put(message, None)
        return [message for message in left if message.lane is not None]

    async def _finish_each(self, link: Link, arrivals: Sequence[Arrival]) -> bool:
        """Bring messages to their end one by one in order; False if stopped during an outage of the database."""
        for index, arrival in enumerate(arrivals):
            if not await self._finish(link, arrival):
                self.unfinished += len(arrivals) - index - 1
                return False
        return True

    async def _finish_together(self, link: Link, messages: Sequence[Message]) -> Sequence[Message]:
        """Bring messages to their end in a group; return those that are to be run one by one."""
        while True:
            try:
                left = await self._together.handle(link, messages)
            except StoreUnavailableError as error:
                await link.give_back(broken=True)
                _count_loss(error, messages)
                if not await self._availability.restored(error):
                    return messages
                if isinstance(error, ConnectionLostError):
                    # One of them may be why, and must be told from the others.
                    return messages
                continue
            except anyio.get_cancelled_exc_class():
                self.unfinished += len(messages)
                for message in messages:
                    await self._call_off(message)
                raise
            self._availability.worked()
            ended = {id(message) for message in messages}.difference(map(id, left))
            for message in messages:
                if id(message) in ended:
                    _settle(message)
                    _let_go(message)
            return left

    async def _finish(self, link: Link, arrival: Arrival) -> bool:
        """Bring one message to its end, through outages of the database; False if stopped during one."""
        try:
            while True:
                try:
                    if isinstance(arrival, Message) and arrival.parking is not None:
                        await self._dispatcher.handle_parked(link, arrival)
                    else:
                        settle = await self._dispatcher.handle(link, arrival)
                        _settle(arrival, refuse=settle == "refuse")
                except StoreUnavailableError as error:
                    await link.give_back(broken=True)
                    _count_loss(error, [arrival])
                    if not await self._availability.restored(error):
                        self.unfinished += 1
                        return False
                else:
                    self._availability.worked()
                    return True
        except anyio.get_cancelled_exc_class():
            self.unfinished += 1
            await self._call_off(arrival)
            raise
        finally:
            _let_go(arrival)

    async def _call_off(self, arrival: Arrival) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(2):
            try:
                await self._dispatcher.call_off(arrival)
            except StoreUnavailableError:
                # Then it counts as a crash, of which it takes several.
                return


def _count_loss(error: StoreUnavailableError, arrivals: Sequence[Arrival]) -> None:
    if isinstance(error, ConnectionLostError):
        for arrival in arrivals:
            if isinstance(arrival, Message):
                arrival.losses += 1


def _let_go(arrival: Arrival) -> None:
    """Say that nobody works on it any more."""
    if isinstance(arrival, Message) and arrival.on_end is not None:
        arrival.on_end()


def _settle(arrival: Message | Unreadable, *, refuse: bool = False) -> None:
    if arrival.receipt is not None:
        arrival.receipt.ended(refuse=refuse)
