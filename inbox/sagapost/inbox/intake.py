"""One subscription: receive, hand out to the workers, settle; until stopped, or until the broker or database goes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import anyio

from sagapost.core.broker import Delivery, Subscription
from sagapost.core.context import bind
from sagapost.core.errors import BrokerError, BrokerUnavailableError, StoreUnavailableError
from sagapost.core.observer import Observer
from sagapost.inbox import observations as obs
from sagapost.inbox.availability import Availability
from sagapost.inbox.database import Database, Link
from sagapost.inbox.dispatch import Dispatcher
from sagapost.inbox.message import Arrival, Message
from sagapost.inbox.ordering import Lanes
from sagapost.inbox.settings import ConsumerSettings
from sagapost.inbox.settlement import Settlement

__all__ = ["Intake"]


class Intake:
    """What lives as long as one subscription."""

    def __init__(
        self,
        subscription: Subscription,
        dispatcher: Dispatcher,
        database: Database,
        availability: Availability,
        settings: ConsumerSettings,
        observer: Observer,
        *,
        consumer: str,
        ordered: bool,
        stop: anyio.Event,
    ) -> None:
        self._subscription = subscription
        self._dispatcher = dispatcher
        self._database = database
        self._availability = availability
        self._settings = settings
        self._observer = observer
        self._consumer = consumer
        self._ordered = ordered
        self._stop = stop
        self._lanes: Lanes[Arrival] = Lanes()
        self.settlement = Settlement(subscription, observer, consumer)
        self._receiving = anyio.CancelScope()
        self._failure: Exception | None = None
        self.unfinished = 0

    async def run(self) -> None:
        """Consume until stopped.

        :raises BrokerError: if the subscription ended; what was not acknowledged comes again.
        """
        left: list[Arrival] = []
        async with anyio.create_task_group() as settling:
            settling.start_soon(self._guard, self.settlement.run)
            async with anyio.create_task_group() as watching:
                watching.start_soon(self._watch)
                async with anyio.create_task_group() as working:
                    for _ in range(self._database.concurrency):
                        working.start_soon(self._work)
                    with self._receiving:
                        await self._guard(self._receive)
                    left = self._lanes.close()
                    # What is running is finished; what is not begun goes back.
                    working.cancel_scope.deadline = anyio.current_time() + self._settings.drain_timeout.total_seconds()
                watching.cancel_scope.cancel()
            if self._failure is None:
                await self._guard(lambda: self._leave([arrival.delivery for arrival in left]))
            settling.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _guard(self, stage: Callable[[], Awaitable[None]]) -> None:
        """Note the first failure of the broker and stop receiving; the workers finish what they have begun."""
        try:
            await stage()
        except BrokerError as error:
            self._failure = self._failure or error
            self._receiving.cancel()

    async def _watch(self) -> None:
        await self._stop.wait()
        with suppress(BrokerUnavailableError):
            # The iteration fails with the same error.
            await self._subscription.stop()
        # Whether or not the adapter ends the iteration, nothing more is taken.
        self._receiving.cancel()

    async def _receive(self) -> None:
        async for delivery in self._subscription:
            self.settlement.received(delivery)
            self._observer.notify(obs.Received(self._consumer, delivery.topic, delivery.size, delivery.delivery_count))
            arrival = self._dispatcher.read(delivery)
            lane = arrival.event.partitionkey if self._ordered and isinstance(arrival, Message) else None
            self._lanes.put(arrival, lane)

    async def _work(self) -> None:
        link = Link(self._database)
        try:
            # Nothing of the place where the consumer was started reaches a handler.
            with bind(None):
                while True:
                    taken = self._lanes.take_nowait(1)
                    if not taken:
                        await link.give_back()
                        taken = await self._lanes.take(1)
                        if not taken:
                            return
                    for lane, arrival in taken:
                        if not await self._finish(link, arrival):
                            return
                        self._lanes.done(lane)
        finally:
            await link.give_back()

    async def _finish(self, link: Link, arrival: Arrival) -> bool:
        """Bring one delivery to its end, through outages of the database; False if stopped during one."""
        delivery = arrival.delivery
        if delivery is None:
            raise TypeError("what an intake handles was delivered")
        while True:
            try:
                acknowledge = await self._dispatcher.handle(link, arrival)
            except StoreUnavailableError as error:
                await link.give_back(broken=True)
                if not await self._availability.restored(error):
                    self.unfinished += 1
                    return False
                continue
            except anyio.get_cancelled_exc_class():
                # The drain budget ran out (or the consumer is cancelled): rolled back, and the message comes again.
                self.unfinished += 1
                raise
            if acknowledge:
                self.settlement.ack(delivery)
            else:
                self.settlement.refuse(delivery)
            return True

    async def _leave(self, left: Sequence[Delivery | None]) -> None:
        """Give back what was not begun, and settle what is done."""
        with anyio.move_on_after(5):
            await self.settlement.flushed()
            waiting = [delivery for delivery in left if delivery is not None]
            if waiting:
                await self.settlement.release(*waiting)
                self._observer.notify(obs.Released(self._consumer, len(waiting)))
