"""One message on its way through the inbox, wherever it came from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from sagapost.core.broker import Malformed
from sagapost.core.envelope import Event
from sagapost.core.identity import KEY_BYTES
from sagapost.inbox.arriving.settlement import Receipt
from sagapost.inbox.declared.handlers import Call

__all__ = ["Arrival", "Message", "Parking", "Unreadable"]


@dataclass(frozen=True, slots=True)
class Parking:
    """The row a message was parked in, and the token of the attempt that has claimed it."""

    id: int
    token: int


@dataclass(slots=True)
class Message:
    """An event for handlers that share a transaction, with what is known of it.

    A delivery is one message for each transaction that its handlers run in.
    """

    event: Event
    topic: str
    key: bytes
    """Of the dedup table."""
    calls: tuple[Call, ...]
    """Empty: no handler takes it."""
    receipt: Receipt | None
    """Of its delivery; None: it comes from the parked messages."""
    lane: str | None = None
    """In an ordered inbox: what it is handled in order with."""
    parking: Parking | None = None
    attempts: int = 0
    """Rounds that have failed before."""
    begin_by: float = math.inf
    """Time on the event loop's clock after which its claim might run out before its handlers return."""
    recorded: bool = False
    """Its attempt is on record in `inbox_attempts`, to be deleted with the outcome."""
    suspect: bool = False
    """Parked, and in flight when a process died: it is handled alone."""
    losses: int = 0
    """How often in a row its connection was lost while its handlers ran or committed. Once is an outage."""
    since: datetime | None = None
    """When it was parked; None: it was not."""
    failing: Call | None = None
    """What was called when its last try failed; None: the transaction of all calls failed at its end."""
    raised: Exception | None = None
    """What its handler raised in a group just now, undone there and still to be acted on: that was a try."""
    on_end: Callable[[], None] | None = None
    """Called when nobody works on it any more."""

    @property
    def order(self) -> str | None:
        """The ordering key whose parked messages it waits for, and holds back when it is parked itself.

        None: it waits for nobody, because the inbox is not ordered, it has no key, or its handlers have a transaction
        of their own.
        """
        return self.lane if self.lane is None or len(self.key) == KEY_BYTES else None

    @property
    def redelivered(self) -> bool:
        """Whether it was in flight when a connection or a process ended, by the broker's word."""
        return self.receipt is not None and self.receipt.delivery.delivery_count > 0


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A delivery that is no event."""

    content: Malformed
    topic: str
    key: bytes
    receipt: Receipt


Arrival: TypeAlias = Message | Unreadable
