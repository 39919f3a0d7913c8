"""Where a row goes, and whether that route has proven to deliver."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from sagapost.core.broker import Outgoing
from sagapost.core.outbox_store import OutboxRow
from sagapost.outbox.relay.settings import Routing

__all__ = ["Route", "Routes"]

Route: TypeAlias = tuple[str | None, str]
"""Destination, None for the default, and topic."""

_MAX_REMEMBERED = 10_000


class Routes:
    """Maps rows to destinations and remembers which routes work.

    Messages of one key may be sent back to back only over routes that deliver: were the first returned as unroutable
    and the second delivered, consumers would see them in the wrong order. A route is *proven* by a confirmed message
    and *suspect* for a while after a refused one.
    """

    def __init__(self, routing: Routing, *, suspicion: float, serial: bool, monotonic: Callable[[], float]) -> None:
        # Copies: a mapping of somebody else's must not be asked, and may not raise, while events are sent.
        self._destinations = dict(routing.destinations)
        self._topics = dict(routing.topics)
        self._suspicion = suspicion
        self._serial = serial
        self._monotonic = monotonic
        self._proven: set[Route] = set()
        self._suspect: dict[Route, float] = {}

    def outgoing(self, row: OutboxRow) -> Outgoing:
        """Address the row's event."""
        if self._destinations or self._topics:
            type_ = row.event.type
            return Outgoing(row.event, self._topics.get(type_, row.topic), self._destinations.get(type_))
        return Outgoing(row.event, row.topic)

    def proven(self, row: OutboxRow) -> bool:
        """Return whether messages may follow each other over this row's route without waiting for confirms."""
        return self.route_of(row) in self._proven

    def confirmed(self, row: OutboxRow) -> None:
        """A message got through."""
        route = self.route_of(row)
        if route in self._proven or self._serial:
            return
        until = self._suspect.get(route)
        if until is not None:
            if self._monotonic() < until:
                return
            del self._suspect[route]
        if len(self._proven) >= _MAX_REMEMBERED:
            # Forgetting only costs a round trip per key; topics without bound must not cost memory.
            self._proven.clear()
        self._proven.add(route)

    def refused(self, row: OutboxRow) -> None:
        """A message was returned or rejected."""
        route = self.route_of(row)
        self._proven.discard(route)
        if len(self._suspect) >= _MAX_REMEMBERED:
            self._suspect.clear()
        self._suspect[route] = self._monotonic() + self._suspicion

    def reset(self) -> None:
        """A new connection: nothing is proven, the topology may have changed."""
        self._proven.clear()

    def route_of(self, row: OutboxRow) -> Route:
        """Return where a row goes."""
        if self._destinations or self._topics:
            type_ = row.event.type
            return (self._destinations.get(type_), self._topics.get(type_, row.topic))
        return (None, row.topic)
