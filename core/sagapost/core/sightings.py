"""Where an event was seen on its way: one line for each place, in the order of the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

__all__ = ["EventNames", "Sighting"]


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one place knows of an event."""

    place: str
    """``outbox``, ``broker``, ``inbox warehouse``, ``saga``, ``audit``."""
    state: str
    what: str
    """In a sentence: what that means, and what to do if something is to be done."""
    at: datetime | None = None
    facts: Mapping[str, str | int | None] = field(default_factory=dict[str, "str | int | None"])
    """Numbers to go on with: of a row, of attempts."""


@dataclass(frozen=True, slots=True)
class EventNames:
    """What is known of an event's identity, and of what it belongs to; each place adds what it knows."""

    id: str
    source: str | None = None
    type: str | None = None
    key: str | None = None
    correlationid: str | None = None

    def and_also(self, other: EventNames) -> EventNames:
        """Return the names with those of another that were not known before."""
        return EventNames(
            self.id,
            self.source or other.source,
            self.type or other.type,
            self.key or other.key,
            self.correlationid or other.correlationid,
        )
