"""Between a message's headers and an `Event`: the CloudEvents 1.0 mapping that the broker adapters share.

Written: binary mode, one header `ce-<attribute>` per attribute and `datacontenttype` as the message's content type, as
in Knative's RabbitMQ binding (github.com/knative-extensions/eventing-rabbitmq, cloudevents-protocol-spec/spec.md).

Read: binary mode with any prefix in use (`ce-`, Kafka's `ce_`, AMQP 1.0's `cloudEvents_` and `cloudEvents:`, also in
capital letters), the structured mode `application/cloudevents+json`, a batch of one event, and foreign messages that
know nothing of CloudEvents; with the content encodings and charsets of `bodies`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from sagapost.adapters.bodies import UnreadableBodyError, media_type_of, plain_body
from sagapost.core.broker import Malformed
from sagapost.core.envelope import ATTRIBUTES, Event, utc_iso
from sagapost.core.foreign import ForeignMessageError, ForeignMessages, Incoming
from sagapost.core.generated import generated

__all__ = ["PREFIX", "binary_headers", "read_again", "read_message"]

PREFIX = "ce-"
"""What this library writes before the name of an attribute."""

_PREFIXES = (PREFIX, "ce_", "cloudEvents_", "cloudEvents:")
_LOWERED_PREFIXES = tuple(prefix.lower() for prefix in _PREFIXES)
_STRUCTURED = "application/cloudevents+json"
_BATCH = "application/cloudevents-batch+json"
_STRUCTURED_ANY = "application/cloudevents"
_JSON = "application/json"
_PROPERTIES = ("content_type", "content_encoding", "app_id", "correlation_id", "timestamp")
"""Of an incoming message: what `Malformed` keeps under these names."""
_SECONDS_BELOW = 10**11
"""A time given as a number: milliseconds by CloudEvents' AMQP binding; a smaller one (before 1973) is seconds."""

# Optional attributes with a field of their own, in the order they are written.
_OPTIONAL = tuple(
    each.name for each in ATTRIBUTES if each.is_text and not each.required and each.name != "datacontenttype"
)
_KNOWN = frozenset(
    {"specversion", "id", "source", "type", "time", "datacontenttype", "data", "data_base64", *_OPTIONAL}
)


class _UnreadableError(Exception):
    """Carries the reason out of the reading functions; never leaves this module."""


def binary_headers(event: Event) -> dict[str, str]:
    """Return the headers of `event` in binary mode (`datacontenttype` goes into the message's content type)."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": event.id,
        "ce-source": event.source,
        "ce-type": event.type,
        "ce-time": utc_iso(event.time),
    }
    for name in _OPTIONAL:
        value: str | None = getattr(event, name)
        if value is not None:
            headers[PREFIX + name] = value
    for name, value in event.extensions.items():
        headers[PREFIX + name] = value
    return headers


def read_message(message: Incoming, policy: ForeignMessages) -> Event | Malformed:
    """Read a message as an event. Never raises for what a message contains: what cannot be read is `Malformed`."""
    try:
        plain = _plain(message)
        if plain.content_type != _JSON and media_type_of(plain.content_type).startswith(_STRUCTURED_ANY):
            return _read_structured(plain)
        prefix = _prefix_in(plain.headers, _PREFIXES)
        if prefix is not None:
            return _read_binary(plain, prefix)
        # In other letters, as a bridge from HTTP writes them.
        lowered = {name.lower(): value for name, value in plain.headers.items()}
        prefix = _prefix_in(lowered, _LOWERED_PREFIXES)
        if prefix is not None:
            return _read_binary(msgspec.structs.replace(plain, headers=lowered), prefix)
        return _read_foreign(plain, policy)
    except (_UnreadableError, UnreadableBodyError, ForeignMessageError) as error:
        return _malformed(message, str(error))


def _plain(message: Incoming) -> Incoming:
    """Return the message with its body unpacked and in UTF-8."""
    body, media_type = message.body, message.content_type
    if message.content_encoding is None and media_type == _JSON and body[:1] in _ASCII and body[1:2] != b"\x00":
        # What this library writes, and most of what others do.
        return message
    data, content_type = plain_body(body, media_type, message.content_encoding)
    return msgspec.structs.replace(message, body=data, content_type=content_type, content_encoding=None)


_ASCII = frozenset(b"%c" % each for each in range(1, 128))


def _prefix_in(headers: Mapping[str, object], prefixes: tuple[str, ...]) -> str | None:
    """Return what the names of an event's attributes begin with; None: these are no event's."""
    for prefix in prefixes:
        if prefix + "specversion" in headers or prefix + "id" in headers:
            return prefix
    return None


def _malformed(message: Incoming, reason: str) -> Malformed:
    return Malformed(
        reason=reason,
        body=message.body,
        headers={name: _text(value) for name, value in message.headers.items()},
        message_id=message.message_id,
        type=message.type,
        properties={name: _text(value) for name in _PROPERTIES if (value := getattr(message, name)) is not None},
    )


def read_again(message: Malformed, topic: str, policy: ForeignMessages, *, received_at: datetime) -> Event | Malformed:
    """Read what could not be read once more: the policy may be another, or an operator has added what it lacked.

    As it came, but for headers that were no text: those are their canonical strings.
    """
    given = dict(message.properties)
    stamp = given.pop("timestamp", None)
    return read_message(
        Incoming(
            body=message.body,
            topic=topic,
            headers=message.headers,
            message_id=message.message_id,
            type=message.type,
            timestamp=None if stamp is None else _time(stamp),
            received_at=received_at,
            **{name: given.get(name) for name in _PROPERTIES if name != "timestamp"},
        ),
        policy,
    )


# --- binary mode ---


def _read_binary(message: Incoming, prefix: str) -> Event:
    attributes: dict[str, str] = {}
    start = len(prefix)
    for name, value in message.headers.items():
        if name.startswith(prefix):
            attribute = name[start:]
            if type(value) is str:
                attributes[attribute] = value
            else:
                attributes[attribute] = _attribute(name, _moment(value) if attribute == "time" else value)
    return _event(attributes, message, data=message.body, datacontenttype=message.content_type)


def _event(attributes: dict[str, str], message: Incoming, *, data: bytes, datacontenttype: str | None) -> Event:
    take = attributes.pop
    version = take("specversion", "")
    if not version.startswith("1."):
        raise _UnreadableError(
            f"its CloudEvents specversion is {version!r}; this release reads 1.x"
            if version
            else "it has CloudEvents attributes but no specversion"
        )
    id_, source, type_, time = take("id", ""), take("source", ""), take("type", ""), take("time", "")
    if not (id_ and source and type_):
        missing = [name for name, value in (("id", id_), ("source", source), ("type", type_)) if not value]
        raise _UnreadableError(f"the required CloudEvents attribute {' and '.join(missing)} is missing or empty")
    moment = _time(time) if time else _received_at(message)
    return _made(id_, source, type_, moment, data, take("datacontenttype", None) or datacontenttype, attributes)


_made: Callable[[str, str, str, datetime, bytes, str | None, dict[str, str]], Event] = generated(
    "made",
    "def made(id, source, type, time, data, datacontenttype, attributes):\n"
    "    take = attributes.pop\n"
    "    return Event(id=id, source=source, type=type, time=time, data=data, datacontenttype=datacontenttype, "
    + "".join(f"{name}=take({name!r}, None), " for name in _OPTIONAL)
    + "extensions=attributes)\n",
    {"Event": Event},
)
"""What is left of the attributes, once those with a field of their own are taken, are extensions."""


# --- structured mode ---


class _StructuredData(msgspec.Struct):
    """Only the data members of a structured event; `Raw` keeps the producer's bytes as they are."""

    data: msgspec.Raw = msgspec.Raw(b"null")
    data_base64: str | None = None


_structured_data = msgspec.json.Decoder(_StructuredData)


def _read_structured(message: Incoming) -> Event:
    media_type = media_type_of(message.content_type)
    if media_type not in (_STRUCTURED, _BATCH):
        raise _UnreadableError(
            f"its content type is {media_type!r}; of the structured formats only {_STRUCTURED} is read"
        )
    body = message.body
    try:
        if media_type == _BATCH:
            body = _only_one_of(body)
        members: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _UnreadableError(f"its body is not valid JSON: {error}") from error
    if not isinstance(members, dict):
        raise _UnreadableError("its body is JSON, but not an object as the structured mode asks for")
    attributes = {
        name: _attribute(name, value)
        for name, value in members.items()
        if value is not None and name not in ("data", "data_base64")
    }
    datacontenttype = attributes.get("datacontenttype", "application/json")
    return _event(
        attributes, message, data=_structured_payload(body, datacontenttype), datacontenttype=datacontenttype
    )


def _only_one_of(batch: bytes) -> bytes:
    """Return the one event of a batch."""
    try:
        events = msgspec.json.decode(batch, type=list[msgspec.Raw])
    except msgspec.ValidationError as error:
        raise _UnreadableError(
            f"its content type is that of a batch of events, and its body is none: {error}"
        ) from error
    if len(events) != 1:
        raise _UnreadableError(
            f"it is a batch of {len(events)} events; a message is one event here, so let its producer send each alone"
        )
    return bytes(events[0])


def _structured_payload(body: bytes, datacontenttype: str) -> bytes:
    try:
        members = _structured_data.decode(body)
    except msgspec.ValidationError as error:
        raise _UnreadableError(f"its data_base64 is not a string: {error}") from error
    if members.data_base64 is not None:
        try:
            return base64.b64decode(members.data_base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise _UnreadableError(f"its data_base64 is not valid base64: {error}") from error
    raw = bytes(members.data)
    if raw == b"null":
        return b""
    media_type = media_type_of(datacontenttype)
    is_json = media_type.endswith(("/json", "+json"))
    # A JSON string under another media type is that text itself (CloudEvents JSON format, section 3.1).
    return msgspec.json.decode(raw, type=str).encode() if raw[:1] == b'"' and not is_json else raw


# --- foreign messages ---


def _read_foreign(message: Incoming, policy: ForeignMessages) -> Event:
    reading = policy.read(message)
    headers = message.headers
    return Event(
        id=reading.id or "",
        source=reading.source or "",
        type=reading.type or "",
        time=reading.time or _received_at(message),
        data=reading.data,
        datacontenttype=reading.content_type,
        correlationid=reading.correlation,
        partitionkey=reading.key or None,
        traceparent=_optional_text(headers.get("traceparent")),
        tracestate=_optional_text(headers.get("tracestate")),
        extensions={
            name: _text(value)
            for name, value in headers.items()
            if name not in _KNOWN
            and name.isascii()
            and name.isalnum()
            and name == name.lower()
            and isinstance(value, str | int | bool)
        },
    )


# --- values ---


def _time(text: str) -> datetime:
    try:
        # RFC 3339 allows t and z in lower case, section 5.6.
        moment = datetime.fromisoformat(text if text[-1] != "z" else text.upper())
    except ValueError:
        raise _UnreadableError(f"its CloudEvents time {text[:64]!r} is not an RFC 3339 timestamp") from None
    if moment.tzinfo is None:
        raise _UnreadableError(f"its CloudEvents time {text[:64]!r} has no UTC offset, which RFC 3339 asks for")
    return moment


def _received_at(message: Incoming) -> datetime:
    # `time` is optional in CloudEvents but not in ours: the producer's timestamp, else the time of receipt.
    return message.timestamp or message.received_at or datetime.now(UTC)


def _moment(value: object) -> object:
    """Return a time that came as a number."""
    if type(value) is not int:
        return value
    try:
        return datetime.fromtimestamp(value if value < _SECONDS_BELOW else value / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        raise _UnreadableError(f"its CloudEvents time {str(value)[:64]} is in no calendar") from None


def _attribute(name: str, value: object) -> str:
    if isinstance(value, str | bool | int | datetime):
        return _text(value)
    if isinstance(value, bytes | bytearray):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise _UnreadableError(f"its attribute {name!r} is not valid UTF-8") from None
    raise _UnreadableError(
        f"its attribute {name!r} is of type {type(value).__name__}, which CloudEvents does not have"
    )


def _text(value: object) -> str:
    """Return the canonical CloudEvents string of a value (`true`, `5`, RFC 3339), or something readable."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, datetime):
        return utc_iso(value if value.tzinfo is not None else value.replace(tzinfo=UTC))
    return str(value)


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)
