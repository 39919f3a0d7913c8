"""The CloudEvents mapping: our own, everybody else's, and that of strangers. Interoperability is judged by the SDK."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_binary, to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from sagapost.adapters.cloudevents import binary_headers, read_message
from sagapost.core.broker import Malformed
from sagapost.core.envelope import Event
from sagapost.core.foreign import ForeignMessages, Incoming
from tests.adapters.strategies import events

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
POLICY = ForeignMessages(source_from="urn:elsewhere")
REQUIRED = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t.v1", "time": "2026-11-23T08:00:00Z"}


def read(body: bytes = b"", policy: ForeignMessages = POLICY, **properties: Any) -> Event | Malformed:
    """Read a message with the given properties."""
    values: dict[str, Any] = {"topic": "a.topic", "headers": {}, **properties}
    return read_message(Incoming(body=body, **values), policy)


def read_event(body: bytes = b"", policy: ForeignMessages = POLICY, **properties: Any) -> Event:
    """Read a message that must be an event."""
    event = read(body, policy, **properties)
    assert isinstance(event, Event), event
    return event


def reason_of(body: bytes = b"", policy: ForeignMessages = POLICY, **properties: Any) -> str:
    """Read a message that must not be an event; return why."""
    malformed = read(body, policy, **properties)
    assert isinstance(malformed, Malformed)
    assert malformed.body == body
    return malformed.reason


# --- binary mode ---


@given(events)
@settings(deadline=None)
def test_binary_mode_round_trips(event: Event) -> None:
    """Any event that can be written is read back the same."""
    headers: dict[str, object] = dict(binary_headers(event))
    assert read_event(event.data, headers=headers, content_type=event.datacontenttype) == event


@pytest.mark.parametrize("data", [bytes(4), bytes(5), b"0\x00", b"\xff\xfe", b"\x00\x00\xfe\xff\x00"])
def test_bytes_that_begin_like_another_charset_stay_what_they_are(data: bytes) -> None:
    """An event's data is any bytes; what is neither an object nor an array in that charset was never meant in it."""
    assert (
        read_event(
            data, headers={f"ce-{name}": value for name, value in REQUIRED.items()}, content_type="application/json"
        ).data
        == data
    )


@pytest.mark.parametrize("prefix", ["ce-", "ce_", "cloudEvents_", "cloudEvents:"])
def test_every_prefix_in_use_is_read(prefix: str) -> None:
    """Knative, Kafka and both AMQP 1.0 spellings yield the same event."""
    headers: dict[str, object] = {prefix + name: value for name, value in REQUIRED.items()}
    headers |= {prefix + "correlationid": "saga-1", prefix + "tenant": "acme", "unrelated": "x"}
    event = read_event(b"{}", headers=headers, content_type="application/json")
    assert event == Event(
        id="1",
        source="/s",
        type="t.v1",
        time=NOW,
        data=b"{}",
        correlationid="saga-1",
        extensions={"tenant": "acme"},
    )


def test_header_values_of_other_types_become_their_canonical_text() -> None:
    """Brokers and clients turn attributes into integers, booleans, bytes or times; CloudEvents gives each one text."""
    headers: dict[str, object] = {f"ce-{name}": value for name, value in REQUIRED.items()}
    headers |= {"ce-time": NOW, "ce-sequence": 7, "ce-sampled": True, "ce-subject": b"raw", "ce-id": 42}
    event = read_event(headers=headers)
    assert (event.id, event.time, event.subject) == ("42", NOW, "raw")
    assert event.extensions == {"sequence": "7", "sampled": "true"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": ""}, "required CloudEvents attribute id is missing"),
        ({"source": "", "type": ""}, "source and type"),
        ({"specversion": "0.3"}, "specversion is '0.3'"),
        ({"specversion": ""}, "no specversion"),
        ({"time": "yesterday"}, "'yesterday' is not an RFC 3339"),
        ({"time": "2026-11-23T08:00:00"}, "no UTC offset"),
        ({"subject": b"\xff"}, "'ce-subject' is not valid UTF-8"),
        ({"nested": {"a": 1}}, "'ce-nested' is of type dict"),
    ],
)
def test_broken_attributes_are_named(change: dict[str, object], reason: str) -> None:
    """A message that claims to be a CloudEvent and is none says which attribute is wrong."""
    headers = {f"ce-{name}": value for name, value in {**REQUIRED, **change}.items()}
    assert reason in reason_of(b"body", headers=headers)


def test_a_missing_time_is_the_producers_timestamp_or_now() -> None:
    """`time` is optional in CloudEvents: the message's timestamp stands in, else the time of receipt."""
    headers: dict[str, object] = {f"ce-{name}": value for name, value in REQUIRED.items() if name != "time"}
    assert read_event(headers=headers, timestamp=NOW).time == NOW
    before = datetime.now(UTC)
    assert before <= read_event(headers=headers).time <= datetime.now(UTC)


# --- structured mode ---


def structured(**members: object) -> bytes:
    """Return a structured event as JSON."""
    return json.dumps({**REQUIRED, **members}).encode()


def packed(body: bytes) -> bytes:
    """Without the time of day: bytes become part of a test's name, which all workers must agree on."""
    return gzip.compress(body, mtime=0)


@pytest.mark.parametrize(
    ("members", "data", "media_type"),
    [
        ({}, b"", "application/json"),
        ({"data": {"a": 1.0}}, b'{"a": 1.0}', "application/json"),
        ({"data": "text"}, b'"text"', "application/json"),
        ({"data": "tëxt", "datacontenttype": "text/plain"}, "tëxt".encode(), "text/plain"),
        ({"data": [1], "datacontenttype": "application/vnd.x+json"}, b"[1]", "application/vnd.x+json"),
        (
            {"data_base64": base64.b64encode(b"\0\xff").decode(), "datacontenttype": "x/png"},
            b"\0\xff",
            "x/png",
        ),
        ({"data": None, "subject": None}, b"", "application/json"),
    ],
)
def test_structured_data_is_unpacked(members: dict[str, object], data: bytes, media_type: str) -> None:
    """JSON stays as it was written, text is unquoted under another media type, base64 is decoded."""
    event = read_event(structured(**members), content_type="application/cloudevents+json; charset=utf-8")
    assert (event.data, event.datacontenttype) == (data, media_type)
    assert (event.id, event.source, event.type, event.time, event.subject) == ("1", "/s", "t.v1", NOW, None)


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"{", "application/cloudevents+json", "not valid JSON"),
        (b"\xff", "application/cloudevents+json", "not valid JSON"),
        (b"[1]", "application/cloudevents+json", "not an object"),
        (b"<e/>", "application/cloudevents+xml", "of the structured formats only"),
        (b"[]", "application/cloudevents-batch+json", "a batch of 0 events"),
        (
            b"[" + structured() + b"," + structured() + b"]",
            "application/cloudevents-batch+json",
            "a batch of 2 events",
        ),
        (b"{}", "application/cloudevents-batch+json", "its body is none"),
        (b"[1]", "application/cloudevents-batch+json", "not an object"),
        (structured(data_base64="?"), "application/cloudevents+json", "not valid base64"),
        (structured(data_base64=5), "application/cloudevents+json", "not a string"),
        (structured(id=None), "application/cloudevents+json", "attribute id is missing"),
        (structured(tags=["a"]), "application/cloudevents+json", "'tags' is of type list"),
    ],
)
def test_broken_structured_messages_say_why(body: bytes, content_type: str, reason: str) -> None:
    """Bad JSON, another format and bad members are told apart."""
    assert reason in reason_of(body, content_type=content_type)


def test_a_batch_of_one_is_that_event() -> None:
    """The batch format is read where it holds what one message can be."""
    event = read_event(b"[" + structured(data={"a": 1}) + b"]", content_type="application/cloudevents-batch+json")
    assert (event.id, event.data) == ("1", b'{"a": 1}')


# --- how others write times, names and bodies ---


@pytest.mark.parametrize(
    "time",
    ["2026-11-23t08:00:00z", "2026-11-23T09:00:00+01:00", "2026-11-23T08:00:00.000000000Z", 1795420800000, 1795420800],
)
def test_every_form_of_time_in_use_is_the_same_moment(time: object) -> None:
    """Lower case (RFC 3339), nanoseconds (Go, Java), milliseconds (the SDK's AMQP binding) and seconds."""
    headers: dict[str, object] = {f"cloudEvents_{name}": value for name, value in REQUIRED.items()}
    assert read_event(headers=headers | {"cloudEvents_time": time}).time == NOW


def test_a_number_that_is_no_time_is_named() -> None:
    """A number beyond the calendar is the message's fault, and no crash."""
    headers: dict[str, object] = {f"ce-{name}": value for name, value in REQUIRED.items()}
    assert "no calendar" in reason_of(headers=headers | {"ce-time": 10**30})


def test_names_and_media_types_in_capital_letters_are_the_same() -> None:
    """Header names that came through HTTP, and media types, which are compared without regard to case."""
    capitals: dict[str, object] = {f"Ce-{name.title()}": value for name, value in REQUIRED.items()}
    assert read_event(headers=capitals).id == "1"
    assert read_event(structured(data=[1]), content_type="Application/CloudEvents+JSON").data == b"[1]"


TEXT = '{"name":"Käse"}'


@pytest.mark.parametrize(
    ("body", "properties"),
    [
        (packed(TEXT.encode()), {"content_encoding": "gzip"}),
        (
            packed(TEXT[:5].encode()) + packed(TEXT[5:].encode()),
            {"content_encoding": "X-GZip"},
        ),
        (zlib.compress(TEXT.encode()), {"content_encoding": "deflate"}),
        (zlib.compress(TEXT.encode(), wbits=-15), {"content_encoding": "deflate"}),
        (packed(zlib.compress(TEXT.encode())), {"content_encoding": "deflate, gzip"}),
        (TEXT.encode(), {"content_encoding": "utf-8"}),
        (TEXT.encode("utf-16"), {"content_encoding": "UTF-16"}),
        (b"\xef\xbb\xbf" + TEXT.encode(), {}),
        (b"\xef\xbb\xbf" + TEXT.encode(), {"content_type": None}),
        *(
            (TEXT.encode(charset), {"content_type": f'application/json; Charset="{charset}"'})
            for charset in ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "latin-1", "cp1252")
        ),
        *((TEXT.encode(charset), {}) for charset in ("utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be")),
    ],
)
@pytest.mark.parametrize("headers", [{}, {f"ce-{name}": value for name, value in REQUIRED.items()}])
def test_a_body_comes_in_utf8_however_it_was_written(
    body: bytes, properties: dict[str, Any], headers: dict[str, object]
) -> None:
    """gzip, deflate, charsets and byte order marks, of CloudEvents and of foreign messages alike."""
    values: dict[str, Any] = {"content_type": "application/json", "headers": headers, "message_id": "m", **properties}
    event = read_event(body, **values)
    assert event.data.decode() == TEXT
    assert "utf-16" not in (event.datacontenttype or "")


@pytest.mark.parametrize("media_type", ["application/octet-stream", "application/xml; charset=utf-16", "image/png"])
def test_bytes_stay_as_they_are(media_type: str) -> None:
    """What is neither JSON nor text is nobody's to change; XML names its own charset inside."""
    body = b"\xff\xfe<\x00\xef\xbb\xbf"
    event = read_event(body, message_id="m", content_type=media_type)
    assert (event.data, event.datacontenttype) == (body, media_type)


@pytest.mark.parametrize(
    ("body", "properties", "reason"),
    [
        (b"{}", {"content_encoding": "br"}, "content encoding 'br' is not read"),
        (b"{}", {"content_encoding": "rot13"}, "content encoding 'rot13' is not read"),
        (b"{}", {"content_encoding": "\x00" * 500}, "is not read here"),
        (b"{}", {"content_encoding": "gzip"}, "and its body is not"),
        (packed(b"{}")[:-4], {"content_encoding": "gzip"}, "ends before its gzip stream"),
        (packed(b"{}") + b"secret", {"content_encoding": "gzip"}, "and its body is not"),
        (packed(bytes(65 * 2**20)), {"content_encoding": "gzip"}, "unpacks to more than"),
        (b"{}", {"content_type": "application/json; charset=klingon"}, "charset 'klingon' is not known"),
        (b"{}", {"content_type": "application/json; charset=punycode"}, "charset 'punycode' is not known"),
        (b"\xff", {"content_type": "application/json; charset=utf-16"}, "not valid in the charset utf-16"),
        (b"\x00\xd8\x00\x00", {"content_type": "text/plain; charset=utf-16-le"}, "not valid in the charset"),
    ],
)
def test_a_body_that_cannot_be_read_names_the_cause(body: bytes, properties: dict[str, Any], reason: str) -> None:
    """The encoding or charset is named, and nothing of the content; the body is kept as it came."""
    said = reason_of(body, message_id="m", **properties)
    assert reason in said
    assert "secret" not in said
    assert len(said) < 200


# --- strangers ---


def test_a_stranger_with_message_id_is_an_event() -> None:
    """The native properties stand in for the attributes, and a trace goes on."""
    event = read_event(
        b"hello",
        headers={"traceparent": "00-x", "tenant": "acme", "x-death": [{}], "retries": 3, "Odd-Name": "y"},
        message_id="m-1",
        type="legacy.thing",
        app_id="legacy-app",
        correlation_id="saga-9",
        content_type="text/plain",
        timestamp=NOW,
    )
    assert event == Event(
        id="m-1",
        source="legacy-app",
        type="legacy.thing",
        time=NOW,
        data=b"hello",
        datacontenttype="text/plain",
        correlationid="saga-9",
        traceparent="00-x",
        extensions={"tenant": "acme", "retries": "3"},
    )


def test_a_strangers_type_and_source_have_fallbacks() -> None:
    """The routing key names the type, the configured default the source."""
    event = read_event(message_id="m-1", topic="legacy.topic")
    assert (event.type, event.source) == ("legacy.topic", "urn:elsewhere")


def test_ids_of_unknown_programs_say_nothing_of_each_other() -> None:
    """Without an app id, equal message ids are one message only with equal type and content."""
    ids = [
        read_event(body, message_id="1", type=type_, topic="t").id
        for body, type_ in ((b"a", "t"), (b"a", "t"), (b"b", "t"), (b"a", "u"))
    ]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert all(id_.startswith("1:") for id_ in ids)


def test_a_stranger_without_id_is_rejected_by_default() -> None:
    """Without an id a redelivery cannot be recognised, so nothing is assumed."""
    assert "neither CloudEvents attributes nor a message id" in reason_of(b"x")


def test_a_digest_identifies_a_stranger_by_its_content() -> None:
    """Same content, same id, whatever the broker added; another body, type, sender or time: another id."""
    policy = ForeignMessages(id_from="content")
    base: dict[str, Any] = {"type": "t", "app_id": "a", "timestamp": NOW}
    first = read_event(b"x", policy, **base)
    assert first.id == read_event(b"x", policy, **base, headers={"x-delivery-count": 3}).id
    others = [
        read_event(b"y", policy, **base),
        read_event(b"x", policy, **{**base, "type": "u"}),
        read_event(b"x", policy, **{**base, "app_id": "b"}),
        read_event(b"x", policy, **{**base, "timestamp": NOW.replace(second=1)}),
        read_event(b"x", policy, **{**base, "type": "", "topic": "t"}, correlation_id="c"),
    ]
    assert len({first.id, *(event.id for event in others)}) == 6


# --- anything at all ---

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
header_names = st.one_of(
    st.text(max_size=10),
    st.sampled_from([p + n for p in ("ce-", "cloudEvents_") for n in (*REQUIRED, "subject", "datacontenttype")]),
)
optional_text = st.none() | st.text(max_size=20)


@given(
    st.builds(
        Incoming,
        body=st.binary(max_size=50) | st.just(structured()),
        topic=st.text(max_size=20),
        headers=st.dictionaries(header_names, values, max_size=8),
        content_type=optional_text
        | st.sampled_from(
            ["application/cloudevents+json", "application/cloudevents-batch+json", "text/x; charset=utf-16", "a/JSON"]
        ),
        content_encoding=st.none() | st.sampled_from(["gzip", "deflate", "utf-16", "br, gzip"]) | st.text(max_size=20),
        message_id=optional_text,
        type=optional_text,
        app_id=optional_text,
        correlation_id=optional_text,
        timestamp=st.none() | st.just(NOW),
    ),
    st.sampled_from(["message", "content"]),
)
@settings(deadline=None, max_examples=300)
def test_nothing_a_message_holds_raises(message: Incoming, id_from: Any) -> None:
    """Whatever comes is an event with its required attributes, or is kept with a reason."""
    content = read_message(message, ForeignMessages(id_from=id_from))
    if isinstance(content, Event):
        assert content.id
        assert content.source
        assert content.type
        assert content.time.tzinfo is not None
    else:
        assert content.reason
        assert content.body == message.body
        assert set(content.headers) == set(message.headers)


# --- the CloudEvents SDK as judge ---

PAYLOAD = {"order": 4711, "name": "Käse"}


def test_the_sdk_reads_what_we_write() -> None:
    """An event written by us is a CloudEvent to the SDK's RabbitMQ binding."""
    event = Event(
        id="e-1",
        source="https://orders.example",
        type="orders.order-placed.v1",
        time=NOW,
        data=json.dumps(PAYLOAD).encode(),
        subject="order/4711",
        correlationid="saga-1",
        partitionkey="4711",
        extensions={"tenant": "acme"},
    )
    message = RabbitMQMessage(headers=binary_headers(event), content_type=event.datacontenttype, body=event.data)
    seen = from_binary(message, JSONFormat())
    assert seen.get_data() == PAYLOAD
    assert (seen.get_id(), seen.get_source(), seen.get_type(), seen.get_time()) == (
        "e-1",
        "https://orders.example",
        "orders.order-placed.v1",
        NOW,
    )
    assert seen.get_subject() == "order/4711"
    assert [seen.get_extension(name) for name in ("correlationid", "partitionkey", "tenant")] == [
        "saga-1",
        "4711",
        "acme",
    ]


@pytest.mark.parametrize("mode", [to_binary, to_structured])
def test_we_read_what_the_sdk_writes(mode: Any) -> None:
    """Both of the SDK's modes yield the same event here."""
    sent = CloudEvent(
        attributes={
            "id": "e-1",
            "source": "/s",
            "type": "t.v1",
            "specversion": "1.0",
            "time": NOW,
            "subject": "käse",
            "datacontenttype": "application/json",
            "correlationid": "saga-1",
            "tenant": "acme",
        },
        data=PAYLOAD,
    )
    message = mode(sent, JSONFormat())
    event = read_event(message.body, headers=dict(message.headers), content_type=message.content_type)
    assert json.loads(event.data) == PAYLOAD
    assert (event.id, event.source, event.type, event.time, event.subject) == ("e-1", "/s", "t.v1", NOW, "käse")
    assert (event.datacontenttype, event.correlationid, event.extensions) == (
        "application/json",
        "saga-1",
        {"tenant": "acme"},
    )
