"""MassTransit's envelope, `application/vnd.masstransit+json` (masstransit.io, Message Serialization)."""

from __future__ import annotations

import msgspec

from sagapost.adapters.bodies import media_type_of
from sagapost.adapters.foreign.values import decoded, iso_time
from sagapost.core.foreign import ForeignMessageError, Incoming, Reading

__all__ = ["MassTransitReader"]

_MEDIA_TYPE = "application/vnd.masstransit+json"
_URN = "urn:message:"


class _Wrapped(msgspec.Struct, rename="camel"):
    """The members that are read; `Raw` keeps the producer's bytes as they are."""

    message: msgspec.Raw = msgspec.Raw(b"")
    message_type: list[str] | None = None
    message_id: str | None = None
    conversation_id: str | None = None
    correlation_id: str | None = None
    source_address: str | None = None
    sent_time: str | None = None


_wrapped = msgspec.json.Decoder(_Wrapped)


class MassTransitReader:
    """Reads messages of MassTransit with an envelope in JSON.

    The type is the first of `messageType` without ``urn:message:``, as in ``Shop.Contracts:OrderPlaced``; the source
    is `sourceAddress`, the correlation `conversationId`, else `correlationId`.
    """

    def __call__(self, message: Incoming, /) -> Reading | None:
        """Return what is in the envelope; None: it is no message of MassTransit."""
        if media_type_of(message.content_type) != _MEDIA_TYPE:
            return None
        wrapped = decoded(message.body, _wrapped, "its MassTransit envelope")
        types = wrapped.message_type
        if not types or not types[0].removeprefix(_URN):
            raise ForeignMessageError("its MassTransit envelope names no messageType")
        if not bytes(wrapped.message):
            raise ForeignMessageError("its MassTransit envelope has no message")
        return Reading(
            data=bytes(wrapped.message),
            content_type="application/json",
            id=wrapped.message_id,
            type=types[0].removeprefix(_URN),
            source=wrapped.source_address,
            time=iso_time(wrapped.sent_time, "sentTime"),
            correlation=wrapped.conversation_id or wrapped.correlation_id,
        )
