"""Watermill for Go: the id in a header, metadata in the others (watermill-amqp, `DefaultMarshaler`)."""

from __future__ import annotations

from dataclasses import dataclass

from sagapost.adapters.foreign.values import header
from sagapost.core.foreign import Incoming, Reading

__all__ = ["WatermillReader"]


@dataclass(frozen=True, slots=True)
class WatermillReader:
    """Reads messages of Watermill.

    The type is the metadata `name`, which its CQRS component writes, the correlation `correlation_id`, which its
    middleware writes. It names no source: give one with `source_from`, or a property `app_id`.

    :param id_header: what the marshaler calls the id (`MessageUUIDHeaderKey`).
    """

    id_header: str = "_watermill_message_uuid"

    def __call__(self, message: Incoming, /) -> Reading | None:
        """Return what the headers say; None: it is no message of Watermill."""
        headers = message.headers
        if self.id_header not in headers:
            return None
        return Reading(
            data=message.body,
            content_type=message.content_type,
            id=header(headers, self.id_header),
            type=header(headers, "name"),
            correlation=header(headers, "correlation_id"),
        )
