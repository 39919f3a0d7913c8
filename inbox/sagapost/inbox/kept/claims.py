"""How a transaction makes messages its own, by where they come from; and whether they must wait for their key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from sqlalchemy import Connection

from sagapost.inbox.arriving.message import Message, Parking
from sagapost.inbox.kept.attempts import BegunAttempts
from sagapost.inbox.kept.dedup import Dedup
from sagapost.inbox.kept.parking import ParkingLot

__all__ = ["Claim", "ClaimedGroup", "Claims"]

Claim: TypeAlias = Literal["claimed", "seen", "behind"]


@dataclass(frozen=True, slots=True)
class ClaimedGroup:
    """What the open transaction has made of several messages; messages in neither set are duplicates."""

    own: set[bytes] = field(default_factory=set[bytes])
    """Dedup keys of those to be handled now."""
    behind: list[Message] = field(default_factory=list[Message])
    """Parked in the transaction: an earlier message of their ordering key is."""


class Claims:
    """Claims messages in the open transaction: committed or undone with everything else in it."""

    def __init__(self, dedup: Dedup, lot: ParkingLot, attempts: BegunAttempts) -> None:
        self._dedup = dedup
        self._lot = lot
        self._attempts = attempts

    def in_plain(self, message: Message) -> str | None:
        """Return the statement that claims a delivered message, without parameters; None: there is none."""
        return self._dedup.in_plain(message.key)

    def claim(self, connection: Connection, message: Message, *, written: bool | None = None) -> Claim:
        """Make the message this transaction's own.

        `seen`: it was handled, or somebody else has it. `behind`: an earlier message of its ordering key is parked.

        :param written: the statement of `in_plain` was run; whether it wrote a row.
        """
        if message.recorded:
            self._attempts.clear(connection, message.key)
        place, key = message.parking, message.order
        if place is not None:
            if not self._lot.take_out(connection, [place]):
                return "seen"
            return "behind" if key and self._blocked(connection, key, place.id) else "claimed"
        if not (self._dedup.claim(connection, message.key) if written is None else written):
            return "seen"
        return "behind" if key and self._blocked(connection, key) else "claimed"

    def claim_all(self, connection: Connection, messages: Sequence[Message]) -> ClaimedGroup | None:
        """Claim messages together, and park those that must wait for a parked message of their ordering key.

        In an ordered inbox all of them are delivered, or all parked and in the order of parking.

        None: a parked message that is not among them goes before some, so they cannot be handled together.
        """
        recorded = [message.key for message in messages if message.recorded]
        if recorded:
            self._attempts.clear(connection, *recorded)
        delivered = [message for message in messages if message.parking is None]
        parked = {message.parking: message for message in messages if message.parking is not None}
        claimed = ClaimedGroup()
        if parked:
            taken = self._lot.take_out(connection, parked)
            if self._has_gap(connection, parked):
                return None
            claimed.own.update(message.key for place, message in parked.items() if place.id in taken)
        if delivered:
            claimed.own.update(self._dedup.claim_all(connection, {message.key for message in delivered}))
            if claimed.own:
                self._park_behind(connection, delivered, claimed)
        return claimed

    def _blocked(self, connection: Connection, key: str, before: int | None = None) -> bool:
        return self._lot.order.is_blocked(connection, key, before)

    def _has_gap(self, connection: Connection, parked: Mapping[Parking, Message]) -> bool:
        """Return whether a message that was not taken out goes before one that was."""
        last: dict[str, int] = {}
        for place, message in parked.items():
            if key := message.order:
                last[key] = max(place.id, last.get(key, place.id))
        # Those taken out are gone here: whatever is left before the last of them is missing in between.
        firsts = self._lot.order.firsts(connection, last) if last else {}
        return any(first < last[key] for key, first in firsts.items())

    def _park_behind(self, connection: Connection, delivered: Sequence[Message], claimed: ClaimedGroup) -> None:
        # After the claim, which may have waited for another replica to park one of them.
        keys = {key for message in delivered if message.key in claimed.own and (key := message.order)}
        blocked = self._lot.order.firsts(connection, keys) if keys else {}
        for message in delivered if blocked else ():
            if message.key in claimed.own and message.order in blocked:
                # Of two copies the first.
                claimed.own.discard(message.key)
                claimed.behind.append(message)
        if claimed.behind:
            self._lot.park_behind(connection, claimed.behind)
