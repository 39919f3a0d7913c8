"""Readers of other libraries' formats, on bytes written from what their documentation says; and any bytes at all."""

from __future__ import annotations

import asyncio
import json
import os
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from sagapost.adapters.cloudevents import read_message
from sagapost.adapters.foreign import (
    CapReader,
    DebeziumReader,
    MassTransitReader,
    NServiceBusReader,
    PlainJsonReader,
    WatermillReader,
)
from sagapost.core.broker import Malformed
from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError
from sagapost.core.foreign import ForeignMessageError, ForeignMessages, ForeignReader, Incoming, Reading
from sagapost.core.identity import dedup_key

LONG = os.environ.get("SAGAPOST_TEST_CHAOS") == "long"
INPUTS = 1_000_000 if LONG else 20_000
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
EVERY: tuple[ForeignReader, ...] = (
    MassTransitReader(),
    NServiceBusReader(),
    CapReader(),
    WatermillReader(),
    DebeziumReader(),
    PlainJsonReader(type="type", source="source", time="time", key="key", correlation="saga"),
)


def read(policy: ForeignMessages, body: bytes = b"{}", **properties: Any) -> Event | Malformed:
    """Read a message as an adapter does."""
    values: dict[str, Any] = {"topic": "a.topic", "headers": {}, "received_at": NOON, **properties}
    return read_message(Incoming(body=body, **values), policy)


def event_of(reader: ForeignReader, body: bytes = b"{}", **properties: Any) -> Event:
    """Read a message that must be an event."""
    event = read(ForeignMessages(reader=reader), body, **properties)
    assert isinstance(event, Event), event
    return event


def reason_of(reader: ForeignReader | ForeignMessages, body: bytes = b"{}", **properties: Any) -> str:
    """Read a message that must not be an event; return why."""
    policy = reader if isinstance(reader, ForeignMessages) else ForeignMessages(reader=reader)
    malformed = read(policy, body, **properties)
    assert isinstance(malformed, Malformed), malformed
    assert malformed.body == body
    return malformed.reason


# --- MassTransit ---

MASSTRANSIT = "application/vnd.masstransit+json"
WRAPPED: dict[str, Any] = {
    "messageId": "181c0000-6393-3630-36a4-08daf4e7c6da",
    "requestId": None,
    "correlationId": None,
    "conversationId": "181c0000-6393-3630-9d42-08daf4e7c6e0",
    "sourceAddress": "rabbitmq://localhost/shop",
    "destinationAddress": "rabbitmq://localhost/Shop.Contracts:OrderPlaced",
    "messageType": ["urn:message:Shop.Contracts:OrderPlaced", "urn:message:Shop.Contracts:IEvent"],
    "message": {"orderId": "o-1"},
    "sentTime": "2026-11-23T11:59:00.1234567Z",
    "headers": {},
    "host": {"machineName": "h"},
}


def wrapped(**changes: Any) -> bytes:
    """Return the bytes of an envelope."""
    return json.dumps({**WRAPPED, **changes}).encode()


def test_masstransit() -> None:
    """All that handlers take is in the envelope; the message is the producer's bytes."""
    event = event_of(MassTransitReader(), wrapped(), content_type=MASSTRANSIT)
    assert (event.id, event.type) == (WRAPPED["messageId"], "Shop.Contracts:OrderPlaced")
    assert (event.source, event.correlationid) == ("rabbitmq://localhost/shop", WRAPPED["conversationId"])
    assert (event.data, event.datacontenttype) == (b'{"orderId": "o-1"}', "application/json")
    assert event.time == datetime(2026, 11, 23, 11, 59, 0, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "its MassTransit envelope is not valid JSON"),
        (b"[]", "its MassTransit envelope has another shape"),
        (wrapped(messageType=None), "names no messageType"),
        (wrapped(messageType=["urn:message:"]), "names no messageType"),
        (wrapped(messageType=[5]), "$.messageType[0]"),
        (b'{"messageType":["urn:message:A:B"]}', "has no message"),
        (wrapped(sentTime="yesterday"), "its sentTime is no time in ISO 8601"),
        (wrapped(messageId={}), "$.messageId"),
    ],
)
def test_masstransit_that_cannot_be_read(body: bytes, reason: str) -> None:
    """The part is named, and no content."""
    told = reason_of(MassTransitReader(), body, content_type=MASSTRANSIT)
    assert reason in told
    assert "o-1" not in told


# --- NServiceBus ---

NSB = {
    "NServiceBus.MessageId": "26e2a3f1-3f0e-4a5c-8a5e-a4d600aa1b2c",
    "NServiceBus.EnclosedMessageTypes": "Shop.OrderPlaced, Shop.Contracts, Version=1.0.0.0, Culture=neutral, "
    "PublicKeyToken=null;Shop.IEvent, Shop.Contracts, Version=1.0.0.0",
    "NServiceBus.TimeSent": "2026-11-23 11:59:00:123456 Z",
    "NServiceBus.ConversationId": "c-1",
    "NServiceBus.OriginatingEndpoint": "Sales",
    "NServiceBus.ContentType": "application/json",
}


def test_nservicebus() -> None:
    """All of it is in headers; the time has a form of its own."""
    event = event_of(NServiceBusReader(), b'{"a":1}', headers=NSB)
    assert (event.id, event.type, event.source) == (NSB["NServiceBus.MessageId"], "Shop.OrderPlaced", "Sales")
    assert event.time == datetime(2026, 11, 23, 11, 59, 0, 123456, tzinfo=UTC)
    assert (event.correlationid, event.datacontenttype, event.data) == ("c-1", "application/json", b'{"a":1}')


def test_nservicebus_of_a_generic_type_and_a_wrong_time() -> None:
    """Commas in brackets are the type's own; a time in ISO 8601 is not what NServiceBus writes."""
    generic = "Shop.Changed`1[[Shop.Order, Shop, Version=1.0.0.0]], Shop, Version=1.0.0.0"
    event = event_of(NServiceBusReader(), headers={**NSB, "NServiceBus.EnclosedMessageTypes": generic})
    assert event.type == "Shop.Changed`1[[Shop.Order, Shop, Version=1.0.0.0]]"
    told = reason_of(NServiceBusReader(), headers={**NSB, "NServiceBus.TimeSent": "2026-11-23T11:59:00Z"})
    assert "its header 'NServiceBus.TimeSent' is not of the form yyyy-MM-dd HH:mm:ss:ffffff Z" in told


# --- CAP, Watermill ---


def test_cap() -> None:
    """A sent time in the language of the host is not guessed at."""
    headers: dict[str, object] = {
        "cap-msg-id": "1712345678901234567",
        "cap-msg-name": "orders.placed",
        "cap-corr-id": "c-1",
        "cap-senttime": "2026-11-23 11:59:00 +00:00",
    }
    policy = ForeignMessages(reader=CapReader(), source_from=lambda _: "shop")
    event = read(policy, headers=headers)
    assert isinstance(event, Event)
    assert (event.id, event.type, event.source) == ("1712345678901234567", "orders.placed", "shop")
    assert (event.correlationid, event.time) == ("c-1", NOON - timedelta(minutes=1))
    ambiguous = event_of(CapReader(), headers={**headers, "cap-senttime": "03/04/2026 11:59:00 +00:00"})
    assert ambiguous.time == NOON


def test_watermill() -> None:
    """The id is in the header that its marshaler writes, or the one it was told to write."""
    event = event_of(WatermillReader(), headers={"_watermill_message_uuid": "u-1", "name": "placed"}, app_id="shop")
    assert (event.id, event.type, event.source) == ("u-1", "placed", "shop")
    other = event_of(WatermillReader(id_header="uuid"), headers={"uuid": "u-2"}, app_id="shop")
    assert (other.id, other.type) == ("u-2", "a.topic")


# --- Debezium ---

ROW = {"id": "4d47e190-0402-4048-bc2c-89dd54343cdc", "eventType": "OrderPlaced", "aggregateId": "o-1"}


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (b'{"a":1}', b'{"a":1}'),
        (b'"{\\"a\\":1}"', b'{"a":1}'),
        (b'{"schema":{"type":"string"},"payload":"{\\"a\\":1}"}', b'{"a":1}'),
        (b'{"schema":null,"payload":{"a":1}}', b'{"a":1}'),
        (b'{"schema":1,"payload":2,"more":3}', b'{"schema":1,"payload":2,"more":3}'),
        (b'"words"', b'"words"'),
        (b"", b""),
    ],
)
def test_debezium(body: bytes, data: bytes) -> None:
    """The payload comes out of its wrappers, and nothing that only looks like one."""
    event = event_of(DebeziumReader(), body, headers=ROW, app_id="shop")
    assert (event.id, event.type, event.partitionkey) == (ROW["id"], "OrderPlaced", "o-1")
    assert event.data == data


def test_debezium_headers_of_a_json_converter() -> None:
    """In quotes, or wrapped with a schema, it is the same id."""
    for value in (f'"{ROW["id"]}"', f'{{"schema":{{}},"payload":"{ROW["id"]}"}}'):
        assert event_of(DebeziumReader(), headers={**ROW, "id": value}, app_id="shop").id == ROW["id"]
    assert "its payload is not valid JSON" in reason_of(DebeziumReader(), b"{", headers=ROW)


# --- plain JSON ---

PLAIN = PlainJsonReader(type="kind", source="from", time="at", key="order", correlation="saga", data="data")


def test_plain_json() -> None:
    """Every part is in the member that the reader was told."""
    body = b'{"id":7,"kind":"placed","from":"erp","at":"2026-11-23T12:00:00","order":"o-1","saga":"s","data":[1]}'
    event = event_of(PLAIN, body)
    assert (event.id, event.type, event.source, event.time) == ("7", "placed", "erp", NOON)
    assert (event.partitionkey, event.correlationid, event.data) == ("o-1", "s", b"[1]")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"secret", "its body is not valid JSON"),
        (b"[1]", "its body has another shape"),
        (b'{"id":1}', "its body has no member 'data'"),
        (b'{"id":["secret"],"data":1}', "its member 'id' is neither text nor a whole number"),
        (b'{"id":"1","at":"secret","data":1}', "its member 'at' is no time"),
        (b'{"data":1}', "nor a message id"),
    ],
)
def test_plain_json_that_cannot_be_read(body: bytes, reason: str) -> None:
    """The member is named, and no content."""
    told = reason_of(PLAIN, body)
    assert reason in told
    assert "secret" not in told


# --- the policy ---


def test_what_no_reader_knows_is_read_by_its_properties() -> None:
    """The first reader that knows a message reads it."""
    policy = ForeignMessages(reader=(MassTransitReader(), CapReader()))
    event = read(policy, b"words", content_type="text/plain", message_id="1", app_id="erp")
    assert isinstance(event, Event)
    assert (event.id, event.source, event.data) == ("1", "erp", b"words")


@pytest.mark.parametrize("id_", ["17", "01a20606-a8d4-70d1-a60c-ebaefa04737a"])
def test_pitfall_46_one_id_under_two_types_or_two_sources_is_two_messages(id_: str) -> None:
    """Whatever form the id has; and a redelivery is the same message, whatever the broker has added."""
    policy = ForeignMessages(reader=WatermillReader())

    def key(type_: str, source: str | None, body: bytes = b"{}", broker: str | None = None) -> bytes:
        headers = {"_watermill_message_uuid": id_, "name": type_} | ({broker: "1"} if broker else {})
        event = read(policy, body, headers=headers, app_id=source)
        assert isinstance(event, Event)
        return dedup_key(event)

    named = [key("placed", "a"), key("shipped", "a"), key("placed", "b")]
    keys = [*named, key("placed", None), key("placed", None, b"1")]
    assert len(set(keys)) == 5
    again = [key("placed", "a", broker="x-delivery-count"), key("placed", None, broker="x-death")]
    assert again == [keys[0], keys[3]]


def test_functions_of_the_identity() -> None:
    """They are asked first; None is as without them."""
    policy = ForeignMessages(
        id_from=lambda message: str(message.headers["number"]) if "number" in message.headers else None,
        source_from=lambda message: message.topic.partition(".")[0],
    )
    named = read(policy, headers={"number": 5}, message_id="m")
    other = read(policy, message_id="m")
    assert isinstance(named, Event)
    assert isinstance(other, Event)
    assert (named.id, named.source, other.id) == ("5", "a", "m")


def test_a_policy_that_is_none() -> None:
    """It is said where the service is declared, not at the first message."""
    wrong: list[dict[str, Any]] = [
        {"id_from": "digest"},
        {"source_from": ""},
        {"reader": 5},
        {"reader": (CapReader(), None)},
    ]
    for options in wrong:
        with pytest.raises(ConfigurationError, match="ForeignMessages"):
            ForeignMessages(**options)


class _Wrong:
    """No text."""


async def _later(message: Incoming) -> Reading:
    return Reading(data=message.body)


def _returns(value: object) -> Any:
    def reader(message: Incoming) -> object:
        return value

    return reader


def _raises(error: BaseException) -> Any:
    def reader(message: Incoming) -> Reading:
        raise error

    return reader


FAR = datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))


@pytest.mark.parametrize(
    ("reader", "reason"),
    [
        (_raises(ValueError("secret")), "the reader reader raised ValueError"),
        (_raises(SystemExit(1)), "raised SystemExit"),
        (_raises(KeyboardInterrupt()), "raised KeyboardInterrupt"),
        (_raises(asyncio.CancelledError()), "raised CancelledError"),
        (_raises(ForeignMessageError("it is from another year")), "it is from another year"),
        (_later, "the reader _later is async def"),
        (_returns(5), "returned int, which is no Reading"),
        (_returns(Reading(data="text")), "data of type str"),  # type: ignore[arg-type]  # pyright: ignore
        (_returns(Reading(data=b"", id=5)), "'id' of type int"),  # type: ignore[arg-type]  # pyright: ignore
        (_returns(Reading(data=b"", key=_Wrong())), "'key' of type _Wrong"),  # type: ignore[arg-type]  # pyright: ignore
        (_returns(Reading(data=b"", time="now")), "'time' of type str"),  # type: ignore[arg-type]  # pyright: ignore
        (_returns(Reading(data=b"", time=NOON.replace(tzinfo=None))), "its time has no UTC offset"),
        (_returns(Reading(data=b"", time=FAR)), "raised OverflowError"),
    ],
)
def test_pitfall_46_a_reader_that_fails_is_the_reason(reader: Any, reason: str) -> None:
    """Whatever it raises or returns: the message is kept with the reason, and without what was raised with it."""
    told = reason_of(reader, message_id="1")
    assert reason in told
    assert "secret" not in told


def test_a_function_that_fails_is_the_reason() -> None:
    """Those that choose id and source are guarded as readers are."""
    assert "id_from=" in reason_of(ForeignMessages(id_from=_raises(SystemExit())))
    assert "source_from= reader returned int" in reason_of(ForeignMessages(source_from=_returns(5)))


def test_a_reader_changes_nothing_but_its_own_copy() -> None:
    """What is parked is what came."""

    def clears(message: Incoming) -> Reading | None:
        message.headers.clear()  # type: ignore[attr-defined]  # pyright: ignore
        message.body = b""
        raise ForeignMessageError("it is empty")

    malformed = read(ForeignMessages(reader=clears), b"x", headers={"a": "b"})
    assert isinstance(malformed, Malformed)
    assert (malformed.body, malformed.headers) == (b"x", {"a": "b"})


# --- anything at all ---

NAMES = (*NSB, *ROW, "cap-msg-id", "cap-msg-name", "cap-senttime", "_watermill_message_uuid", "name")
SEEDS = (
    wrapped(),
    b'{"schema":{},"payload":"{}"}',
    b'{"id":7,"type":"t","time":"2026-11-23T12:00:00Z"}',
    b'"{}"',
    b"[" * 5_000,
    b"\xff\xfe",
    b"",
)
ODD: tuple[object, ...] = ('"', '{"payload":1}', "\ud800", "", 5, 2.5, None, b"\xff", [])
VALUES: tuple[object, ...] = (*NSB.values(), *ROW.values(), *ODD)
TYPES = (MASSTRANSIT, "application/json", "text/plain", None, "application/cloudevents+json", "a/json; charset=utf-7")


def _checked(message: Incoming) -> bool:
    """Judge what is made of a message; return whether it is an event."""
    policy = ForeignMessages(reader=EVERY, id_from="content")
    content = read_message(message, policy)
    if isinstance(content, Malformed):
        assert content.reason
        assert " raised " not in content.reason
        assert content.body == message.body
        return False
    assert content.id
    assert content.source
    assert content.type
    assert content.time.tzinfo is not None
    assert content == read_message(message, policy)
    return True


def test_twenty_thousand_damaged_messages() -> None:
    """Messages of every format with bytes and headers exchanged: an event with an identity, or kept with a reason."""
    dice = random.Random(46)
    events = 0
    for _ in range(INPUTS):
        body = bytearray(dice.choice(SEEDS))
        for _ in range(dice.choice((0, 0, 1, 3)) if body else 0):
            body[dice.randrange(len(body))] = dice.choice((dice.randrange(256), 34, 44, 123, 125))
        headers = {dice.choice(NAMES): dice.choice(VALUES) for _ in range(dice.randrange(4))}
        message = Incoming(
            body=bytes(body), topic="t", headers=headers, content_type=dice.choice(TYPES), received_at=NOON
        )
        events += _checked(message)
    assert INPUTS // 20 < events < INPUTS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text() | st.sampled_from(list(WRAPPED)), inner),
    max_leaves=6,
)


@seed(46)
@given(
    st.builds(
        Incoming,
        body=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()),
        topic=st.text(max_size=5),
        headers=st.dictionaries(st.sampled_from(NAMES), st.text(max_size=9) | st.sampled_from(VALUES), max_size=4),
        content_type=st.sampled_from(TYPES),
        message_id=st.none() | st.text(max_size=5),
        app_id=st.none() | st.text(max_size=5),
        received_at=st.just(NOON),
    )
)
@settings(deadline=None, max_examples=20_000 if LONG else 150, database=None)
def test_no_message_makes_a_reader_raise(message: Incoming) -> None:
    """Whatever comes is an event with an identity that is the same each time, or is kept with a reason."""
    _checked(message)
