"""Business keys: the order number by which a person looks for a saga."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from sagapost.core.envelope import Event
from sagapost.core.saga_keys import keys_of
from sagapost.sagas.tracker.lifecycle import LIFECYCLE

__all__ = ["Keys"]

_LONGEST = 255
"""Characters of a name and of a value: what the columns hold."""

_MOST = 32
"""Keys taken from one event."""


def _require_storable(name: str, value: str) -> None:
    """Check that the column can hold a text.

    :raises ValueError: if it is too long, or has a character that no database takes.
    """
    if len(value) > _LONGEST:
        raise ValueError(f"{name} has {len(value):,} characters, and {_LONGEST} are kept")
    if "\x00" in value or not (value.isascii() or _encodes(value)):
        raise ValueError(f"{name} has a character that cannot be kept (NUL, or half of a surrogate pair)")


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class Keys:
    """Reads business keys from events.

    :param fields: names of fields of JSON payloads, for example ``order_id``. `subject` and `partitionkey` of the
        envelope are keys too, unless they are the saga's own id, and so is what `sagas.start(keys=)` wrote.
    """

    def __init__(self, fields: Iterable[str] = ()) -> None:
        self.fields = tuple(dict.fromkeys(fields))
        # Decodes the named fields alone and skips the rest, whatever its size.
        slots = {_slot(n): field for n, field in enumerate(self.fields)}
        shape = msgspec.defstruct("_Keys", [(slot, Any, None) for slot in slots], rename=slots)
        self._decoder = msgspec.json.Decoder(shape)

    def of(self, event: Event, saga: str) -> tuple[set[tuple[str, str]], list[str]]:
        """Return (name, value) pairs, and why others could not be taken, each in a sentence without the value."""
        found, flaws = set[tuple[str, str]](), list[str]()
        for name, value in self._candidates(event, saga, flaws):
            if (name, value) in found:
                continue
            try:
                _require_storable("its name", name)
                _require_storable(f"the business key {name!r}", value)
            except ValueError as error:
                flaws.append(str(error))
                continue
            if len(found) == _MOST:
                flaws.append(f"there are more than {_MOST} business keys")
                break
            found.add((name, value))
        return found, flaws

    def _candidates(self, event: Event, saga: str, flaws: list[str]) -> Iterable[tuple[str, str]]:
        if self.fields and event.data[:1] == b"{" and not event.type.startswith(LIFECYCLE):
            yield from self._from_payload(event.data, flaws)
        if event.partitionkey is not None and event.partitionkey != saga:
            yield ("key", event.partitionkey)
        if event.subject is not None and event.subject != saga:
            yield ("subject", event.subject[:255])
        if event.extensions:
            yield from keys_of(event).items()

    def _from_payload(self, data: bytes, flaws: list[str]) -> Iterable[tuple[str, str]]:
        try:
            fields = self._decoder.decode(data)
        except ValueError:
            return  # not JSON after all: it has no fields
        except RecursionError:
            flaws.append("its data is nested too deep to look for business keys")
            return
        for n, name in enumerate(self.fields):
            value = getattr(fields, _slot(n))
            if isinstance(value, str) and value:
                yield (name, value)
            elif isinstance(value, int) and not isinstance(value, bool):
                yield (name, _digits(value))
            elif value not in (None, ""):
                flaws.append(f"the business key {name!r} is neither text nor a whole number")


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:
        return "0" * 256  # too many digits for Python to write down, so too long for a key


def _slot(n: int) -> str:
    return f"field{n}"
