"""The broker of a rehearsal: hands one message to one inbox, and waits until it is settled."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

import anyio

from sagapost.core.broker import BrokerCapabilities, Delivery, Malformed, Publisher, Queue, QueueDepth, Subscription
from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError
from sagapost.core.foreign import ForeignMessages
from sagapost.core.life import Signal

__all__ = ["Handed", "Post"]

_CAPABILITIES = BrokerCapabilities(
    durable=False,
    reports_unroutable=False,
    counts_deliveries=False,
    single_active_consumer=False,
    crosses_processes=False,
)


@dataclass(slots=True)
class Handed:
    """One message in the hands of an inbox."""

    content: Event
    topic: str
    delivery_count: int = 0
    settled: anyio.Event = field(default_factory=anyio.Event)
    refused: bool = False

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.content.data)


class _Line:
    """The subscription of one inbox."""

    def __init__(self) -> None:
        self._next: Handed | None = None
        self._stopped = False
        self._wake = Signal()

    def hand_over(self, handed: Handed) -> None:
        self._next = handed
        self._wake.set()

    def __aiter__(self) -> _Line:
        return self

    async def __anext__(self) -> Handed:
        while self._next is None:
            if self._stopped:
                raise StopAsyncIteration
            await self._wake.wait()
        handed, self._next = self._next, None
        return handed

    async def ack(self, *deliveries: Delivery) -> None:
        self._settle(*deliveries, refused=False)

    async def reject(self, delivery: Delivery, *, requeue: bool) -> None:
        self._settle(delivery, refused=not requeue)

    async def release(self, *deliveries: Delivery) -> None:
        self._settle(*deliveries, refused=False)

    async def stop(self) -> None:
        self._stopped = True
        self._wake.set()

    def _settle(self, *deliveries: Delivery, refused: bool) -> None:
        for delivery in deliveries:
            if isinstance(delivery, Handed):
                delivery.refused = refused
                delivery.settled.set()


class Post:
    """The broker port for the consumers of a rehearsal. It carries nothing by itself: the rehearsal decides what is
    delivered when, so that a run can be repeated."""

    capabilities = _CAPABILITIES
    address = "rehearsal"

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._ready: dict[str, anyio.Event] = {}

    async def deliver(self, queue: str, event: Event, topic: str) -> Handed:
        """Hand a message to the consumer of a queue; return when it is settled."""
        await self._opening(queue).wait()
        handed = Handed(event, topic)
        self._lines[queue].hand_over(handed)
        await handed.settled.wait()
        return handed

    @asynccontextmanager
    async def subscribe(self, queue: Queue, *, prefetch: int) -> AsyncGenerator[Subscription]:
        """Open the line to an inbox."""
        del prefetch  # one at a time
        self._lines[queue.name] = line = _Line()
        self._opening(queue.name).set()
        yield line

    def publisher(self) -> AbstractAsyncContextManager[Publisher]:
        """Nobody publishes here: the rehearsal reads the outboxes."""
        raise ConfigurationError("A rehearsal needs no relay: it takes events from the outbox tables by itself.")

    async def declare(self, *queues: Queue) -> None:
        """Nothing to do."""

    def read(
        self, message: Malformed, topic: str, *, received_at: datetime, foreign: ForeignMessages | None = None
    ) -> Event | Malformed:
        """Whatever is in a rehearsal can be read at once."""
        del topic, received_at, foreign
        return message

    async def depths(self, *queues: str) -> Sequence[QueueDepth]:
        """Nothing lies here: what is delivered when, the rehearsal decides."""
        return [QueueDepth(queue, 0, int(queue in self._lines), None, None) for queue in queues]

    def _opening(self, queue: str) -> anyio.Event:
        return self._ready.setdefault(queue, anyio.Event())
