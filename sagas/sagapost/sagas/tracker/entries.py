"""What the tracker keeps of an event: enough to know where the saga is, and nothing of the payload but its keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from sagapost.core.envelope import Event
from sagapost.core.saga_keys import keys_of

__all__ = ["LIFECYCLE", "Entry", "Keys", "entry_of", "moment", "pack", "saga_of", "unpack"]

LIFECYCLE = "sagapost.saga."
"""Event types that the library itself says begin with this; their data is about the saga and is kept."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One event of a saga's history."""

    id: str
    source: str
    type: str
    at: int
    """`Event.time` in microseconds since 1970: what the service that said it read on its clock."""
    cause: str | None = None
    """Id of the event whose handling caused this one."""
    detail: Mapping[str, Any] | None = None
    """The data of a lifecycle event."""


_DETAIL = msgspec.json.Decoder(dict[str, Any])
_PACKED = msgspec.msgpack.Decoder(tuple[Entry, ...])
_PACK = msgspec.msgpack.Encoder()


def entry_of(event: Event) -> Entry:
    """Return what is kept of an event."""
    elapsed = event.time - _EPOCH
    at = (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds
    detail = None
    if event.type.startswith(LIFECYCLE):
        try:
            detail = _DETAIL.decode(event.data)
        except msgspec.MsgspecError:
            # Somebody else's use of the name: the event is part of the history all the same.
            detail = {}
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


class Keys:
    """Reads business keys from events: the order number by which a person looks for a saga.

    :param fields: names of fields of JSON payloads, for example ``order_id``. `subject` and `partitionkey` of the
        envelope are keys too, unless they are the saga's own id, and so is what `sagas.start(keys=)` wrote.
    """

    def __init__(self, fields: Iterable[str] = ()) -> None:
        self.fields = tuple(dict.fromkeys(fields))
        # Decodes the named fields alone and skips the rest, whatever its size.
        slots = {_slot(n): field for n, field in enumerate(self.fields)}
        shape = msgspec.defstruct("_Keys", [(slot, Any, None) for slot in slots], rename=slots)
        self._decoder = msgspec.json.Decoder(shape)

    def of(self, event: Event, saga: str) -> set[tuple[str, str]]:
        """Return (name, value) pairs."""
        found = {(name[:255], value[:255]) for name, value in keys_of(event).items()}
        if event.partitionkey is not None and event.partitionkey != saga:
            found.add(("key", event.partitionkey))
        if event.subject is not None and event.subject != saga:
            found.add(("subject", event.subject[:255]))
        if self.fields and event.data[:1] == b"{" and not event.type.startswith(LIFECYCLE):
            try:
                fields = self._decoder.decode(event.data)
            except msgspec.MsgspecError:
                return found  # not JSON after all: it has no fields
            for n, name in enumerate(self.fields):
                value = getattr(fields, _slot(n))
                if isinstance(value, str | int) and not isinstance(value, bool) and 0 < len(str(value)) <= 255:
                    found.add((name, str(value)))
        return found


def _slot(n: int) -> str:
    return f"field{n}"
