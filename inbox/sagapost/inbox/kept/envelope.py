"""A parked message as JSON in ASCII and bytes, and back: nothing a producer sent is lost or changed on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sagapost.core.broker import Malformed
from sagapost.core.envelope import ATTRIBUTES, Event

__all__ = ["envelope_of", "is_malformed", "restore", "shown", "shown_columns", "shown_time"]

_ATTRIBUTES = tuple(each.name for each in ATTRIBUTES if each.is_text)


def envelope_of(content: Event | Malformed) -> str:
    """Return every attribute but the data.

    The standard library's JSON and not msgspec's: foreign messages have lone surrogates and NUL, which have
    no UTF-8 or no column that takes them, and which it escapes.
    """
    attributes: dict[str, object]
    if isinstance(content, Malformed):
        attributes = {
            "malformed": content.reason,
            "message_id": content.message_id,
            "type": content.type,
            "headers": dict(content.headers),
            "properties": dict(content.properties) or None,
        }
    else:
        attributes = {name: getattr(content, name) for name in _ATTRIBUTES}
        attributes["time"] = content.time.isoformat()
        attributes["extensions"] = dict(content.extensions)
    return json.dumps({name: value for name, value in attributes.items() if value is not None})


def restore(envelope: str, data: bytes) -> Event | Malformed:
    """Return what was parked."""
    attributes: dict[str, Any] = json.loads(envelope)
    reason = attributes.pop("malformed", None)
    if reason is not None:
        headers: Mapping[str, str] = attributes["headers"]
        return Malformed(
            reason=reason,
            body=data,
            headers=headers,
            message_id=attributes.get("message_id"),
            type=attributes.get("type"),
            properties=attributes.get("properties", {}),
        )
    time = datetime.fromisoformat(attributes.pop("time"))
    attributes.setdefault("datacontenttype", None)
    return Event(time=time, data=data, **attributes)


def is_malformed(envelope: str) -> bool:
    """Return whether an envelope is that of a message which could not be read as an event."""
    return "malformed" in json.loads(envelope)


def shown(text: str | None) -> str | None:
    """Return text as a column takes it, for people and filters: what no column takes is replaced."""
    return (
        None if text is None else text.encode("utf-8", "replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")
    )


def shown_time(moment: datetime) -> datetime | None:
    """Return a time as a column takes it; None where its offset leads out of the calendar."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return None


def shown_columns(content: Event | Malformed) -> dict[str, object]:
    """Return what people see and filter by, and the data."""
    if isinstance(content, Malformed):
        return {"event_id": shown(content.message_id), "type": shown(content.type), "data": content.body}
    return {
        "event_id": shown(content.id),
        "source": shown(content.source),
        "type": shown(content.type),
        "time": shown_time(content.time),
        "correlationid": shown(content.correlationid),
        "partitionkey": shown(content.partitionkey),
        "data": content.data,
    }
