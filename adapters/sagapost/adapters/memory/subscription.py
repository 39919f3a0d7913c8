"""The consuming side of the in-process broker."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import anyio.lowlevel

from sagapost.adapters.cloudevents import read_message
from sagapost.core.broker import Delivery, Malformed
from sagapost.core.envelope import Event
from sagapost.core.errors import BrokerUnavailableError
from sagapost.core.foreign import ForeignMessages, Incoming
from sagapost.core.life import Signal

__all__ = ["MemoryDelivery", "MemorySubscription", "StoredMessage"]


@dataclass(slots=True, order=True)
class StoredMessage:
    """A message in a queue; ordered by arrival."""

    arrival: int
    topic: str = field(compare=False)
    payload: Event | Incoming = field(compare=False)
    """The event itself, or a foreign message."""
    delivery_count: int = field(default=0, compare=False)


class MemoryDelivery:
    """One message handed to one subscription."""

    __slots__ = ("_content", "_subscription", "delivery_count", "message")

    def __init__(self, message: StoredMessage, subscription: MemorySubscription) -> None:
        self.message = message
        self.delivery_count = message.delivery_count
        self._subscription = subscription
        self._content: Event | Malformed | None = None

    @property
    def content(self) -> Event | Malformed:
        """The decoded envelope, or why there is none."""
        if self._content is None:
            payload = self.message.payload
            self._content = (
                payload if isinstance(payload, Event) else read_message(payload, self._subscription.foreign_policy)
            )
        return self._content

    @property
    def topic(self) -> str:
        """The topic the message was published under."""
        return self.message.topic

    @property
    def size(self) -> int:
        """Bytes of the body."""
        payload = self.message.payload
        return len(payload.data if isinstance(payload, Event) else payload.body)


class _Queue(Protocol):
    """What a subscription asks of its queue."""

    name: str

    def give_back(self, message: StoredMessage) -> None:
        """Put a message that was handed out back in its place."""
        ...

    def bury(self, message: StoredMessage) -> None:
        """Move a message to the queue's dead letters."""
        ...

    def leave(self, subscription: MemorySubscription) -> None:
        """Hand nothing more to a subscriber."""
        ...

    def dispatch(self) -> None:
        """Hand out what waits."""
        ...


class MemorySubscription:
    """Deliveries from one queue, at most `prefetch` of them unsettled."""

    def __init__(self, queue: _Queue, *, prefetch: int, foreign_policy: ForeignMessages) -> None:
        self.queue = queue
        self.prefetch = prefetch
        self.foreign_policy = foreign_policy
        self._received: deque[MemoryDelivery] = deque()
        self._unsettled: dict[int, MemoryDelivery] = {}
        self._stopped = False
        self._lost: str | None = None
        self._wake = Signal()

    # --- called by the queue ---

    @property
    def has_room(self) -> bool:
        """Whether another delivery fits into the prefetch."""
        return not self._stopped and self._lost is None and len(self._unsettled) < self.prefetch

    def receive(self, delivery: MemoryDelivery) -> None:
        """Take a delivery from the queue."""
        self._unsettled[delivery.message.arrival] = delivery
        self._received.append(delivery)
        self._wake.set()

    def lose(self, reason: str) -> None:
        """End the connection under the subscription: what is unsettled goes back, and counts as delivered."""
        if self._lost is None:
            self._lost = reason
            self._give_back_all(counted=True)
            self._wake.set()

    def close(self) -> None:
        """End the subscription in order: what is unsettled goes back untouched."""
        if self._lost is None:
            self._lost = "the subscription was closed"
            self._give_back_all(counted=False)

    def _give_back_all(self, *, counted: bool) -> None:
        for delivery in self._unsettled.values():
            delivery.message.delivery_count += counted
            self.queue.give_back(delivery.message)
        self._unsettled.clear()
        self._received.clear()
        self.queue.leave(self)
        self.queue.dispatch()

    # --- the port ---

    def __aiter__(self) -> MemorySubscription:
        """Iterate over deliveries in the queue's order."""
        return self

    async def __anext__(self) -> MemoryDelivery:
        """Return the next delivery."""
        await anyio.lowlevel.checkpoint()
        while not self._received and not self._stopped and self._lost is None:
            await self._wake.wait()
        if self._lost is not None:
            raise self._unavailable()
        if not self._received:
            raise StopAsyncIteration
        return self._received.popleft()

    async def ack(self, *deliveries: Delivery) -> None:
        """Forget these messages."""
        for _ in self._settle(deliveries):
            pass
        self.queue.dispatch()
        await anyio.lowlevel.checkpoint()

    async def reject(self, delivery: Delivery, *, requeue: bool) -> None:
        """Count an attempt and put the message back, or move it to the dead letters."""
        for message in self._settle((delivery,)):
            message.delivery_count += 1
            if requeue:
                self.queue.give_back(message)
            else:
                self.queue.bury(message)
        self.queue.dispatch()
        await anyio.lowlevel.checkpoint()

    async def release(self, *deliveries: Delivery) -> None:
        """Put messages back in their places; no attempt is counted."""
        for message in self._settle(deliveries):
            self.queue.give_back(message)
        self.queue.dispatch()
        await anyio.lowlevel.checkpoint()

    async def stop(self) -> None:
        """Receive nothing new."""
        if not self._stopped:
            self._stopped = True
            self.queue.leave(self)
            self._wake.set()
        await anyio.lowlevel.checkpoint()

    def _settle(self, deliveries: tuple[Delivery, ...]) -> list[StoredMessage]:
        if self._lost is not None:
            raise self._unavailable()
        settled: list[StoredMessage] = []
        for delivery in deliveries:
            if not isinstance(delivery, MemoryDelivery):
                raise TypeError(f"{type(delivery).__name__} is not a delivery of this broker")
            arrival = delivery.message.arrival
            # Identity, not equality: a redelivered message is another delivery, and settling twice changes nothing.
            if self._unsettled.get(arrival) is delivery:
                del self._unsettled[arrival]
                settled.append(delivery.message)
        # A released delivery must not be handed out by the iterator any more.
        if self._received and settled:
            self._received = deque(d for d in self._received if d.message.arrival in self._unsettled)
        return settled

    def _unavailable(self) -> BrokerUnavailableError:
        return BrokerUnavailableError(
            f"The subscription to queue {self.queue.name!r} ended: {self._lost}. "
            "What was not settled will be delivered again; subscribe again."
        )
