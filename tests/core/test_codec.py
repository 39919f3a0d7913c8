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
    """NaN and the infinities have no JSON form: null in a dict, refused where the class takes no null."""
    assert encode_data({"rate": number}, event_type=TYPE)[0] == b'{"rate":null}'
    for payload in (RateModel(rate=number), RateStruct(number)):
        with pytest.raises(EncodingError, match=r"could not read it back: .*\$\.rate"):
            encode_data(payload, event_type=TYPE)


# --- what is written can be read ---


class RateStruct(msgspec.Struct):
    """A struct with a float."""

    rate: float


class Aliased(pydantic.BaseModel):
    """A model whose names on the wire are others."""

    order_id: str = pydantic.Field(alias="orderId")
    lines: list[LineModel] = []
    tags: set[str] = set()


class Computed(pydantic.BaseModel):
    """A model with a value that follows from others."""

    quantity: int

    @pydantic.computed_field
    def double(self) -> int:
        """Twice the quantity."""
        return self.quantity * 2


class Strict(Computed):
    """One that takes no name it does not know."""

    model_config = pydantic.ConfigDict(extra="forbid")


class Hidden(pydantic.BaseModel):
    """A model that leaves something out."""

    shown: str
    card: pydantic.SecretStr = pydantic.Field(pydantic.SecretStr("none"), exclude=True)
    _seen: int = pydantic.PrivateAttr(0)

    def see(self) -> None:
        """Change what is private."""
        self._seen += 1


class Card(pydantic.BaseModel):
    """A model with a secret."""

    number: pydantic.SecretStr


class Wallet(pydantic.BaseModel):
    """A model with secrets further inside."""

    cards: list[Card]


class Said(pydantic.BaseModel):
    """A model that says how its secret is written."""

    number: pydantic.SecretStr

    @pydantic.field_serializer("number", when_used="json")
    def _written(self, number: pydantic.SecretStr) -> str:
        return number.get_secret_value()


class OnlyRead(pydantic.BaseModel):
    """A model that is written by one name and read by another."""

    order_id: str = pydantic.Field(validation_alias="orderId")


class OnlyWritten(pydantic.BaseModel):
    """The other way round."""

    order_id: str = pydantic.Field(serialization_alias="orderId")


class LeftOut(pydantic.BaseModel):
    """A model that leaves out what it needs."""

    needed: str = pydantic.Field(exclude=True)


class Louder(pydantic.BaseModel):
    """A model whose validator changes its own result again."""

    text: str

    @pydantic.field_validator("text")
    @classmethod
    def _louder(cls, text: str) -> str:
        return f"{text}!"


class Anything(pydantic.BaseModel):
    """A model that takes what JSON has no form for."""

    value: Any


@given(order_id=texts, sku=texts, tags=st.sets(texts))
def test_a_model_is_written_by_its_aliases(order_id: str, sku: str, tags: set[str]) -> None:
    """Its own class reads it back, and so does everybody who knows the names on the wire."""
    payload = Aliased(orderId=order_id, lines=[LineModel(sku=sku, quantity=1)], tags=tags)
    assert there_and_back(payload, Aliased) == payload
    assert msgspec.json.decode(encode_data(payload, event_type=TYPE)[0])["orderId"] == order_id


def test_computed_fields_are_written_where_their_class_takes_them_back() -> None:
    """A consumer sees them; a class that forbids further names is written without."""
    assert encode_data(Computed(quantity=2), event_type=TYPE)[0] == b'{"quantity":2,"double":4}'
    for _ in range(2):
        assert encode_data(Strict(quantity=2), event_type=TYPE)[0] == b'{"quantity":2}'


@given(shown=texts, card=texts)
def test_what_a_class_declares_to_be_left_out_is_left_out(shown: str, card: str) -> None:
    """Excluded fields and private attributes are no part of the event; nothing of them leaves."""
    payload = Hidden(shown=shown, card=pydantic.SecretStr(card))
    payload.see()
    assert msgspec.json.decode(encode_data(payload, event_type=TYPE)[0]) == {"shown": shown}


def test_a_secret_is_written_only_as_its_class_says() -> None:
    """With a serializer it is published; masked it would reach nobody."""
    payload = Said(number=pydantic.SecretStr("4929"))
    assert there_and_back(payload, Said) == payload


def test_what_json_has_no_form_for_is_a_text_where_anything_goes() -> None:
    """Time, id or decimal in a field of type Any is no fault of the event."""
    for value in (datetime(2026, 1, 1, tzinfo=UTC), UUID(int=1), Decimal("0.10")):
        encode_data(Anything(value=value), event_type=TYPE)


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        pytest.param(Card(number=pydantic.SecretStr("4929-SECRET")), "`$.number`", id="secret"),
        pytest.param(
            Wallet(cards=[Card(number=pydantic.SecretStr("4929-SECRET"))]), "`$.cards[0].number`", id="inside"
        ),
        pytest.param(OnlyRead.model_validate({"orderId": "4929-SECRET"}), "`$.orderId`", id="validation alias"),
        pytest.param(OnlyWritten(order_id="4929-SECRET"), "`$.order_id`", id="serialization alias"),
        pytest.param(LeftOut(needed="4929-SECRET"), "`$.needed`", id="excluded and needed"),
        pytest.param(Louder(text="4929-SECRET"), "`$.text`", id="validator"),
        pytest.param(LineModel.model_construct(sku="a", quantity="4929-SECRET"), "`$.quantity`", id="constructed"),
        pytest.param(Line("a", "4929-SECRET"), "`$.quantity`", id="struct of another type"),  # type: ignore[arg-type]  # that is the point
    ],
)
def test_what_could_not_be_read_back_is_refused_when_it_is_published(payload: object, named: str) -> None:
    """The error names the field and shows no value, neither in its text nor in its traceback."""
    with pytest.raises(EncodingError) as caught:
        encode_data(payload, event_type=TYPE)
    assert named in str(caught.value)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_a_class_made_by_attrs_comes_back() -> None:
    """Equal, and refused if a field holds what its type does not take."""
    attrs = pytest.importorskip("attrs")
    cls = attrs.make_class("Placed", {"order": attrs.field(type=str)})
    assert there_and_back(cls("1"), cls) == cls("1")
    with pytest.raises(EncodingError, match=r"\$\.order"):
        encode_data(cls(1), event_type=TYPE)


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
