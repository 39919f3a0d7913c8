"""Plain JSON: an object that has its id, type and the like among its members."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from sagapost.adapters.bodies import media_type_of
from sagapost.adapters.foreign.values import decoded, iso_time
from sagapost.core.foreign import ForeignMessageError, Incoming, Reading

__all__ = ["PlainJsonReader"]

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_scalar = msgspec.json.Decoder(str | int | None)


@dataclass(frozen=True, slots=True)
class PlainJsonReader:
    """Reads objects in JSON; each option names the member that a part is in, and None: it is in none.

    A member that a message lacks, or that is null, is as one that is not named. Bodies of another media type are left
    to others; a body without a content type is taken for JSON.

    :param data: the member with what handlers decode; None: the whole object.
    """

    id: str | None = "id"
    type: str | None = None
    source: str | None = None
    time: str | None = None
    key: str | None = None
    correlation: str | None = None
    data: str | None = None

    def __call__(self, message: Incoming, /) -> Reading | None:
        """Return what is in the object; None: the message is no JSON by its own account."""
        media_type = media_type_of(message.content_type)
        if media_type and not media_type.endswith(("/json", "+json")):
            return None
        members = decoded(message.body, _object, "its body")
        if self.data is not None and self.data not in members:
            raise ForeignMessageError(f"its body has no member {self.data!r} with the data")
        return Reading(
            data=message.body if self.data is None else bytes(members[self.data]),
            content_type=message.content_type or "application/json",
            id=_text(members, self.id),
            type=_text(members, self.type),
            source=_text(members, self.source),
            time=iso_time(_text(members, self.time), f"member {self.time!r}"),
            key=_text(members, self.key),
            correlation=_text(members, self.correlation),
        )


def _text(members: dict[str, msgspec.Raw], name: str | None) -> str | None:
    raw = None if name is None else members.get(name)
    if raw is None:
        return None
    try:
        value = _scalar.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ForeignMessageError(f"its member {name!r} is neither text nor a whole number") from None
    return None if value is None else str(value)
