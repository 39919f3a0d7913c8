"""How a transaction makes messages its own, by where they come from; and whether they must wait for their key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from sqlalchemy import Connection

from sagapost.inbox.attempts import Attempts
from sagapost.inbox.dedup import Dedup
from sagapost.inbox.message import Message
from sagapost.inbox.parking import ParkingLot

__all__ = ["Claim", "Claims"]

Claim: TypeAlias = Literal["claimed", "seen", "behind"]


class Claims:
    """Claims messages in the open transaction: committed or undone with everything else in it."""

    def __init__(self, dedup: Dedup, lot: ParkingLot, attempts: Attempts, *, ordered: bool) -> None:
        self._dedup = dedup
        self._lot = lot
        self._attempts = attempts
        self._ordered = ordered

    def claim(self, connection: Connection, message: Message) -> Claim:
        """Make the message this transaction's own.

        `seen`: it was handled, or somebody else has it. `behind`: an earlier message of its ordering key is parked.
        """
        if message.recorded:
            self._attempts.clear(connection, message.key)
        place, key = message.parking, message.event.partitionkey
        if place is not None:
            if not self._lot.take_out(connection, [place]):
                return "seen"
            return "behind" if self._ordered and key and self._lot.is_blocked(connection, key, place.id) else "claimed"
        if not self._dedup.claim(connection, message.key):
            return "seen"
        return "behind" if self._ordered and key and self._lot.is_blocked(connection, key) else "claimed"

    def claim_all(self, connection: Connection, messages: Sequence[Message]) -> set[bytes] | None:
        """Claim messages together; return the dedup keys of those that are this transaction's own.

        In an ordered inbox all of them are delivered, or all parked and in the order of parking.

        None: some must wait behind a parked message, so they cannot be handled together.
        """
        recorded = [message.key for message in messages if message.recorded]
        if recorded:
            self._attempts.clear(connection, *recorded)
        delivered = [message for message in messages if message.parking is None]
        parked = {message.parking: message for message in messages if message.parking is not None}
        own = self._dedup.claim_all(connection, {message.key for message in delivered}) if delivered else set[bytes]()
        fresh = bool(own)
        if parked:
            taken = self._lot.take_out(connection, parked)
            own |= {message.key for place, message in parked.items() if place.id in taken}
        if self._ordered:
            # After the claim, which may have waited for another replica to park one of them.
            keys = {message.event.partitionkey for message in delivered if message.event.partitionkey}
            if fresh and keys and self._lot.any_blocked(connection, keys):
                return None
            # Those taken out are gone here: whatever is left before the last of them is missing in between.
            last: dict[str, int] = {}
            for place, message in parked.items():
                if key := message.event.partitionkey:
                    last[key] = max(place.id, last.get(key, place.id))
            if any(self._lot.is_blocked(connection, key, before) for key, before in last.items()):
                return None
        return own
