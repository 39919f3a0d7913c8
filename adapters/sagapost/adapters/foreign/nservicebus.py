"""NServiceBus: everything about a message is in headers (docs.particular.net, Message Headers)."""

from __future__ import annotations

from datetime import UTC, datetime

from sagapost.adapters.foreign.values import header
from sagapost.core.foreign import ForeignMessageError, Incoming, Reading

__all__ = ["NServiceBusReader"]

_ID = "NServiceBus.MessageId"
_TYPES = "NServiceBus.EnclosedMessageTypes"
_SENT = "NServiceBus.TimeSent"
_SENT_FORM = "%Y-%m-%d %H:%M:%S:%f Z"
"""A colon before the fraction and a space before Z: it is not ISO 8601."""


class NServiceBusReader:
    """Reads messages of NServiceBus.

    The type is the full name of the first of `EnclosedMessageTypes` without its assembly, as in
    ``Shop.Contracts.OrderPlaced``; the source is `OriginatingEndpoint`, the correlation `ConversationId`.
    """

    def __call__(self, message: Incoming, /) -> Reading | None:
        """Return what the headers say; None: it is no message of NServiceBus."""
        headers = message.headers
        if _ID not in headers and _TYPES not in headers:
            return None
        return Reading(
            data=message.body,
            content_type=header(headers, "NServiceBus.ContentType") or message.content_type,
            id=header(headers, _ID),
            type=_full_name(header(headers, _TYPES) or ""),
            source=header(headers, "NServiceBus.OriginatingEndpoint"),
            time=_sent(header(headers, _SENT)),
            correlation=header(headers, "NServiceBus.ConversationId"),
        )


def _full_name(types: str) -> str | None:
    """Return the first type without its assembly; commas within the brackets of a generic type are its own."""
    depth = 0
    for at, character in enumerate(types):
        depth += (character == "[") - (character == "]")
        if character in ",;" and depth == 0:
            return types[:at].strip() or None
    return types.strip() or None


def _sent(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.strptime(text, _SENT_FORM).replace(tzinfo=UTC)
    except ValueError:
        raise ForeignMessageError(f"its header {_SENT!r} is not of the form yyyy-MM-dd HH:mm:ss:ffffff Z") from None
