"""The envelope: one immutable CloudEvents 1.0 event, the same from the outbox row to the inbox key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from sagapost.core.errors import InvalidEventError

__all__ = ["MAX_KEY_LENGTH", "MAX_NAME_LENGTH", "RESERVED_NAMES", "Event", "validate_event"]

MAX_KEY_LENGTH = 255
"""Longest ordering key, in characters."""

MAX_NAME_LENGTH = 255
"""Longest id, type, source and the like, in bytes of UTF-8: AMQP 0-9-1 carries them as short strings."""


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


_REQUIRED = ("id", "source", "type")
_SHORT = (*_REQUIRED, "datacontenttype", "correlationid", "causationid", "traceparent")
_TEXTS = (*_SHORT, "subject", "dataschema", "partitionkey", "tracestate")

RESERVED_NAMES = frozenset({*Event.__struct_fields__, "specversion", "data_base64"})
"""Names an extension must not take: on the wire it would replace the attribute itself."""

# CloudEvents forbids control characters and lone surrogates in strings; PostgreSQL refuses NUL, and UTF-8 the latter.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _check_characters(attribute: str, value: str) -> None:
    found = _FORBIDDEN.search(value)
    if found is not None:
        raise InvalidEventError(
            attribute=attribute,
            value=value,
            reason=f"the character U+{ord(found.group()):04X} at index {found.start()} cannot be carried.",
        )


def validate_event(event: Event) -> None:
    """Check the rules every adapter relies on.

    :raises InvalidEventError: if an attribute is empty, too long, or of a form the wire cannot carry.
    """
    for attribute in _TEXTS:
        value: str | None = getattr(event, attribute)
        if value is None:
            continue
        if not value:
            raise InvalidEventError(attribute=attribute, value=value, reason="it must not be empty.")
        # Most text is printable ASCII, which two C calls tell; the rest is searched.
        if not (value.isascii() and value.isprintable()):
            _check_characters(attribute, value)
        if attribute in _SHORT and (len(value) > MAX_NAME_LENGTH or len(value.encode()) > MAX_NAME_LENGTH):
            raise InvalidEventError(
                attribute=attribute, value=value, reason=f"at most {MAX_NAME_LENGTH} bytes of UTF-8 fit."
            )
    key = event.partitionkey
    if key is not None and len(key) > MAX_KEY_LENGTH:
        raise InvalidEventError(
            attribute="partitionkey",
            value=key,
            reason=f"a key has 1 to {MAX_KEY_LENGTH} characters, this one {len(key)}. "
            "Use the aggregate's id, or a digest of it; leave the key out where order does not matter.",
        )
    if event.time.tzinfo is None:
        raise InvalidEventError(
            attribute="time", value=event.time, reason="it needs a timezone, for example datetime.now(UTC)."
        )
    for name, extension in event.extensions.items():
        if not (name.isascii() and name.isalnum() and name == name.lower()):
            raise InvalidEventError(
                attribute=name,
                value=extension,
                reason="CloudEvents extension names are lower-case ASCII letters and digits only.",
            )
        if name in RESERVED_NAMES:
            raise InvalidEventError(
                attribute=name, value=extension, reason="the name belongs to an attribute of the event itself."
            )
        _check_characters(name, extension)


def utc_iso(moment: datetime) -> str:
    """Format a timezone-aware time as RFC 3339 in UTC, as CloudEvents asks (for example 2026-11-23T08:00:00Z)."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
