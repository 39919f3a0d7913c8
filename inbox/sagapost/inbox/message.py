"""One message on its way through the inbox, wherever it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from sagapost.core.broker import Delivery, Malformed
from sagapost.core.event import Event
from sagapost.inbox.handlers import Call

__all__ = ["Arrival", "Message", "Parking", "Unreadable"]


@dataclass(frozen=True, slots=True)
class Parking:
    """The row a message was parked in, and the token of the attempt that has claimed it."""

    id: int
    started: int


@dataclass(slots=True)
class Message:
    """An event with what is known of it."""

    event: Event
    topic: str
    key: bytes
    """Of the dedup table."""
    calls: tuple[Call, ...]
    """Empty: no handler takes it."""
    delivery: Delivery | None
    """None: it comes from the parked messages."""
    parking: Parking | None = None
    attempts: int = 0
    """Rounds that have failed before."""
    suspect: bool = False
    """A process died with it in hand, perhaps because of it: its row in `inbox_attempts` goes with the outcome."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A delivery that is no event."""

    content: Malformed
    topic: str
    delivery: Delivery


Arrival: TypeAlias = Message | Unreadable
