"""`TrackerConsumer`: handles every event and folds it, in batches, until stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from sagapost.core.backoff import Backoff
from sagapost.core.broker import Broker, Delivery, Malformed, Queue, Subscription
from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError
from sagapost.core.life import Attempts, Runtime
from sagapost.core.observer import Observer
from sagapost.sagas.tracker import observations as obs
from sagapost.sagas.tracker.lifecycle import clean
from sagapost.sagas.tracker.tracker import Tracker

__all__ = ["TrackerConsumer", "TrackerConsumerSettings"]


@dataclass(frozen=True, slots=True)
class TrackerConsumerSettings:
    """Settings of one consumer of a tracker.

    :raises ConfigurationError: if one is out of range.
    """

    queue: str = "sagapost-tracker"
    """The tracker's queue; it observes every event. Trackers with different databases need different queues."""
    batch: int = 1_000
    """Up to this many events in one transaction, taken from what has arrived; nothing waits for a batch to fill."""
    prefetch: int = 2_000
    """Messages the broker hands out ahead; together with the size of an event this bounds the memory."""
    prune_interval: timedelta = timedelta(minutes=10)
    """How often what is over for long is forgotten."""
    reconnect: Backoff = field(
        default_factory=lambda: Backoff(base=timedelta(milliseconds=200), cap=timedelta(seconds=10))
    )
    """Wait between attempts to reach the broker or the database."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 1 <= self.batch <= self.prefetch <= 60_000:
            raise ConfigurationError(
                f"TrackerConsumerSettings: 1 <= batch <= prefetch <= 60,000, not {self.batch} and {self.prefetch}."
            )


class TrackerConsumer:
    """Consumes all events into a tracker. Several may share the queue and the database.

    An event is acknowledged after it is durable in the tracker's database: killed at any point, nothing is lost, and
    what is delivered again changes nothing. While the database is away nothing is acknowledged. Whatever an event or
    message holds, it stops no other: what cannot be folded is passed over, reported, and acknowledged.
    """

    def __init__(
        self,
        tracker: Tracker,
        broker: Broker,
        *,
        settings: TrackerConsumerSettings | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._tracker = tracker
        self._broker = broker
        self._settings = settings if settings is not None else TrackerConsumerSettings()
        self._runtime = Runtime("tracker", observer=observer, backoff=self._settings.reconnect)
        self._observer = self._runtime.observer

    @property
    def queue(self) -> Queue:
        """The queue that is consumed."""
        return Queue(self._settings.queue, frozenset({"#"}), observer=True)

    def stop(self) -> None:
        """Receive nothing new, fold what has arrived, and let `run` return."""
        self._runtime.stop.set()

    async def run(self) -> None:
        """Consume until `stop` is called or the task is cancelled. Outages are waited out.

        :raises SchemaError: if the tables are missing or of another version.
        :raises BrokerRefusedError, TopologyConflictError: if the broker will have none of it.
        """
        runtime = self._runtime
        await runtime.until_available(self._tracker.check)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.every, self._settings.prune_interval, self._prune)
            await runtime.keep(self._consume)
            tasks.cancel_scope.cancel()

    # --- one subscription ---

    async def _consume(self, attempts: Attempts) -> None:
        send, receive = anyio.create_memory_object_stream[Delivery](self._settings.prefetch)
        async with self._broker.subscribe(self.queue, prefetch=self._settings.prefetch) as subscription:
            attempts.connected()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._receive, subscription, send)
                tasks.start_soon(self._stop_on_demand, subscription)
                async with receive:
                    await self._fold_all(subscription, receive, attempts)
                tasks.cancel_scope.cancel()

    async def _receive(self, subscription: Subscription, send: MemoryObjectSendStream[Delivery]) -> None:
        async with send:
            async for delivery in subscription:
                await send.send(delivery)

    async def _stop_on_demand(self, subscription: Subscription) -> None:
        # The stream then ends by itself, after what was received.
        await self._runtime.stop.wait()
        await subscription.stop()

    async def _fold_all(
        self, subscription: Subscription, receive: MemoryObjectReceiveStream[Delivery], attempts: Attempts
    ) -> None:
        async for first in receive:
            batch = [first]
            while len(batch) < self._settings.batch:
                try:
                    batch.append(receive.receive_nowait())
                except (anyio.WouldBlock, anyio.EndOfStream):
                    break
            fold = partial(self._tracker.fold, self._events(batch), observer=self._observer)
            # What has arrived waits here for the database; the broker hands out no more than the prefetch. After the
            # stop it is tried once.
            stopping = self._runtime.stop.is_set()
            changed = await fold() if stopping else await self._runtime.until_available(fold)
            if changed is None:
                return
            await subscription.ack(*batch)
            attempts.worked()
            self._observer.notify(obs.Folded(len(batch), changed))

    def _events(self, batch: Sequence[Delivery]) -> list[Event]:
        events: list[Event] = []
        for delivery in batch:
            content = delivery.content
            if isinstance(content, Malformed):
                # Whoever it was meant for parks it; here there is nothing to fold.
                reason = clean(content.reason)
                self._observer.notify(obs.PassedOver(content.message_id, content.type, None, "message", reason))
            else:
                events.append(content)
        return events

    async def _prune(self) -> None:
        forgotten = await self._tracker.prune()
        if forgotten:
            self._observer.notify(obs.TrackerPruned(forgotten))
