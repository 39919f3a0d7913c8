"""A queue of the in-process broker: what waits, what is handed out, and who is next to receive."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from sagapost.adapters.memory.subscription import MemoryDelivery, MemorySubscription, StoredMessage
from sagapost.adapters.memory.topics import TopicPattern
from sagapost.core.foreign import Incoming

__all__ = ["MemoryQueue"]


@dataclass(slots=True)
class MemoryQueue:
    """One queue. Order of arrival is kept, also for messages that come back."""

    name: str
    ordered: bool
    observer: bool = False
    """Whether it gets what is published without counting as a listener."""
    patterns: dict[str, TopicPattern] = field(default_factory=dict[str, TopicPattern])
    ready: deque[StoredMessage] = field(default_factory=deque[StoredMessage])
    returned: list[StoredMessage] = field(default_factory=list[StoredMessage])
    """Messages given back, as a heap by arrival; they were taken before anything in `ready`."""
    subscribers: deque[MemorySubscription] = field(default_factory=deque[MemorySubscription])
    dead: list[StoredMessage] = field(default_factory=list[StoredMessage])

    def bind(self, topics: frozenset[str]) -> None:
        """Add bindings; those already there stay (a binding is never removed by declaring again)."""
        for topic in topics:
            self.patterns.setdefault(topic, TopicPattern(topic))

    def is_bound_to(self, topic: str) -> bool:
        """Return whether a message published under `topic` lands here."""
        return topic in self.patterns or any(pattern.matches(topic) for pattern in self.patterns.values())

    def put(self, message: StoredMessage) -> None:
        """Add a new message at the end and hand it out if somebody has room."""
        self.ready.append(message)
        self.dispatch()

    def give_back(self, message: StoredMessage) -> None:
        """Put a message that was handed out back in its place."""
        heapq.heappush(self.returned, message)

    def join(self, subscription: MemorySubscription) -> None:
        """Let a subscriber receive."""
        self.subscribers.append(subscription)
        self.dispatch()

    def leave(self, subscription: MemorySubscription) -> None:
        """Hand nothing more to a subscriber; in an ordered queue the next one takes over."""
        if subscription in self.subscribers:
            self.subscribers.remove(subscription)
            self.dispatch()

    def dispatch(self) -> None:
        """Hand out what waits: to the first subscriber alone if ordered, else in turn to those with room."""
        while self.ready or self.returned:
            subscription = self._next_with_room()
            if subscription is None:
                return
            message = heapq.heappop(self.returned) if self.returned else self.ready.popleft()
            subscription.receive(MemoryDelivery(message, subscription))

    def _next_with_room(self) -> MemorySubscription | None:
        if self.ordered:
            # A single active consumer: while it is connected, nobody else receives, even if it is full.
            return self.subscribers[0] if self.subscribers and self.subscribers[0].has_room else None
        for _ in range(len(self.subscribers)):
            subscription = self.subscribers[0]
            self.subscribers.rotate(-1)
            if subscription.has_room:
                return subscription
        return None

    def bury(self, message: StoredMessage) -> None:
        """Move a message to the queue's dead letters."""
        self.dead.append(message)

    def __len__(self) -> int:
        return len(self.ready) + len(self.returned)

    def waiting_bodies(self) -> list[bytes]:
        """Return the bodies that wait, in the order they will be handed out."""
        return [_body(message) for message in (*sorted(self.returned), *self.ready)]

    def dead_bodies(self) -> list[bytes]:
        """Return the bodies of the dead letters, oldest first."""
        return [_body(message) for message in self.dead]


def _body(message: StoredMessage) -> bytes:
    return message.payload.body if isinstance(message.payload, Incoming) else message.payload.data
