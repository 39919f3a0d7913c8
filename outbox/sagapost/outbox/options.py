"""What can be said about an event beside its payload."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TypedDict

__all__ = ["PublishOptions"]


class PublishOptions(TypedDict, total=False):
    """The keyword arguments of `Outbox.publish` and `Outbox.publish_all`."""

    key: str | None
    """Ordering key, 1 to 255 characters: events of one key are delivered in causal order. Default: no order."""
    type: str | None
    """Event type, for payloads whose class does not carry one (dict, TypedDict, bytes)."""
    subject: str | None
    """What the event is about, within the source (CloudEvents)."""
    topic: str | None
    """Routing key, 1 to 255 bytes. Default: the event type."""
    datacontenttype: str | None
    """Media type of `bytes` that are already encoded. Default: JSON for objects, octet-stream for bytes."""
    dataschema: str | None
    """URI of the schema the data adheres to."""
    extensions: Mapping[str, str] | None
    """Further CloudEvents extension attributes."""
    correlationid: str | None
    """The saga. Default: the running one."""
    deliver_at: datetime | None
    """Keep the event until this time (timezone-aware), judged by the database's clock. Default: publish at once."""
    name: str | None
    """Name of a scheduled event within its saga, to cancel it by."""
