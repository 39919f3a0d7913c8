"""`MemoryBroker`: the broker port inside one process, deterministic, with levers to make it misbehave."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

import anyio.lowlevel

from sagapost.adapters.cloudevents import read_again
from sagapost.adapters.memory.publisher import MemoryPublisher
from sagapost.adapters.memory.queue import MemoryQueue
from sagapost.adapters.memory.subscription import MemorySubscription, StoredMessage
from sagapost.core.broker import (
    BrokerCapabilities,
    Confirmed,
    Malformed,
    Outgoing,
    Publisher,
    PublishResult,
    Queue,
    QueueDepth,
    Rejected,
    Returned,
    Subscription,
)
from sagapost.core.envelope import Event
from sagapost.core.errors import BrokerUnavailableError, TopologyConflictError
from sagapost.core.foreign import ForeignMessages, Incoming

__all__ = ["MemoryBroker"]

_CAPABILITIES = BrokerCapabilities(
    durable=False,
    reports_unroutable=True,
    counts_deliveries=True,
    single_active_consumer=True,
    crosses_processes=False,
)


class MemoryBroker:
    """A broker that lives as long as this object, used from one event loop.

    Queues outlive their consumers and keep order; nothing here waits for real time, so a test that drives it gets
    the same run every time. Besides the port it has levers: `pause`/`resume` (a resource alarm), `disconnect` (every
    connection drops), `go_down`/`come_up` (an outage), `refuse` (negative confirms), `forbid`/`allow` (the right to
    publish under a topic), `hold_confirms`/`release_confirms` (published, but not yet answered), `inject` (a
    foreign message).
    """

    def __init__(
        self,
        name: str = "default",
        *,
        max_message_bytes: int = 16 * 1024 * 1024,
        foreign_policy: ForeignMessages | None = None,
    ) -> None:
        self._name = name
        self._max_message_bytes = max_message_bytes
        self._foreign_policy = foreign_policy or ForeignMessages()
        self._queues: dict[str, MemoryQueue] = {}
        self._publishers: list[MemoryPublisher] = []
        self._subscriptions: list[MemorySubscription] = []
        self._arrivals = itertools.count(1)
        self._refusal: Callable[[Event], bool] | None = None
        self._forbidden: set[str] = set()
        self._paused = self._holding = self._down = False

    @property
    def capabilities(self) -> BrokerCapabilities:
        """What this adapter promises."""
        return _CAPABILITIES

    @property
    def address(self) -> str:
        """Its name, as a URL."""
        return f"memory://{self._name}"

    # --- the port ---

    @asynccontextmanager
    async def publisher(self) -> AsyncGenerator[Publisher]:
        """Open a publisher."""
        await self._connect()
        publisher = MemoryPublisher(
            self._publish,
            blocked=self._paused,
            holding=self._holding,
            max_message_bytes=self._max_message_bytes,
        )
        self._publishers.append(publisher)
        try:
            yield publisher
        finally:
            self._publishers.remove(publisher)
            publisher.lose("the publisher was closed")

    @asynccontextmanager
    async def subscribe(self, queue: Queue, *, prefetch: int) -> AsyncGenerator[Subscription]:
        """Declare the queue and consume from it."""
        if prefetch < 1:
            raise ValueError(f"prefetch is {prefetch}; at least one delivery has to fit.")
        await self._connect()
        target = self._declare(queue)
        subscription = MemorySubscription(
            target, prefetch=prefetch, foreign_policy=queue.foreign or self._foreign_policy
        )
        self._subscriptions.append(subscription)
        target.join(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            subscription.close()

    async def declare(self, *queues: Queue) -> None:
        """Create queues and bindings ahead of time."""
        await self._connect()
        for queue in queues:
            self._declare(queue)

    def read(
        self, message: Malformed, topic: str, *, received_at: datetime, foreign: ForeignMessages | None = None
    ) -> Event | Malformed:
        """Read again what could not be read, by the policy for foreign messages as it is now."""
        return read_again(message, topic, foreign or self._foreign_policy, received_at=received_at)

    async def depths(self, *queues: str) -> Sequence[QueueDepth]:
        """Return how much lies in these queues."""
        await self._connect()
        return [self._depth(name) for name in queues]

    def _depth(self, name: str) -> QueueDepth:
        queue = self._queues.get(name)
        if queue is None:
            return QueueDepth(name, None, None, None, None)
        return QueueDepth(name, len(queue), len(queue.subscribers), f"{name} (dead letters)", len(queue.dead))

    # --- levers ---

    def pause(self) -> None:
        """Act as under a resource alarm: publishers see `blocked`, and what they send waits."""
        self._paused = True
        for publisher in self._publishers:
            publisher.block()

    def resume(self) -> None:
        """End the pause: what was sent meanwhile is taken in, in order."""
        self._paused = False
        for publisher in self._publishers:
            publisher.unblock()

    def hold_confirms(self) -> None:
        """Publish what is sent but answer nothing, until `release_confirms` or a disconnect (then: `Unknown`)."""
        self._holding = True
        for publisher in self._publishers:
            publisher.hold()

    def release_confirms(self) -> None:
        """Give the answers kept back."""
        self._holding = False
        for publisher in self._publishers:
            publisher.give_answers()

    def refuse(self, predicate: Callable[[Event], bool] | None) -> None:
        """Answer `Rejected` to the events `predicate` picks, from now on; None: take everything again."""
        self._refusal = predicate

    def forbid(self, topic: str) -> None:
        """Answer `Rejected` to what is published under this topic, as for a user without the right to."""
        self._forbidden.add(topic)

    def allow(self, topic: str) -> None:
        """Give the right to publish under this topic back."""
        self._forbidden.discard(topic)

    def disconnect(self) -> None:
        """Drop every connection at once; new ones succeed."""
        reason = "the connection was lost"
        for publisher in self._publishers:
            publisher.lose(reason)
        # All are detached first: what one gives back must not be handed to another that is about to go as well.
        for queue in self._queues.values():
            queue.subscribers.clear()
        for subscription in list(self._subscriptions):
            subscription.lose(reason)

    def go_down(self) -> None:
        """Begin an outage: drop every connection and refuse new ones. Queues keep what they hold."""
        self._down = True
        self.disconnect()

    def come_up(self) -> None:
        """End the outage."""
        self._down = False

    def inject(
        self,
        topic: str,
        body: bytes,
        *,
        headers: Mapping[str, object] | None = None,
        content_type: str | None = None,
        message_id: str | None = None,
        type: str | None = None,  # noqa: A002 - the name of the message property
        app_id: str | None = None,
    ) -> int:
        """Publish a message as a producer would that is not sagapost; return to how many queues it went."""
        message = Incoming(
            body=body,
            topic=topic,
            headers=dict(headers or {}),
            content_type=content_type,
            message_id=message_id,
            type=type,
            app_id=app_id,
        )
        return len(self._route(topic, message))

    def delete_queue(self, name: str) -> None:
        """Delete a queue with what it holds; its consumers are cancelled."""
        queue = self._queues.pop(name)
        for subscription in list(queue.subscribers):
            subscription.lose("the broker cancelled the consumer: the queue was deleted")

    def waiting(self, queue: str) -> list[bytes]:
        """Return the bodies waiting in a queue, in order, without those that are handed out."""
        return self._queues[queue].waiting_bodies()

    def dead_letters(self, queue: str) -> list[bytes]:
        """Return the bodies of a queue's dead letters, oldest first."""
        return self._queues[queue].dead_bodies()

    # --- inside ---

    async def _connect(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self._down:
            raise BrokerUnavailableError(f"The broker at {self.address} is down. It will be tried again.")

    def _declare(self, queue: Queue) -> MemoryQueue:
        existing = self._queues.get(queue.name)
        if existing is None:
            existing = self._queues[queue.name] = MemoryQueue(queue.name, ordered=queue.ordered)
        elif existing.ordered != queue.ordered:
            raise TopologyConflictError(
                entity="queue",
                name=queue.name,
                argument="ordered",
                detail=f"asked for {queue.ordered}, it has {existing.ordered}",
            )
        existing.observer = queue.observer
        existing.bind(queue.topics)
        return existing

    def _publish(self, outgoing: Outgoing) -> PublishResult:
        event = outgoing.event
        if len(event.data) > self._max_message_bytes:
            return Rejected(
                f"its {len(event.data):,} bytes are over the broker's limit of {self._max_message_bytes:,} per message"
            )
        if outgoing.destination is not None:
            return Rejected(f"the exchange {outgoing.destination!r} does not exist on the broker")
        if outgoing.topic in self._forbidden:
            return Rejected(f"access to topic {outgoing.topic!r} refused")
        if self._refusal is not None and self._refusal(event):
            return Rejected("the broker refused the message")
        queues = self._route(outgoing.topic, event)
        if all(queue.observer for queue in queues):
            return Returned(f"no queue is bound for topic {outgoing.topic!r}", observed=bool(queues))
        return Confirmed()

    def _route(self, topic: str, payload: Event | Incoming) -> list[MemoryQueue]:
        queues = [queue for queue in self._queues.values() if queue.is_bound_to(topic)]
        for queue in queues:
            queue.put(StoredMessage(next(self._arrivals), topic, payload))
        return queues
