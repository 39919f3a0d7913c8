"""Parked messages whose time has come go back to the workers, beside what the broker delivers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import anyio

from sagapost.core.errors import StoreUnavailableError
from sagapost.core.life import Signal
from sagapost.inbox.arriving.message import Arrival, Message, Parking
from sagapost.inbox.handling.dispatch import Dispatcher
from sagapost.inbox.kept.stranded import Stranded
from sagapost.inbox.running.shared import Shared
from sagapost.inbox.running.workers import Workers

__all__ = ["Retries"]

_SWEEP_EVERY = 30
"""Polling intervals between two looks for messages that a crash left behind nothing."""


class Retries:
    """Looks for due messages and feeds them to the workers; takes no more while each worker has one.

    Claiming more than can be worked on would only let the claims lapse. But those in flight are not waited for as one:
    a message that is stuck (behind a lock, in a slow handler) holds up nobody else. What was in flight when a process
    died has turns of its own, with nothing else in flight, so that neither waits for the other to be all done.
    """

    def __init__(
        self,
        shared: Shared,
        dispatcher: Dispatcher,
        workers: Workers,
        stranded: Stranded,
    ) -> None:
        self._dispatcher = dispatcher
        self._workers = workers
        self._availability = shared.availability
        self._stranded = stranded
        self._interval = shared.settings.poll_interval.total_seconds()
        self._limit = shared.database.concurrency
        self._ordered = shared.inbox.ordered
        self._stop = shared.runtime.stop
        self._in_hand: set[Parking] = set()
        self._alone = False
        """A suspect is in flight; nothing else may be until it has come to its end."""
        self._suspects_at = -math.inf
        """When a suspect is looked for."""
        self._others_first = False
        """A suspect had the last turn."""
        self._sweep_at = -math.inf
        self._news = Signal()
        """A message has ended, or the consumer is to stop."""

    async def run(self) -> None:
        """Look until stopped."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_stop)
            while not self._stop.is_set():
                await self._availability.until_available(self._look)
                await self._wait()

    async def _look(self) -> None:
        await self._stranded.look()
        if self._ordered and anyio.current_time() >= self._sweep_at:
            await self._dispatcher.promote_all()
            self._sweep_at = anyio.current_time() + _SWEEP_EVERY * self._interval
        await self._claim()

    async def _claim(self) -> None:
        room = self._limit - len(self._in_hand)
        if self._alone or room <= 0:
            return
        turn = self._suspects_turn() and not self._in_hand
        self._others_first = False
        for message in await self._dispatcher.claim_due(limit=room, suspects=turn):
            self._alone = self._others_first = message.suspect
            self._feed(message)
        if turn and not self._alone:
            self._suspects_at = anyio.current_time() + self._interval

    def _suspects_turn(self) -> bool:
        return anyio.current_time() >= self._suspects_at and not self._others_first

    def _feed(self, message: Message) -> None:
        place = message.parking
        if place is None:
            raise ValueError("the message is not parked")

        def ended() -> None:
            self._in_hand.discard(place)
            self._alone = False
            self._news.set()

        self._in_hand.add(place)
        message.on_end = ended
        self._workers.feed(message)

    async def _wait(self) -> None:
        """Wait until half of what may be in flight has ended, or all where a suspect has its turn.

        Or for the interval, if there is room for more.
        """
        few = 0 if self._suspects_turn() else self._limit // 2
        with anyio.move_on_after(self._interval):
            while True:
                await self._news.wait()
                if self._stop.is_set() or len(self._in_hand) <= few:
                    return

    async def _watch_stop(self) -> None:
        await self._stop.wait()
        self._news.set()

    async def call_off(self, left: Sequence[Arrival]) -> None:
        """Give back the claims of what was not begun before the consumer stopped."""
        for arrival in left:
            try:
                await self._dispatcher.call_off(arrival)
            except StoreUnavailableError:
                # The claims lapse by themselves.
                return
