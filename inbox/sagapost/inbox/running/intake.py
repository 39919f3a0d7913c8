"""One subscription: receive, screen, feed the workers, acknowledge; until stopped, or the broker or database goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice

import anyio

from sagapost.core.broker import Subscription
from sagapost.core.errors import BrokerError, BrokerUnavailableError
from sagapost.core.life import Signal
from sagapost.inbox.arriving.message import Arrival, Message
from sagapost.inbox.arriving.settlement import Settlement
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.handling.dispatch import Dispatcher
from sagapost.inbox.kept.screening import Screening
from sagapost.inbox.running.shared import Shared
from sagapost.inbox.running.workers import Workers

__all__ = ["Intake"]

_SCREENED_AT_ONCE = 200


class Intake:
    """What lives as long as one subscription."""

    def __init__(
        self,
        subscription: Subscription,
        shared: Shared,
        dispatcher: Dispatcher,
        workers: Workers,
        screening: Screening,
    ) -> None:
        self._subscription = subscription
        self._dispatcher = dispatcher
        self._workers = workers
        self._screening = screening
        self._availability = shared.availability
        self._settings = shared.settings
        self._observer = shared.observer
        self._consumer = shared.name
        self._stop = shared.runtime.stop
        self.settlement = Settlement(subscription, self._observer, self._consumer)
        self._unscreened: deque[Message] = deque()
        self._to_screen = Signal()
        self._receiving = anyio.CancelScope()
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Consume until stopped, or until an outage of the database has lasted too long to hold messages.

        :raises BrokerError: if the subscription ended; what was not acknowledged comes again.
        """
        async with anyio.create_task_group() as settling:
            settling.start_soon(self._settle)
            async with anyio.create_task_group() as receiving:
                receiving.start_soon(self._watch_stop)
                receiving.start_soon(self._watch_outage)
                receiving.start_soon(self._screen)
                with self._receiving, self._noting_failure():
                    await self._receive()
                receiving.cancel_scope.cancel()
            await self._leave()
            settling.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _settle(self) -> None:
        with self._noting_failure():
            await self.settlement.run()

    @contextmanager
    def _noting_failure(self) -> Generator[None]:
        """Note the first failure of the broker and stop receiving; the workers finish what they have begun."""
        try:
            yield
        except BrokerError as error:
            self._failure = self._failure or error
            self._receiving.cancel()

    # --- receive ---

    async def _receive(self) -> None:
        settlement, limit = self.settlement, self._settings.max_bytes_in_hand
        async for delivery in self._subscription:
            settlement.received(delivery)
            self._observer.notify(obs.Received(self._consumer, delivery.topic, delivery.size, delivery.delivery_count))
            for arrival in self._dispatcher.read(delivery, settlement):
                if isinstance(arrival, Message) and (
                    self._screening.due or self._unscreened or (delivery.delivery_count and arrival.calls)
                ):
                    self._unscreened.append(arrival)
                    self._to_screen.set()
                else:
                    self._workers.feed(arrival)
            if settlement.bytes_in_hand > limit:
                # The adapter stops reading from its side; what is in flight must be settled first.
                await settlement.until_below(limit)

    async def _screen(self) -> None:
        """Acknowledge what is known; feed the rest, in order."""
        while True:
            if not self._unscreened:
                await self._to_screen.wait()
                continue
            # They stay where they are until the answer is there: an outage, or a stop, may end the wait for it.
            batch = list(islice(self._unscreened, _SCREENED_AT_ONCE))
            known = await self._availability.until_available(partial(self._screening.known, batch))
            if known is None:
                return
            for message in batch:
                self._unscreened.popleft()
                if message.key in known and message.receipt is not None:
                    message.receipt.ended()
                else:
                    self._workers.feed(message)

    # --- stop ---

    async def _watch_stop(self) -> None:
        await self._stop.wait()
        with suppress(BrokerUnavailableError):
            # The iteration fails with the same error.
            await self._subscription.stop()
        # What the adapter still holds goes back when the subscription closes.
        self._receiving.cancel()

    async def _watch_outage(self) -> None:
        """Let go of the messages before the broker takes them away, when the database stays away."""
        while not await self._availability.lost_for(self._settings.release_after):
            pass
        self._receiving.cancel()

    async def _leave(self) -> None:
        """Give back what was not begun; on stop, finish and settle the rest first."""
        mine: list[Arrival] = [*self._unscreened, *self._workers.withdraw(self._is_mine)]
        if self._stop.is_set():
            await self._workers.drain(self._settings.drain_timeout)
        if self._failure is None:
            with self._noting_failure():
                await self._give_back(mine)

    async def _give_back(self, arrivals: list[Arrival]) -> None:
        with anyio.move_on_after(5):
            await self.settlement.flushed()
            # Of a delivery that is several messages some may have come to their end; it goes back once, as a whole.
            receipts = dict.fromkeys(arrival.receipt for arrival in arrivals if arrival.receipt is not None)
            deliveries = [receipt.delivery for receipt in receipts]
            if deliveries:
                await self.settlement.release(*deliveries)
                self._observer.notify(obs.GivenBack(self._consumer, len(deliveries)))

    def _is_mine(self, arrival: Arrival) -> bool:
        return arrival.receipt is not None and arrival.receipt.settlement is self.settlement
