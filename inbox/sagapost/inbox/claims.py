"""How a transaction makes a message its own, by where the message comes from."""

from __future__ import annotations

from typing import Literal, TypeAlias

from sqlalchemy import Connection

from sagapost.inbox.dedup import Dedup
from sagapost.inbox.message import Message

__all__ = ["Claim", "Claims"]

Claim: TypeAlias = Literal["claimed", "seen", "behind"]


class Claims:
    """Claims messages in the open transaction."""

    def __init__(self, dedup: Dedup) -> None:
        self._dedup = dedup

    def claim(self, connection: Connection, message: Message) -> Claim:
        """Make the message this transaction's own.

        `seen`: it was handled, or somebody else has it. `behind`: an earlier message of its ordering key is parked.
        """
        return "claimed" if self._dedup.claim(connection, message.key) else "seen"
