"""Correcting a parked message by hand, within the rules that every event obeys."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sagapost.core.broker import Malformed
from sagapost.core.envelope import Event, validate_event
from sagapost.core.errors import ConfigurationError

__all__ = ["EDITABLE", "edited"]

EDITABLE = frozenset(
    {"id", "source", "type", "subject", "datacontenttype", "dataschema", "correlationid", "causationid"}
)
"""Attributes that may be replaced. The ordering key is none: it decides the place in the order."""

_VERSION = "specversion"
IDENTITY = frozenset({"id", "source", "type"})
"""What makes an event of a message."""


def edited(
    content: Event | Malformed, parked_at: datetime, data: bytes | None, attributes: Mapping[str, str]
) -> Event | Malformed:
    """Return the corrected event; or, of a message that was none and lacks more, the message for a consumer to read.

    Its identity for the dedup table stays that of the delivery: it was this message that arrived, whatever it says.
    """
    unknown = attributes.keys() - EDITABLE
    if unknown:
        raise ConfigurationError(
            f"Attribute {', '.join(sorted(unknown))} cannot be edited; these can: {', '.join(sorted(EDITABLE))}."
        )
    if isinstance(content, Malformed):
        missing = IDENTITY - attributes.keys()
        if missing and attributes.keys() <= IDENTITY and (attributes or data is not None):
            return _completed(content, data, attributes)
        if missing:
            raise ConfigurationError(f"The message is no event yet; give it {', '.join(sorted(missing))} as well.")
        values: dict[str, Any] = {"time": parked_at, "data": content.body, "datacontenttype": None}
    else:
        values = {name: getattr(content, name) for name in content.__struct_fields__}
    values.update(attributes)
    if data is not None:
        values["data"] = data
    event = Event(**values)
    validate_event(event)
    return event


def _completed(message: Malformed, data: bytes | None, attributes: Mapping[str, str]) -> Malformed:
    """Return a message with what it lacked, where whoever reads it looks for that."""
    for name, value in attributes.items():
        if not value or "\x00" in value:
            raise ConfigurationError(f"The attribute {name} is {value!r}; it needs some text without NUL.")
    headers, properties = dict(message.headers), dict(message.properties)
    # A message in CloudEvents' binary mode has its attributes in headers, by a prefix of its producer's.
    prefix = next((name[: -len(_VERSION)] for name in headers if name.lower().endswith(_VERSION)), None)
    if prefix is not None:
        headers |= {f"{prefix}{name}": value for name, value in attributes.items()}
    elif "source" in attributes:
        properties["app_id"] = attributes["source"]
    return Malformed(
        reason=f"an operator has set {', '.join(sorted(attributes)) or 'its data'}; a redrive lets it be read again",
        body=message.body if data is None else data,
        headers=headers,
        message_id=attributes.get("id", message.message_id),
        type=attributes.get("type", message.type),
        properties=properties,
    )
