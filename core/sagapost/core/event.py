"""The envelope: one immutable CloudEvents 1.0 event, the same from the outbox row to the inbox key."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from sagapost.core.errors import InvalidEventError

__all__ = ["MAX_KEY_LENGTH", "MAX_NAME_LENGTH", "Event", "validate_event"]

MAX_KEY_LENGTH = 255
"""Longest ordering key, in characters."""

MAX_NAME_LENGTH = 255
"""Longest id, type and source, in bytes of UTF-8: AMQP 0-9-1 carries them as short strings."""


class Event(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """A CloudEvents 1.0 event with the extension attributes sagapost gives a meaning to.

    Identity is the pair (`source`, `id`): it is set once when the event is published and stays the same in the
    outbox row, the broker's message id, and the inbox's dedup key, on every attempt.

    `data` is opaque bytes in the media type `datacontenttype`; the relay never looks inside.
    Attribute names are those of the CloudEvents specification and its documented extensions (correlation,
    partitioning, distributed tracing).
    """

    id: str
    source: str
    type: str
    time: datetime
    data: bytes = b""
    subject: str | None = None
    datacontenttype: str | None = "application/json"
    dataschema: str | None = None
    correlationid: str | None = None
    """The saga this event belongs to."""
    causationid: str | None = None
    """The id of the event whose handling caused this one."""
    partitionkey: str | None = None
    """Ordering key: events of one key are delivered in causal order. None: no order is promised."""
    traceparent: str | None = None
    tracestate: str | None = None
    extensions: Mapping[str, str] = {}
    """Any further CloudEvents extension attributes (lower-case alphanumeric names)."""

    def __repr__(self) -> str:
        # `data` may hold personal data and ends up in logs through repr: show its size only.
        return (
            f"Event(id={self.id!r}, type={self.type!r}, source={self.source!r}, key={self.partitionkey!r}, "
            f"correlationid={self.correlationid!r}, data=<{len(self.data)} bytes>)"
        )


def validate_event(event: Event) -> None:
    """Check the rules every adapter relies on.

    :raises InvalidEventError: if an attribute is empty, too long, or of a form the wire cannot carry.
    """
    for attribute in ("id", "source", "type"):
        value: str = getattr(event, attribute)
        if not value:
            raise InvalidEventError(attribute=attribute, value=value, reason="it must not be empty.")
        if len(value) > MAX_NAME_LENGTH or len(value.encode()) > MAX_NAME_LENGTH:
            raise InvalidEventError(
                attribute=attribute, value=value, reason=f"at most {MAX_NAME_LENGTH} bytes of UTF-8 fit."
            )
    key = event.partitionkey
    if key is not None and not 0 < len(key) <= MAX_KEY_LENGTH:
        raise InvalidEventError(
            attribute="partitionkey",
            value=key,
            reason=f"a key has 1 to {MAX_KEY_LENGTH} characters, this one {len(key)}. "
            "Use the aggregate's id, or a digest of it; leave the key out where order does not matter.",
        )
    if event.correlationid is not None and len(event.correlationid.encode()) > MAX_NAME_LENGTH:
        raise InvalidEventError(
            attribute="correlationid",
            value=event.correlationid,
            reason=f"at most {MAX_NAME_LENGTH} bytes fit.",
        )
    if event.time.tzinfo is None:
        raise InvalidEventError(
            attribute="time", value=event.time, reason="it needs a timezone, for example datetime.now(UTC)."
        )
    for name in event.extensions:
        if not (name.isascii() and name.isalnum() and name == name.lower()):
            raise InvalidEventError(
                attribute=name,
                value=event.extensions[name],
                reason="CloudEvents extension names are lower-case ASCII letters and digits only.",
            )


def utc_iso(moment: datetime) -> str:
    """Format a timezone-aware time as RFC 3339 in UTC, as CloudEvents asks (for example 2026-11-23T08:00:00Z)."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
