"""The envelope: one immutable CloudEvents 1.0 event, the same from the outbox row to the inbox key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Annotated, TypeAlias, get_args, get_type_hints

import msgspec

from sagapost.core.errors import InvalidEventError

__all__ = [
    "ATTRIBUTES",
    "MAX_KEY_LENGTH",
    "MAX_NAME_LENGTH",
    "RESERVED_NAMES",
    "Attribute",
    "Event",
    "Form",
    "validate_event",
]

MAX_KEY_LENGTH = 255
"""Longest ordering key, in characters."""

MAX_NAME_LENGTH = 255
"""Longest id, type, source and the like, in bytes of UTF-8: AMQP 0-9-1 carries them as short strings."""


class Form(Enum):
    """What an attribute of the envelope may hold, whatever carries or keeps it."""

    NAME = auto()
    """A text of at most `MAX_NAME_LENGTH` bytes."""
    KEY = auto()
    """A text of at most `MAX_KEY_LENGTH` characters."""
    TEXT = auto()
    """A text of any length."""
    TIME = auto()
    DATA = auto()
    EXTENSIONS = auto()


Name: TypeAlias = Annotated[str, Form.NAME]
Key: TypeAlias = Annotated[str, Form.KEY]
Text: TypeAlias = Annotated[str, Form.TEXT]


class Event(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """A CloudEvents 1.0 event with the extension attributes sagapost gives a meaning to.

    Identity is the pair (`source`, `id`): it is set once when the event is published and stays the same in the
    outbox row, the broker's message id, and the inbox's dedup key, on every attempt.

    `data` is opaque bytes in the media type `datacontenttype`; the relay never looks inside.
    Attribute names are those of the CloudEvents specification and its documented extensions (correlation,
    partitioning, distributed tracing).

    This is the one declaration of the envelope: columns, statements and decoders of the outbox's rows, headers, and
    the parked envelope follow from it (`ATTRIBUTES`).
    """

    id: Name
    source: Name
    type: Name
    time: Annotated[datetime, Form.TIME]
    data: Annotated[bytes, Form.DATA] = b""
    subject: Text | None = None
    datacontenttype: Name | None = "application/json"
    dataschema: Text | None = None
    correlationid: Name | None = None
    """The saga this event belongs to."""
    causationid: Name | None = None
    """The id of the event whose handling caused this one."""
    partitionkey: Key | None = None
    """Ordering key: events of one key are delivered in causal order. None: no order is promised."""
    traceparent: Name | None = None
    tracestate: Text | None = None
    extensions: Annotated[Mapping[str, str], Form.EXTENSIONS] = {}
    """Any further CloudEvents extension attributes (lower-case alphanumeric names)."""

    def __repr__(self) -> str:
        # `data` may hold personal data and ends up in logs through repr: show its size only.
        return (
            f"Event(id={self.id!r}, type={self.type!r}, source={self.source!r}, key={self.partitionkey!r}, "
            f"correlationid={self.correlationid!r}, data=<{len(self.data)} bytes>)"
        )


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of the envelope, as `Event` declares it."""

    name: str
    form: Form
    required: bool

    @property
    def is_text(self) -> bool:
        """Whether it holds a text."""
        return self.form in {Form.NAME, Form.KEY, Form.TEXT}


def _declared() -> Iterator[Attribute]:
    hints = get_type_hints(Event, include_extras=True)
    for field in msgspec.structs.fields(Event):
        hint = hints[field.name]
        (form,) = (
            each
            for part in (hint, *get_args(hint))
            for each in getattr(part, "__metadata__", ())
            if type(each) is Form
        )
        yield Attribute(field.name, form, required=field.required)


ATTRIBUTES: tuple[Attribute, ...] = tuple(_declared())
"""The attributes of the envelope, in the order in which `Event` declares them."""

_SHORT = frozenset(each.name for each in ATTRIBUTES if each.form is Form.NAME)
_TEXTS = tuple(each.name for each in ATTRIBUTES if each.is_text)

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
