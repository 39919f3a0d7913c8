"""The dedup key of an event: 16 bytes that follow from its identity and from nothing else.

The identity is source and id. Where the id is no UUIDv7, and so may be a number that somebody counts or the number of
an order, the type belongs to it: two kinds of messages about order 17 are two messages.

Ids made by sagapost (and by many others) are UUIDv7, which begin with a time in milliseconds. Their keys begin with
the same six bytes, so new keys land at the right edge of the index: with ten million rows behind it an insert touches
pages that are in memory and already logged since the last checkpoint, where a plain digest touches a random one.
Ids of other forms have no time in them, and the envelope's `time` is no part of an event's identity, so their keys are
plain digests. Both are far beyond accidental collision: 80 bits within one millisecond, or 128 bits.
"""

from __future__ import annotations

from hashlib import blake2b

from sagapost.core.broker import Malformed
from sagapost.core.envelope import Event

__all__ = ["KEY_BYTES", "dedup_key", "malformed_key", "unit_key"]

KEY_BYTES = 16
_UNIT_BYTES = 4


def dedup_key(event: Event) -> bytes:
    """Return the key under which a consumer remembers `event`."""
    id_ = event.id
    # Canonical UUIDv7 text, tt-tttttt-7...: the version digit and both hyphens are where they must be.
    if len(id_) == 36 and id_[14] == "7" and id_[8] == "-" and id_[13] == "-":
        try:
            time = bytes.fromhex(id_[:8] + id_[9:13])
        except ValueError:
            return _foreign(event)
        # fromhex() skips white space, so what merely looks like a UUID may have come out shorter.
        return time + _digest(event.source, id_, KEY_BYTES - len(time))
    return _foreign(event)


def unit_key(key: bytes, transaction: str) -> bytes:
    """Return the key of an event for the handlers that share a named transaction, from its own; unnamed: the same.

    It begins with the key of the event, so both are next to each other in the index, and is longer, so it can be told
    from one of the unnamed transaction.
    """
    return key + blake2b(transaction.encode(), digest_size=_UNIT_BYTES).digest() if transaction else key


def _foreign(event: Event) -> bytes:
    type_ = event.type.encode("utf-8", "surrogatepass")
    # With its length, for the same reason as below.
    return _digest(event.source, event.id, KEY_BYTES, b"%b:%d" % (type_, len(type_)))


def malformed_key(message: Malformed) -> bytes:
    """Return a key for a message that is no event: the same for a redelivery of the same message."""
    return _digest(message.message_id or "", message.reason, KEY_BYTES, message.body)


def _digest(first: str, second: str, size: int, third: bytes = b"") -> bytes:
    # The length keeps ("ab", "c") and ("a", "bc") apart. Foreign messages may have lone surrogates.
    head = first.encode("utf-8", "surrogatepass")
    return blake2b(
        b"%d:%b%b%b" % (len(head), head, second.encode("utf-8", "surrogatepass"), third), digest_size=size
    ).digest()
