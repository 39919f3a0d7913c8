"""How long handlers take of late: only quick ones share a transaction, for each waits for the commit of all."""

from __future__ import annotations

import time
from collections.abc import Iterable

from sagapost.inbox.arriving.message import Message

__all__ = ["BUDGET", "MOST", "Pace"]

MOST = 32
"""Messages of a group: beyond it there is little left to share. Fewer than the subtransactions that PostgreSQL keeps
beside a transaction (64); more of them would slow every other transaction that looks at their rows."""

BUDGET = 0.25
"""Seconds after which a group takes up no further message: so long are locks held, and a failed commit repeats."""

_QUICK = 0.05
_ALONE_FOR = 10.0
"""Seconds without groups for handlers that have cost one its transaction."""
_SLOWER, _FASTER = 8, 2
"""What a call weighs against those before it: one in so many. The first calls compile statements."""


class Pace:
    """The times of one consumer's handlers, by what a message calls first; and of all of them."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._alone_until: dict[int, float] = {}
        self._of_all = BUDGET

    def took(self, message: Message, seconds: float) -> None:
        """Take note of how long the handlers of a message took."""
        key = id(message.calls[0].handler)
        self._seconds[key] = _moved(self._seconds.get(key, seconds), seconds)
        self._of_all = _moved(self._of_all, min(seconds, BUDGET))

    def disturbed(self, messages: Iterable[Message]) -> None:
        """Take note that these did not go well together: for some time each is handled alone."""
        until = time.monotonic() + _ALONE_FOR
        for message in messages:
            self._alone_until[id(message.calls[0].handler)] = until

    def is_quick(self, message: Message) -> bool:
        """Return whether what a message calls is known to be quick."""
        key = id(message.calls[0].handler)
        return self._seconds.get(key, BUDGET) <= _QUICK and self._alone_until.get(key, 0.0) <= time.monotonic()

    def size(self) -> int:
        """Return how many messages may make a group now."""
        return max(1, min(MOST, int(BUDGET / max(self._of_all, BUDGET / MOST))))


def _moved(before: float, seconds: float) -> float:
    """Return an average with one more in it: a stall shows at once, and is forgotten after a few that were quick."""
    if seconds > BUDGET:
        return seconds
    return before + (seconds - before) / (_SLOWER if seconds > before else _FASTER)
