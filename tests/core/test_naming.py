"""`@event` names a class, and only that class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest

from sagapost.core import event, event_type_of
from sagapost.core.errors import ConfigurationError, UnnamedEventError
from sagapost.core.naming import has_event_type

NAME = "payments.payment-taken.v1"


@event(NAME)
class Struct(msgspec.Struct, frozen=True):
    """A msgspec struct."""

    amount: int


@event(NAME)
class Model(pydantic.BaseModel):
    """A pydantic model."""

    amount: int


@event(NAME)
@dataclass(frozen=True, slots=True)
class Data:
    """A slotted dataclass, marked after slots made a new class of it."""

    amount: int


@dataclass(frozen=True, slots=True)
@event(NAME)
class DataMarkedFirst:
    """A slotted dataclass, marked before."""

    amount: int


@event(NAME)
class Dictionary(TypedDict):
    """A TypedDict."""

    amount: int


@pytest.mark.parametrize("cls", [Struct, Model, Data, DataMarkedFirst, Dictionary])
def test_every_kind_of_class_can_be_named(cls: type[Any]) -> None:
    """Structs, models, dataclasses and TypedDicts carry their name and still work as before."""
    assert event_type_of(cls) == NAME
    assert has_event_type(cls)
    made = cls(amount=1)
    assert (made["amount"] if isinstance(made, dict) else made.amount) == 1


def test_the_name_is_no_field() -> None:
    """What is encoded is the user's fields alone."""
    assert msgspec.json.encode(Struct(amount=1)) == b'{"amount":1}'
    assert Model(amount=1).model_dump() == {"amount": 1}
    assert msgspec.json.encode(Data(amount=1)) == b'{"amount":1}'


@pytest.mark.parametrize("make", [lambda: type("Sub", (Struct,), {}), lambda: type("Sub", (Data,), {})])
def test_subclasses_do_not_inherit_the_name(make: Callable[[], type[Any]]) -> None:
    """Two classes under one name could not be told apart by a consumer: the subclass is unnamed."""
    cls = make()
    assert not has_event_type(cls)
    with pytest.raises(UnnamedEventError) as caught:
        event_type_of(cls)
    assert caught.value.cls is cls
    assert "@event(" in str(caught.value)


@pytest.mark.parametrize("cls", [dict, bytes, int])
def test_builtin_types_have_no_name(cls: type[Any]) -> None:
    """A dict or bytes needs `type=` at publish, and the error says so."""
    with pytest.raises(UnnamedEventError, match="type="):
        event_type_of(cls)


@pytest.mark.parametrize("name", ["", " ", "a b", "a\tb", "a\n", "x" * 256, "é" * 128])
def test_a_name_no_broker_can_carry_is_refused(name: str) -> None:
    """Empty, with white space, or longer than an AMQP short string: refused where the class is written."""
    with pytest.raises(ConfigurationError, match="event type"):
        event(name)


def test_the_longest_name_fits() -> None:
    """255 bytes are allowed."""
    assert event_type_of(event("n" * 255)(type("Long", (), {}))) == "n" * 255
