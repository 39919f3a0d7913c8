"""What the tracker keeps of an event: enough to know where the saga is, and nothing of the payload but its keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from sagapost.core.envelope import MAX_NAME_LENGTH, Event, validate_event
from sagapost.sagas.tracker.lifecycle import LIFECYCLE, Detail

__all__ = ["Entry", "entry_of", "moment", "pack", "saga_of", "unpack"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A day less than a `datetime` holds, so that deadlines and local times near the edges can be reckoned with.
_FIRST = -62_135_510_400_000_000
_LAST = 253_402_214_400_000_000


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One event of a saga's history."""

    id: str
    source: str
    type: str
    at: int
    """`Event.time` in microseconds since 1970: what the service that published it read on its clock."""
    cause: str | None = None
    """Id of the event whose handling caused this one."""
    detail: Detail | None = None
    """Of a lifecycle event: its data, as far as it could be read."""


_PACKED = msgspec.msgpack.Decoder(tuple[Entry, ...])
_PACK = msgspec.msgpack.Encoder()


def entry_of(event: Event) -> Entry:
    """Return what is kept of an event; of a lifecycle event without its data, see `lifecycle.detail_of`.

    :raises InvalidEventError: if it breaks a rule of the envelope, however it came here.
    :raises ValueError: if its time is at the edge of the calendar.
    """
    names = f"{event.id}{event.source}{event.type}{event.causationid}{event.correlationid}"
    if len(names) > MAX_NAME_LENGTH or not (names.isascii() and names.isprintable()) or event.time.tzinfo is None:
        # Of nearly every event the line above says that nothing can be wrong, at a tenth of the price.
        validate_event(event)
    elapsed = event.time - _EPOCH
    at = (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds
    if not _FIRST <= at <= _LAST:
        raise ValueError("time is at the edge of what can be reckoned with")
    detail: Detail | None = {} if event.type.startswith(LIFECYCLE) else None
    return Entry(event.id, event.source, event.type, at, event.causationid, detail)


def saga_of(event: Event, starts: frozenset[str] = frozenset()) -> str | None:
    """Return the saga an event belongs to: its correlation id; where that is missing, its own id if it starts one.

    None: the event is no part of a saga.
    """
    return event.correlationid or (event.id if event.type in starts else None)


def moment(at: int) -> datetime:
    """Return the time that `Entry.at` stands for."""
    return datetime.fromtimestamp(at / 1_000_000, UTC)


def pack(entries: Sequence[Entry]) -> bytes:
    """Return a history as bytes for its column."""
    return _PACK.encode(entries)


def unpack(data: bytes) -> tuple[Entry, ...]:
    """Read what `pack` wrote."""
    return _PACKED.decode(data)
