"""The keys of messages in a consumer's tables, from what `sagapost.core.identity` makes of an event."""

from __future__ import annotations

from hashlib import blake2b
from secrets import token_bytes

from sagapost.core.broker import Malformed
from sagapost.core.identity import KEY_BYTES, unread_key

__all__ = ["malformed_key", "unit_key"]

_UNIT_BYTES = 4
_OF_THE_BROKER = "x-"
"""What the names of headers begin with that brokers add: counts, and where a message has been."""


def unit_key(key: bytes, transaction: str) -> bytes:
    """Return the key of an event for the handlers that share a named transaction, from its own; unnamed: the same.

    It begins with the key of the event, so both are next to each other in the index, and is longer, so it can be told
    from one of the unnamed transaction.
    """
    return key + blake2b(transaction.encode(), digest_size=_UNIT_BYTES).digest() if transaction else key


def malformed_key(message: Malformed) -> bytes:
    """Return a key for a message that is no event: for one with a message id the same on each delivery.

    Beside the id, all that its producer wrote belongs to it: the same id under two types or of two programs is two
    messages. One without an id has a key of its own on every call: two that are equal byte for byte may have been
    meant to be two, and what is parked twice can be discarded, what is not parked is lost.
    """
    if not message.message_id:
        return token_bytes(KEY_BYTES)
    written = (each for each in message.headers.items() if not each[0].lower().startswith(_OF_THE_BROKER))
    beside = (text for pair in (*sorted(message.properties.items()), *sorted(written)) for text in pair)
    return unread_key((message.message_id, message.reason, message.type or "", *beside), message.body)
