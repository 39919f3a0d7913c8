"""Parked messages whose time has come go back to the workers, beside what the broker delivers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import anyio

from sagapost.core.errors import StoreUnavailableError
from sagapost.inbox.availability import Availability
from sagapost.inbox.dispatch import Dispatcher
from sagapost.inbox.message import Arrival, Message
from sagapost.inbox.workers import Workers

__all__ = ["Retries"]

_SWEEP_EVERY = 30
"""Rounds between two looks for messages that a crash left behind nothing."""


class Retries:
    """Looks for due messages, feeds them to the workers, and waits for them before it looks again."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        workers: Workers,
        availability: Availability,
        *,
        interval: timedelta,
        limit: int,
        ordered: bool,
        stop: anyio.Event,
    ) -> None:
        self._dispatcher = dispatcher
        self._workers = workers
        self._availability = availability
        self._interval = interval.total_seconds()
        self._limit = limit
        self._ordered = ordered
        self._stop = stop

    async def run(self) -> None:
        """Look until stopped."""
        rounds = 0
        while not self._stop.is_set():
            try:
                if self._ordered and rounds % _SWEEP_EVERY == 0:
                    await self._dispatcher.promote_all()
                rounds += 1
                due = await self._dispatcher.claim_due(limit=self._limit)
            except StoreUnavailableError as error:
                await self._availability.restored(error)
                continue
            if due:
                await self._run_round(due)
            else:
                with anyio.move_on_after(self._interval):
                    await self._stop.wait()

    async def _run_round(self, due: Sequence[Message]) -> None:
        ends = [anyio.Event() for _ in due]
        for message, end in zip(due, ends, strict=True):
            message.ended = end
            self._workers.feed(message)
        # Claiming more while these wait would only let their claims lapse.
        for end in ends:
            await end.wait()

    async def call_off(self, left: Sequence[Arrival]) -> None:
        """Give back the claims of what was not begun before the consumer stopped."""
        for arrival in left:
            try:
                await self._dispatcher.call_off(arrival)
            except StoreUnavailableError:
                # The claims lapse by themselves.
                return
