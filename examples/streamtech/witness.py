"""A queue of the demo's own that handles every event: what was really published, as the broker saw it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import anyio
from anyio.abc import TaskStatus

from examples.streamtech import orders, warehouse
from sagapost.core import Event, new_id
from sagapost.core.broker import Broker, Confirmed, Outgoing, Queue

_LAST = "demo.last.v1"


class Witness:
    """Counts copies of events by their id, and can publish some of them again."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._changed = anyio.Event()
        self._ended = False
        self._first: dict[str, Event] = {}
        self.copies: Counter[str] = Counter()
        self.types: dict[str, str] = {}
        """Type of each event, by its id."""
        self.keys: set[str] = set()
        """Ordering keys handled; in this example an event's key is the order's id."""

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listen until `end`; started once the queue is there, so that nothing published later is missed."""
        topics = orders.service.inbox.queue.topics | warehouse.service.inbox.queue.topics | {_LAST}
        async with self._broker.subscribe(Queue("demo-witness", topics), prefetch=200) as deliveries:
            task_status.started()
            async for delivery in deliveries:
                await deliveries.ack(delivery)
                event = delivery.content
                if not isinstance(event, Event):
                    raise TypeError(f"A message on {delivery.topic} is not an event: {event.reason}")
                if event.type == _LAST:
                    break
                self.copies[event.id] += 1
                self.types[event.id] = event.type
                self._first.setdefault(event.id, event)
                if event.partitionkey is not None:
                    self.keys.add(event.partitionkey)
                self._changed.set()
        self._ended = True
        self._changed.set()

    async def repeat(self, count: int) -> None:
        """Publish `count` events that were published before once more, under their ids, as a crashed relay would."""
        await self._until(lambda: len(self.copies) >= count)
        await self._publish(list(self._first.values())[:count])

    async def end(self) -> None:
        """Return once everything published so far is counted: a last message goes through the same queue."""
        await self._publish([Event(id=new_id(), source="urn:demo", type=_LAST, time=datetime.now(UTC))])
        await self._until(lambda: self._ended)

    async def _publish(self, events: list[Event]) -> None:
        async with self._broker.publisher() as publisher:
            confirmation = await publisher.send([Outgoing(event, event.type) for event in events])
            refused = [result for result in await confirmation.wait() if not isinstance(result, Confirmed)]
        if refused:
            raise RuntimeError(f"The broker did not take {len(refused)} events of the demo: {refused[0]}")

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._changed = anyio.Event()
            await self._changed.wait()
