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


def edited(
    content: Event | Malformed, parked_at: datetime, data: bytes | None, attributes: Mapping[str, str]
) -> Event:
    """Return the corrected event.

    Its identity for the dedup table stays that of the delivery: it was this message that arrived, whatever it says.
    """
    unknown = attributes.keys() - EDITABLE
    if unknown:
        raise ConfigurationError(
            f"Attribute {', '.join(sorted(unknown))} cannot be edited; these can: {', '.join(sorted(EDITABLE))}."
        )
    if isinstance(content, Malformed):
        missing = {"id", "source", "type"} - attributes.keys()
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
