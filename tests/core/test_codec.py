"""Between a user's event object and bytes: every supported kind survives, every bad one is named."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagapost.core.codec import JSON, OCTETS, decode_data, encode_data
from sagapost.core.errors import DecodingError, EncodingError

TYPE = "orders.order-placed.v1"


class Line(msgspec.Struct, frozen=True):
    """A nested struct."""

    sku: str
    quantity: int


class AsStruct(msgspec.Struct, frozen=True):
    """An event as a msgspec struct."""

    order_id: UUID
    placed_at: datetime
    total: Decimal
    lines: list[Line]
    note: str | None = None


class LineModel(pydantic.BaseModel):
    """A nested model."""

    sku: str
    quantity: int


class AsModel(pydantic.BaseModel):
    """An event as a pydantic model."""

    order_id: UUID
    placed_at: datetime
    total: Decimal
    lines: list[LineModel]
    note: str | None = None


class RateModel(pydantic.BaseModel):
    """A model with a float."""

    rate: float


@dataclass(frozen=True)
class AsDataclass:
    """An event as a dataclass."""

    order_id: UUID
    placed_at: datetime
    total: Decimal
    lines: list[Line] = field(default_factory=list[Line])
    note: str | None = None


class AsTypedDict(TypedDict):
    """An event as a TypedDict: a plain dict at run time."""

    order_id: str
    quantity: int
    tags: list[str]


# What JSON text can hold: no lone surrogates.
texts = st.text(st.characters(codec="utf-8"))
moments = st.datetimes(
    min_value=datetime(1970, 1, 1),
    max_value=datetime(2200, 1, 1),
    timezones=st.just(UTC),
)
amounts = st.decimals(min_value=0, max_value=10**9, places=2)
lines = st.lists(st.builds(Line, sku=texts, quantity=st.integers(-(2**53), 2**53)))


def there_and_back(payload: object, cls: type[Any]) -> Any:
    """Encode and decode, checking the media type."""
    data, media_type = encode_data(payload, event_type=TYPE)
    assert media_type == JSON
    return decode_data(data, cls, event_id="e1", event_type=TYPE)


@given(st.builds(AsStruct, order_id=st.uuids(), placed_at=moments, total=amounts, lines=lines, note=st.none() | texts))
def test_structs_round_trip(payload: AsStruct) -> None:
    """A msgspec struct with ids, times, decimals and nested structs comes back equal."""
    assert there_and_back(payload, AsStruct) == payload


@given(
    st.builds(AsDataclass, order_id=st.uuids(), placed_at=moments, total=amounts, lines=lines, note=st.none() | texts)
)
def test_dataclasses_round_trip(payload: AsDataclass) -> None:
    """A dataclass comes back equal."""
    assert there_and_back(payload, AsDataclass) == payload


@given(order_id=st.uuids(), placed_at=moments, total=amounts, note=st.none() | texts, sku=texts)
def test_pydantic_models_round_trip(
    order_id: UUID, placed_at: datetime, total: Decimal, note: str | None, sku: str
) -> None:
    """A pydantic model comes back equal, by pydantic's own methods."""
    payload = AsModel(
        order_id=order_id, placed_at=placed_at, total=total, note=note, lines=[LineModel(sku=sku, quantity=1)]
    )
    assert there_and_back(payload, AsModel) == payload


@given(order_id=texts, quantity=st.integers(-(2**53), 2**53), tags=st.lists(texts))
def test_typed_dicts_round_trip(order_id: str, quantity: int, tags: list[str]) -> None:
    """A TypedDict comes back as an equal dict."""
    payload: AsTypedDict = {"order_id": order_id, "quantity": quantity, "tags": tags}
    assert there_and_back(payload, AsTypedDict) == payload


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**100), 2**100)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(texts, json_values, max_size=6))
def test_dicts_round_trip(payload: dict[str, Any]) -> None:
    """Any dict of JSON values comes back equal."""
    assert there_and_back(payload, dict) == payload


@given(st.binary())
def test_bytes_pass_through_untouched(payload: bytes) -> None:
    """Bytes are neither encoded nor decoded, whatever they hold, and say so in the media type."""
    for form in (payload, bytearray(payload), memoryview(payload)):
        assert encode_data(form, event_type=TYPE) == (payload, OCTETS)
    assert decode_data(payload, bytes, event_id="e1", event_type=TYPE) == payload


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_json_lacks_become_null(number: float) -> None:
    """NaN and the infinities have no JSON form; a consumer sees null, whichever class encoded them."""
    assert encode_data({"rate": number}, event_type=TYPE)[0] == b'{"rate":null}'
    assert encode_data(RateModel(rate=number), event_type=TYPE)[0] == b'{"rate":null}'


def test_a_payload_of_one_kind_can_be_read_as_another() -> None:
    """Producer and consumer need not share classes, only the JSON."""
    data, _ = encode_data(
        AsStruct(order_id=UUID(int=7), placed_at=datetime(2026, 1, 1, tzinfo=UTC), total=Decimal("9.99"), lines=[]),
        event_type=TYPE,
    )
    model = decode_data(data, AsModel, event_id="e1", event_type=TYPE)
    assert (model.order_id, model.total) == (UUID(int=7), Decimal("9.99"))


def test_fields_a_consumer_does_not_know_are_ignored() -> None:
    """A producer may add fields without breaking consumers of the same version."""
    line = decode_data(b'{"sku":"A","quantity":1,"colour":"red"}', Line, event_id="e1", event_type=TYPE)
    assert line == Line(sku="A", quantity=1)


class WithObject(pydantic.BaseModel):
    """A model that holds what JSON cannot."""

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    thing: object


def _endless() -> dict[str, Any]:
    payload: dict[str, Any] = {}
    payload["self"] = payload
    return payload


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param({"thing": object()}, id="an object in a dict"),
        pytest.param(WithObject(thing=object()), id="an object in a model"),
        pytest.param(object(), id="an unknown class"),
        pytest.param({"text": "\ud800"}, id="a lone surrogate"),
        pytest.param(_endless(), id="a dict inside itself"),
    ],
)
def test_what_json_cannot_hold_is_refused(payload: object) -> None:
    """One `EncodingError` naming the event type and the class, whatever the encoder raised."""
    with pytest.raises(EncodingError) as caught:
        encode_data(payload, event_type=TYPE)
    assert caught.value.event_type == TYPE
    assert caught.value.cls is type(payload)
    assert type(payload).__qualname__ in str(caught.value)


@pytest.mark.parametrize("cls", [Line, LineModel], ids=["struct", "model"])
@pytest.mark.parametrize(
    ("data", "named"),
    [
        pytest.param(b'{"sku":"A","quantity":"4929-SECRET"}', "quantity", id="wrong type"),
        pytest.param(b'{"sku":"4929-SECRET"}', "quantity", id="missing field"),
        pytest.param(b'["4929-SECRET"]', "object", id="not an object"),
        pytest.param(b'{"sku":"4929-SECRET', "JSON", id="truncated"),
        pytest.param(b"\xff\xfe4929-SECRET", "JSON", id="not UTF-8"),
        pytest.param(b"", "JSON", id="empty"),
    ],
)
def test_unreadable_data_is_named_without_being_shown(cls: type[Any], data: bytes, named: str) -> None:
    """A `DecodingError` names event, class and field; the payload shows neither in it nor in its traceback."""
    with pytest.raises(DecodingError) as caught:
        decode_data(data, cls, event_id="0197-e1", event_type=TYPE)
    error = caught.value
    assert (error.event_id, error.event_type, error.cls) == ("0197-e1", TYPE, cls)
    assert named.lower() in error.reason.lower() or named == "JSON"
    printed = "".join(traceback.format_exception(error))
    assert "0197-e1" in printed
    assert "SECRET" not in printed


def test_every_bad_field_of_a_model_is_named() -> None:
    """Whoever repairs a message sees all of its faults at once."""
    with pytest.raises(DecodingError) as caught:
        decode_data(b'{"quantity":"x"}', LineModel, event_id="e1", event_type=TYPE)
    assert "$.sku" in caught.value.reason
    assert "$.quantity" in caught.value.reason
