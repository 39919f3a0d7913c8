"""From an event straight to the bytes of its AMQP 0-9-1 frames: basic.publish, content header, body.

A generic encoder walks a description of every method and property and costs some 60 us a message. Only one kind of
message is ever published here, so everything that repeats (the method frame of a topic, the header fields of a type)
is encoded once and kept, and the rest is put together from constants. Layouts: AMQP 0-9-1, sections 4.2.3 to 4.2.6.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from struct import Struct

from sagapost.core.broker import Outgoing
from sagapost.core.envelope import ATTRIBUTES, Event, utc_iso
from sagapost.core.generated import generated

__all__ = ["FRAME_OVERHEAD", "PublishEncoder", "UnencodableError"]

FRAME_OVERHEAD = 8
"""Bytes of a frame besides its payload: type, channel and size in front, the end octet behind."""

_END = b"\xce"
_MANDATORY = b"\x01"
_PUBLISH = Struct(">BHIHHH").pack  # frame type 1, channel, size, class 60, method 40, reserved
_HEADER = Struct(">BHIHHQH").pack  # frame type 2, channel, size, class 60, weight 0, body size, property flags
_BODY = Struct(">BHI").pack  # frame type 3, channel, size
_U64 = Struct(">Q").pack
_HEADER_FIXED = 14  # class, weight, body size and flags, which count as payload of the header frame

# Property flags of the basic class, highest bit first, and in this order on the wire.
_CONTENT_TYPE = 1 << 15
_HEADERS = 1 << 13
_DELIVERY_MODE = 1 << 12
_CORRELATION_ID = 1 << 10
_MESSAGE_ID = 1 << 7
_TIMESTAMP_FLAG = 1 << 6
_TYPE = 1 << 5
_APP_ID = 1 << 3
_PERSISTENT = b"\x02"

_SHORT_MAX = 255
_U32 = Struct(">I").pack
_LENGTHS = tuple(_U32(n) for n in range(512))

# Topics and types are few, but nothing stops a user from making up one per message: forget all when there are many.
_CACHE_LIMIT = 4096


class UnencodableError(Exception):
    """A message that AMQP 0-9-1 cannot carry; the text says why. It was not sent."""


class PublishEncoder:
    """Encodes for one channel. Not shared between channels: the channel number is part of every frame."""

    def __init__(self, *, channel: int, exchange: str, frame_max: int) -> None:
        self._channel = channel
        self._number = channel.to_bytes(2, "big")
        self._exchange = exchange
        # 0 means unlimited in the handshake; a size field has 32 bits.
        self._payload_max = (frame_max or 0xFFFFFFFF) - FRAME_OVERHEAD
        self._methods: dict[tuple[str | None, str], bytes] = {}
        self._kinds: dict[tuple[str, str, str | None, str | None], tuple[int, bytes, bytes, bytes]] = {}

    def encode(self, outgoing: Outgoing, into: list[bytes]) -> None:
        """Append the frames of one message to `into`; on an error nothing is appended.

        :raises UnencodableError: if a name is longer than 255 bytes, the attributes do not fit into a frame, or a
            text is not valid Unicode.
        """
        event = outgoing.event
        data = event.data
        try:
            method = self._methods.get((outgoing.destination, outgoing.topic)) or self._method(
                outgoing.destination, outgoing.topic
            )
            properties, flags = self._properties(event)
        except UnicodeEncodeError as error:
            raise UnencodableError(f"an attribute cannot be written as UTF-8: {error.reason}") from None
        size = len(properties) + _HEADER_FIXED
        if size > self._payload_max:
            raise UnencodableError(
                f"its attributes take {size:,} bytes, and the broker's frames hold {self._payload_max:,}"
            )
        channel = self._channel
        length = len(data)
        if 0 < length <= self._payload_max:
            into += (
                method,
                _HEADER(2, channel, size, 60, 0, length, flags),
                properties,
                _END,
                _BODY(3, channel, length),
                data,
                _END,
            )
            return
        into += (method, _HEADER(2, channel, size, 60, 0, length, flags), properties, _END)
        view = memoryview(data)
        for start in range(0, length, self._payload_max):
            part = view[start : start + self._payload_max]
            into += (_BODY(3, channel, len(part)), bytes(part), _END)

    @property
    def kept(self) -> int:
        """How many topics and types are kept encoded."""
        return len(self._methods) + len(self._kinds)

    def repeat(self, topic: str, into: list[bytes], start: int) -> None:
        """Append once more, for this channel and exchange, the message whose frames begin at `into[start]`.

        Another encoder of the same connection has put them there; of its frames only the channel numbers change.
        """
        parts = into[start:]
        parts[0] = self._methods.get((None, topic)) or self._method(None, topic)
        # Behind the method: one header in front of its properties, then as many in front of pieces of the body.
        for at in (1, *range(4, len(parts), 3)):
            head = parts[at]
            parts[at] = head[:1] + self._number + head[3:]
        into += parts

    def _method(self, destination: str | None, topic: str) -> bytes:
        """Encode and keep the basic.publish frame of a destination and topic."""
        exchange = self._exchange if destination is None else destination
        payload = _short("exchange", exchange) + _short("topic", topic) + _MANDATORY
        frame = _PUBLISH(1, self._channel, len(payload) + 6, 60, 40, 0) + payload + _END
        if len(self._methods) >= _CACHE_LIMIT:
            self._methods.clear()
        self._methods[destination, topic] = frame
        return frame

    def _properties(self, event: Event) -> tuple[bytes, int]:
        """Encode the property list; return it with its flags."""
        kind = self._kinds.get((event.source, event.type, event.datacontenttype, event.dataschema))
        if kind is None:
            kind = self._kind(event)
        flags, content_type, fixed_headers, tail = kind
        id_ = event.id.encode()
        if len(id_) > _SHORT_MAX:
            raise UnencodableError(f"its id has {len(id_)} bytes; at most {_SHORT_MAX} fit")
        time = event.time
        iso = (time.isoformat()[:-6] + "Z" if time.tzinfo is UTC else utc_iso(time)).encode()
        headers = _headers(event, fixed_headers, id_, iso)
        correlation = b""
        if event.correlationid is not None:
            raw = event.correlationid.encode()
            # The properties repeat what the headers say, for brokers' tools: leave one out rather than refuse.
            if len(raw) <= _SHORT_MAX:
                correlation = bytes((len(raw),)) + raw
                flags |= _CORRELATION_ID
        seconds = int(time.timestamp())
        return b"".join(
            (
                content_type,
                _U32(len(headers)),
                headers,
                _PERSISTENT,
                correlation,
                bytes((len(id_),)),
                id_,
                # The wire type is unsigned: what happened before 1970 is only in ce-time.
                _U64(max(0, seconds)),
                tail,
            )
        ), flags

    def _kind(self, event: Event) -> tuple[int, bytes, bytes, bytes]:
        """Encode and keep what all events of a source, type and media type share."""
        flags = _HEADERS | _DELIVERY_MODE | _MESSAGE_ID | _TIMESTAMP_FLAG
        content_type = tail = b""
        if event.datacontenttype is not None:
            content_type = _short("datacontenttype", event.datacontenttype)
            flags |= _CONTENT_TYPE
        for value, flag in ((event.type, _TYPE), (event.source, _APP_ID)):
            raw = value.encode()
            if len(raw) <= _SHORT_MAX:
                tail += bytes((len(raw),)) + raw
                flags |= flag
        headers = _header("specversion", "1.0") + _header("source", event.source) + _header("type", event.type)
        if event.dataschema is not None:
            headers += _header("dataschema", event.dataschema)
        if len(self._kinds) >= _CACHE_LIMIT:
            self._kinds.clear()
        kind = self._kinds[event.source, event.type, event.datacontenttype, event.dataschema] = (
            flags,
            content_type,
            headers,
            tail,
        )
        return kind


def _short(name: str, text: str) -> bytes:
    raw = text.encode()
    if len(raw) > _SHORT_MAX:
        raise UnencodableError(f"its {name} has {len(raw)} bytes; at most {_SHORT_MAX} fit")
    return bytes((len(raw),)) + raw


def _field(name: bytes, text: str) -> bytes:
    raw = text.encode()
    return name + (_LENGTHS[len(raw)] if len(raw) < 512 else _U32(len(raw))) + raw


def _header(attribute: str, text: str) -> bytes:
    name = b"ce-" + attribute.encode()
    if len(name) > _SHORT_MAX:
        raise UnencodableError(f"the attribute name {attribute[:40]!r}... has over {_SHORT_MAX - 3} bytes")
    return _field(bytes((len(name),)) + name + b"S", text)


def _extensions(event: Event) -> bytes:
    return b"".join(_header(name, value) for name, value in event.extensions.items())


def _named(attribute: str) -> bytes:
    """The name of a header with the tag of its value, ready to be followed by length and text."""
    name = b"ce-" + attribute.encode()
    return bytes((len(name),)) + name + b"S"


# In `fixed_headers` with what else repeats, or among the properties.
_ELSEWHERE = frozenset({"id", "source", "type", "datacontenttype", "dataschema"})

_headers: Callable[[Event, bytes, bytes, bytes], bytes] = generated(
    "headers",
    # A table is a plain run of fields, so absent attributes are simply empty.
    "def headers(event, fixed, id, iso):\n"
    f"    return join((fixed, {_named('id')!r}, lengths[len(id)], id, {_named('time')!r}, lengths[len(iso)], iso, "
    + "".join(
        f"b'' if event.{each.name} is None else field({_named(each.name)!r}, event.{each.name}), "
        for each in ATTRIBUTES
        if each.is_text and each.name not in _ELSEWHERE
    )
    + "extensions(event) if event.extensions else b''))\n",
    {"join": b"".join, "lengths": _LENGTHS, "field": _field, "extensions": _extensions},
)
"""Encode the header table of an event."""
