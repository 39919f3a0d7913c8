"""Every event that was published, as it arrived at the broker."""

from __future__ import annotations

import anyio
from anyio.abc import TaskStatus

from sagapost.core import Event
from sagapost.core.broker import Broker, Queue


class Chronicle:
    """Listens to all events; keeps each once."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._heard: dict[tuple[str, str], Event] = {}

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; started once the queue is there, so that nothing published later is missed."""
        everything = Queue("demo-chronicle", frozenset({"#"}), observer=True)
        async with self._broker.subscribe(everything, prefetch=200) as deliveries:
            task_status.started()
            async for delivery in deliveries:
                await deliveries.ack(delivery)
                event = delivery.content
                if isinstance(event, Event):
                    self._heard.setdefault((event.source, event.id), event)

    @property
    def events(self) -> list[Event]:
        """The events, in the order of arrival."""
        return list(self._heard.values())
