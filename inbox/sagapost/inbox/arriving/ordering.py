"""Who may be handled next: in the order of arrival, and for an ordered inbox one of each ordering key at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio

__all__ = ["Lanes"]

T = TypeVar("T")


class Lanes(Generic[T]):
    """Items waiting for a worker. Items of one lane are handed out one after the other, in order.

    An item without a lane waits for nobody. Memory: one entry per lane that has an item in work.
    """

    def __init__(self) -> None:
        self._ready: deque[tuple[str | None, T]] = deque()
        self._behind: dict[str, deque[T]] = {}
        self._waiters: deque[anyio.Event] = deque()
        self._closed = False
        self._waiting = 0

    def __len__(self) -> int:
        """Return how many wait, those that nobody may take yet included."""
        return self._waiting

    def put(self, item: T, lane: str | None) -> None:
        """Add an item at the end."""
        self._waiting += 1
        if lane is None:
            self._ready.append((None, item))
        elif (queue := self._behind.get(lane)) is not None:
            queue.append(item)
            return
        else:
            self._behind[lane] = deque()
            self._ready.append((lane, item))
        if self._waiters:
            self._waiters.popleft().set()

    def take_nowait(self, limit: int, shares: Callable[[T], bool] = lambda _: True) -> list[tuple[str | None, T]]:
        """Take up to `limit` items that may be handled now; several of a lane come in their order.

        Each lane in the result is the caller's until `done` is called for it.

        :param shares: whether an item may be taken together with others; one that may not comes by itself.
        """
        taken: list[tuple[str | None, T]] = []
        while self._ready and len(taken) < limit:
            lane, item = self._ready[0]
            alone = not shares(item)
            if alone and taken:
                break
            self._ready.popleft()
            taken.append((lane, item))
            if alone:
                break
            if lane is not None:
                queue = self._behind[lane]
                while queue and len(taken) < limit and shares(queue[0]):
                    taken.append((lane, queue.popleft()))
        self._waiting -= len(taken)
        return taken

    async def take(
        self, limit: Callable[[], int], shares: Callable[[T], bool] = lambda _: True
    ) -> list[tuple[str | None, T]]:
        """Like `take_nowait`, but wait for an item; empty once `close` was called.

        :param limit: asked when there is one.
        """
        while not (taken := self.take_nowait(limit(), shares)):
            if self._closed:
                break
            waiter = anyio.Event()
            self._waiters.append(waiter)
            try:
                await waiter.wait()
            except BaseException:
                if not waiter.is_set():
                    self._waiters.remove(waiter)
                elif self._ready and self._waiters:
                    # Woken and cancelled at once: pass the call on.
                    self._waiters.popleft().set()
                raise
        return taken

    @property
    def closed(self) -> bool:
        """Whether nothing more is handed out."""
        return self._closed

    def done(self, lane: str | None) -> None:
        """Let the next item of a lane go."""
        if lane is None:
            return
        queue = self._behind[lane]
        if not queue:
            del self._behind[lane]
            return
        self._ready.append((lane, queue.popleft()))
        if self._waiters:
            self._waiters.popleft().set()

    def withdraw(self, which: Callable[[T], bool]) -> list[T]:
        """Take back what nobody has taken yet."""
        taken: list[T] = []
        for name, queue in self._behind.items():
            taken += filter(which, queue)
            self._behind[name] = deque(item for item in queue if not which(item))
        ready, self._ready = self._ready, deque()
        for lane, item in ready:
            if not which(item):
                self._ready.append((lane, item))
                continue
            taken.append(item)
            # The head of a lane is gone: the next one takes its place.
            self.done(lane)
        self._waiting -= len(taken)
        return taken

    def close(self) -> list[T]:
        """Hand out nothing more; return what waits, and wake everybody."""
        self._closed = True
        left = [item for _, item in self._ready]
        self._ready.clear()
        for queue in self._behind.values():
            left += queue
            queue.clear()
        self._waiting = 0
        while self._waiters:
            self._waiters.popleft().set()
        return left
