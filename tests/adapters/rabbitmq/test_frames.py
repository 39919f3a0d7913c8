"""Our encoder against another implementation's decoder, and our decoder against another implementation's encoder."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pamqp.frame
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pamqp import commands
from pamqp.header import ContentHeader

from sagapost.adapters.cloudevents import binary_headers, read_message
from sagapost.adapters.rabbitmq.contents import ContentError, read_incoming, read_message_id
from sagapost.adapters.rabbitmq.frames import PublishEncoder, UnencodableError
from sagapost.core.broker import Malformed, Outgoing
from sagapost.core.envelope import Event
from sagapost.core.foreign import ForeignMessages, Incoming
from tests.adapters.strategies import events, names

FULL = Event(
    id="01a205ef-c395-705a-b7d4-61b35b1c092f",
    source="https://orders.example",
    type="orders.order-placed.v1",
    time=datetime(2026, 11, 23, 8, 0, 0, 5, tzinfo=UTC),
    data=b'{"a":1}',
    subject="order/4711",
    dataschema="https://schemas.example/1",
    correlationid="saga-1",
    causationid="cause-1",
    partitionkey="4711",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    tracestate="congo=t61rcWkgMzE",
    extensions={"tenant": "acme"},
)


def encode(message: Outgoing, *, exchange: str = "sagapost", channel: int = 1, frame_max: int = 131_072) -> bytes:
    """Encode one message."""
    frames: list[bytes] = []
    PublishEncoder(channel=channel, exchange=exchange, frame_max=frame_max).encode(message, frames)
    return b"".join(frames)


def decode(data: bytes) -> Iterator[tuple[int, Any]]:
    """Cut and decode frames with pamqp; yields channel and frame."""
    while data:
        used, channel, frame = pamqp.frame.unmarshal(data)
        yield channel, frame
        data = data[used:]


@given(events, names, st.none() | names, st.integers(1, 65535))
@example(FULL, "a.topic", None, 1)
@example(msgspec.structs.replace(FULL, id="é" * 127, data=b""), "", "", 65535)
@settings(deadline=None, max_examples=300)
def test_frames_decode_to_what_was_meant(event: Event, topic: str, destination: str | None, channel: int) -> None:
    """pamqp sees one mandatory publish with the event's attributes as properties and headers."""
    frames = list(decode(encode(Outgoing(event, topic, destination), channel=channel)))
    assert {number for number, _ in frames} == {channel}
    publish, header, *bodies = [frame for _, frame in frames]
    assert isinstance(publish, commands.Basic.Publish)
    assert publish.exchange == ("sagapost" if destination is None else destination)
    assert (publish.routing_key, publish.mandatory, publish.immediate) == (topic, True, False)
    assert isinstance(header, ContentHeader)
    assert header.body_size == len(event.data)
    properties = header.properties
    assert properties.headers == binary_headers(event)
    assert properties.delivery_mode == 2
    assert properties.message_id == event.id
    assert properties.content_type == event.datacontenttype
    assert properties.message_type == event.type
    assert properties.app_id == event.source
    assert properties.timestamp == event.time.replace(microsecond=0)
    fits = event.correlationid is not None and len(event.correlationid.encode()) <= 255
    assert properties.correlation_id == (event.correlationid if fits else None)
    assert b"".join(body.value for body in bodies) == event.data


@given(events, names)
@example(FULL, "a.topic")
@settings(deadline=None, max_examples=300)
def test_what_is_written_is_read_back(event: Event, topic: str) -> None:
    """Encoder and decoder agree on every event."""
    _, (_, header), *bodies = list(decode_raw(encode(Outgoing(event, topic))))
    body = b"".join(payload for _, payload in bodies)
    incoming = read_incoming(header[12:], body, topic)
    assert read_message(incoming, ForeignMessages()) == event
    assert read_message_id(header[12:]) == event.id


def decode_raw(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Cut frames; yields type and payload."""
    while data:
        size = int.from_bytes(data[3:7], "big")
        assert data[7 + size] == 0xCE
        yield data[0], data[7 : 7 + size]
        data = data[8 + size :]


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 8192, 10_000])
def test_bodies_are_split_by_the_frame_size(size: int) -> None:
    """No frame is larger than agreed, and none is empty."""
    data = bytes(n % 251 for n in range(size))
    frame_max = 4104
    frames = list(decode_raw(encode(Outgoing(msgspec.structs.replace(FULL, data=data), "t"), frame_max=frame_max)))
    assert all(len(payload) + 8 <= frame_max for _, payload in frames)
    bodies = [payload for kind, payload in frames if kind == 3]
    assert all(bodies)
    assert b"".join(bodies) == data


def test_no_limit_on_frames_means_one_body_frame() -> None:
    """A frame size of 0 in the handshake stands for unlimited."""
    large = msgspec.structs.replace(FULL, data=b"x" * 1_000_000)
    assert len(list(decode_raw(encode(Outgoing(large, "t"), frame_max=0)))) == 3


@pytest.mark.parametrize(
    ("change", "topic", "reason"),
    [
        ({}, "x" * 256, "its topic has 256 bytes"),
        ({"id": "x" * 256}, "t", "its id has 256 bytes"),
        ({"datacontenttype": "x" * 256}, "t", "its datacontenttype has 256 bytes"),
        ({"subject": "x" * 5000}, "t", "its attributes take"),
        ({"extensions": {"x" * 300: "y"}}, "t", "attribute name"),
        ({"subject": "\ud800"}, "t", "cannot be written as UTF-8"),
        ({}, "\ud800", "cannot be written as UTF-8"),
    ],
)
def test_what_amqp_cannot_carry_is_refused_before_anything_is_written(
    change: dict[str, Any], topic: str, reason: str
) -> None:
    """The reason is named, and the buffer of the batch stays as it was."""
    frames = [b"before"]
    encoder = PublishEncoder(channel=1, exchange="sagapost", frame_max=4096)
    with pytest.raises(UnencodableError, match=reason):
        encoder.encode(Outgoing(msgspec.structs.replace(FULL, **change), topic), frames)
    assert frames == [b"before"]


def test_long_source_and_type_travel_in_the_headers_alone() -> None:
    """Native properties hold 255 bytes; a longer value is left out there instead of being cut or refused."""
    event = msgspec.structs.replace(FULL, source="https://" + "s" * 300, type="t" * 256)
    (_, _), (_, header), *_rest = decode(encode(Outgoing(event, "t")))
    assert (header.properties.app_id, header.properties.message_type) == (None, None)
    assert header.properties.headers["ce-source"] == event.source
    assert header.properties.headers["ce-type"] == event.type


def test_made_up_topics_and_types_do_not_fill_the_memory() -> None:
    """The encoder forgets what it kept when a producer makes up a topic per message, and goes on correctly."""
    encoder = PublishEncoder(channel=1, exchange="sagapost", frame_max=131_072)
    for n in range(10_000):
        frames: list[bytes] = []
        encoder.encode(Outgoing(msgspec.structs.replace(FULL, type=f"t{n}"), f"topic.{n}"), frames)
        if n % 1000 == 0:
            (_, publish), (_, header), _body = decode(b"".join(frames))
            assert (publish.routing_key, header.properties.message_type) == (f"topic.{n}", f"t{n}")
    assert encoder.kept <= 2 * 4096


# --- reading what others write ---

field_values = st.one_of(
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
    st.text(max_size=20),
    st.floats(-1e6, 1e6),
    st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    st.none(),
    st.binary(max_size=5).map(bytearray),
    st.lists(st.integers(0, 5), max_size=3),
    st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 5), max_size=2),
)


@given(
    st.dictionaries(st.text(min_size=1, max_size=20), field_values, max_size=6) | st.none(),
    st.fixed_dictionaries(
        {
            name: st.none() | st.text(min_size=1, max_size=20)
            for name in (
                "content_type",
                "content_encoding",
                "correlation_id",
                "reply_to",
                "expiration",
                "message_id",
                "message_type",
                "user_id",
                "app_id",
            )
        }
    ),
    st.none() | st.integers(0, 9),
    st.none() | st.integers(1, 2),
    st.none() | st.just(datetime(2026, 11, 23, 8, tzinfo=UTC)),
)
@settings(deadline=None, max_examples=300)
def test_properties_of_others_are_read(
    headers: Any, texts: dict[str, Any], priority: Any, delivery_mode: Any, timestamp: Any
) -> None:
    """Any combination of properties and header types that pamqp writes comes out the same here."""
    properties = commands.Basic.Properties(
        headers=headers, priority=priority, delivery_mode=delivery_mode, timestamp=timestamp, **texts
    )
    frame = pamqp.frame.marshal(ContentHeader(0, 0, properties), 1)
    # pamqp's own reading is the reference: its writing already turned some values into others (None, bytearray).
    _, _, reference = pamqp.frame.unmarshal(frame)
    assert isinstance(reference, ContentHeader)
    expected = reference.properties
    assert read_incoming(frame[7 + 12 : -1], b"", "t") == Incoming(
        body=b"",
        topic="t",
        headers=expected.headers or {},
        content_type=expected.content_type,
        content_encoding=expected.content_encoding,
        message_id=expected.message_id,
        type=expected.message_type,
        app_id=expected.app_id,
        correlation_id=expected.correlation_id,
        timestamp=expected.timestamp,
    )


@given(st.binary(max_size=80))
@example(b"")
@example(b"\xff\xff")
@settings(deadline=None, max_examples=500)
def test_garbage_properties_are_an_error_of_their_own(data: bytes) -> None:
    """Bytes that break the layout yield `ContentError`, never anything else."""
    with contextlib.suppress(ContentError):
        read_incoming(data, b"", "t")


@pytest.mark.parametrize("kind", [b"A", b"F"])
def test_values_nested_without_end_are_kept_as_they_came(kind: bytes) -> None:
    """Lists or tables five thousand deep end nobody: the value stays bytes, and all around it is read."""
    value = b"b\x01"
    for _ in range(5_000):
        inner = value if kind == b"A" else b"\x01a" + value
        value = kind + struct.pack(">I", len(inner)) + inner
    table = b"\x01x" + value + b"\x05ce-idS" + struct.pack(">I", 2) + b"e1"
    flags = struct.pack(">H", 1 << 13 | 1 << 7)
    incoming = read_incoming(flags + struct.pack(">I", len(table)) + table + b"\x02m1", b"body", "t")
    assert incoming.headers == {"x": value[5:], "ce-id": "e1"}
    assert incoming.message_id == "m1"
    assert isinstance(read_message(incoming, ForeignMessages()), Event | Malformed)


@given(events, st.data())
@settings(deadline=None)
def test_cut_properties_never_raise_anything_else(event: Event, data: st.DataObject) -> None:
    """A header cut off anywhere is read as far as it goes or refused, in both cases without a crash."""
    _, (_, header), *_rest = list(decode_raw(encode(Outgoing(event, "t"))))
    cut = data.draw(st.integers(0, len(header) - 12))
    try:
        read_incoming(header[12 : 12 + cut], b"", "t")
    except ContentError:
        assert cut < len(header) - 12


@pytest.mark.parametrize(
    ("stamp", "moment"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (1_767_225_600, datetime(2026, 1, 1, tzinfo=UTC)),
        (1_767_225_600_250, datetime(2026, 1, 1, 0, 0, 0, 250_000, tzinfo=UTC)),
        (2**64 - 1, None),
    ],
)
def test_timestamps_are_seconds_or_plainly_milliseconds(stamp: int, moment: datetime | None) -> None:
    """Some clients write milliseconds where seconds belong: read as what they mean, or not at all."""
    properties = commands.Basic.Properties(message_id="m", timestamp=datetime(2026, 1, 1, tzinfo=UTC))
    frame = bytearray(pamqp.frame.marshal(ContentHeader(0, 0, properties), 1))
    frame[-9:-1] = stamp.to_bytes(8, "big")
    assert read_incoming(bytes(frame[7 + 12 : -1]), b"", "t").timestamp == moment
