"""What makes two messages the same one: the identity of an event, of a foreign message, and of one that is no event.

The identity of an event is source and id. Where the id is no UUIDv7, and so may be a number that somebody counts or
the number of an order, the type belongs to it: two kinds of messages about order 17 are two messages.

Ids made by sagapost (and by many others) are UUIDv7, which begin with a time in milliseconds. Their keys begin with
the same six bytes, so new keys land at the right edge of the index: with ten million rows behind it an insert touches
pages that are in memory and already logged since the last checkpoint, where a plain digest touches a random one.
Ids of other forms have no time in them, and the envelope's `time` is no part of an event's identity, so their keys are
plain digests. Both are far beyond accidental collision: 80 bits within one millisecond, or 128 bits.

A foreign message gets an id here that two different messages never share (`named_id`, `content_id`); what could not be
read has a key of its own (`unread_key`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from hashlib import blake2b

from sagapost.core.envelope import Event

__all__ = ["KEY_BYTES", "content_id", "dedup_key", "named_id", "unread_key"]

KEY_BYTES = 16


def dedup_key(event: Event) -> bytes:
    """Return the key under which a consumer remembers `event`."""
    id_ = event.id
    # Canonical UUIDv7 text, tt-tttttt-7...: the version digit and both hyphens are where they must be.
    if len(id_) == 36 and id_[14] == "7" and id_[8] == "-" and id_[13] == "-":
        try:
            time = bytes.fromhex(id_[:8] + id_[9:13])
        except ValueError:
            return _of_another_form(event)
        # fromhex() skips white space, so what merely looks like a UUID may have come out shorter.
        return time + _digest(event.source, id_, KEY_BYTES - len(time))
    return _of_another_form(event)


def _of_another_form(event: Event) -> bytes:
    type_ = event.type.encode("utf-8", "surrogatepass")
    # With its length, for the same reason as below.
    return _digest(event.source, event.id, KEY_BYTES, b"%b:%d" % (type_, len(type_)))


def _digest(first: str, second: str, size: int, third: bytes = b"") -> bytes:
    # The length keeps ("ab", "c") and ("a", "bc") apart. Foreign messages may have lone surrogates.
    head = first.encode("utf-8", "surrogatepass")
    return blake2b(
        b"%d:%b%b%b" % (len(head), head, second.encode("utf-8", "surrogatepass"), third), digest_size=size
    ).digest()


# --- foreign messages ---


def named_id(id_: str, type_: str, body: bytes, *, known_source: bool) -> str:
    """Return the id of a foreign message that names one.

    Where nobody knows whose it is, a digest of type and content follows: two unknown programs may both count 1, 2, 3.
    A redelivery has the same bytes, and is the same message. An id that looks like a UUIDv7 is followed by a digest of
    the type, since the key of such an id does not tell types apart.
    """
    if not known_source:
        return f"{id_}:{_short(type_, body)}"
    return f"{id_}:{_short(type_, b'')}" if len(id_) == 36 and id_[14] == "7" else id_


def _short(type_: str, body: bytes) -> str:
    return hashlib.sha256(type_.encode("utf-8", "surrogatepass") + b"\x00" + body).hexdigest()[:16]


def content_id(parts: Iterable[str], body: bytes) -> str:
    """Return an id that follows from what a producer sent: `parts` are what it wrote beside the body."""
    return f"sha256-{hashlib.sha256(_joined(parts, body)).hexdigest()}"


def unread_key(parts: Iterable[str], body: bytes) -> bytes:
    """Return a key for a message that could not be read, from what its producer and its reader said of it."""
    return blake2b(_joined(parts, body), digest_size=KEY_BYTES).digest()


def _joined(parts: Iterable[str], body: bytes) -> bytes:
    """Return texts with their lengths, which keep them apart, and a body."""
    raws = [part.encode("utf-8", "surrogatepass") for part in parts]
    return b"".join([*(len(raw).to_bytes(4, "big") + raw for raw in raws), body])
