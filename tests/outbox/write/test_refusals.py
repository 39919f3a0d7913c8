"""What publish refuses: one clear error that says what to do, nothing written, and the session as it was."""

from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any, cast
from uuid import uuid4

import msgspec
import pydantic
import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sagapost.core import event
from sagapost.core.errors import (
    EncodingError,
    EventTooLargeError,
    InvalidEventError,
    PublishError,
    SchemaError,
    UnnamedEventError,
)
from sagapost.outbox import Outbox, PublishOptions
from tests.outbox.write.service import KINDS, RAW, Database, Order, outbox, placed, publish, tables, unit_of


class Unnamed(msgspec.Struct):
    n: int = 1


@event("orders.named.v1")
class Named(msgspec.Struct):
    n: int = 1


class Inherits(Named):
    """A class of its own, without a name of its own."""


@event("orders.unencodable.v1")
class Holder(msgspec.Struct):
    value: Any


@event("orders.unencodable-model.v1")
class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    value: Any


@pytest.fixture
def session(on_sqlite: Database) -> Generator[Session, None, None]:
    """A session with a change in it, which must survive the refusal and commit alone."""
    with Session(on_sqlite.engine) as session:
        session.add(Order(id=1))
        yield session
        session.commit()
    assert on_sqlite.orders() == [1]
    assert on_sqlite.events() == []
    assert on_sqlite.scheduled() == []


# --- the class ---


@pytest.mark.parametrize(
    ("payload", "name"),
    [(Unnamed(), "Unnamed"), (Inherits(), "Inherits"), ({"a": 1}, "builtins.dict"), (b"x", "builtins.bytes")],
)
def test_an_event_without_a_type(session: Session, payload: object, name: str) -> None:
    """The error names the class and both remedies; a name is not inherited."""
    with pytest.raises(UnnamedEventError, match=name) as caught:
        outbox.publish(session, payload)
    assert '@event("' in str(caught.value)
    assert "type=" in str(caught.value)


def test_a_class_in_place_of_an_instance(session: Session) -> None:
    """`publish(session, OrderPlaced)` is a typing slip."""
    with pytest.raises(UnnamedEventError, match=r"builtins\.type|StructMeta"):
        outbox.publish(session, Named)
    with pytest.raises(EncodingError):
        outbox.publish(session, Named, type="t")


# --- the payload ---


@pytest.mark.parametrize(
    "payload",
    [Holder(object()), Holder(1j), Model(value=object()), Holder(2**70 * 1j)],
    ids=["object", "complex", "pydantic", "large"],
)
def test_an_event_that_cannot_be_serialised(session: Session, payload: Any) -> None:
    """The error names the type and the class, and says what can be."""
    with pytest.raises(EncodingError, match=r"orders\.unencodable.*cannot be serialised") as caught:
        outbox.publish(session, payload)
    assert caught.value.cls is type(payload)


def test_an_event_that_holds_itself(session: Session) -> None:
    """A cycle is no JSON."""
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    with pytest.raises(EncodingError):
        outbox.publish(session, cycle, type="t")


def test_an_event_over_the_limit(session: Session) -> None:
    """The error tells size and limit; the limit itself is fine."""
    small = Outbox(source="s", tables=tables, max_bytes=10)
    with pytest.raises(EventTooLargeError, match=r"11 bytes.*limit is 10.*publish a reference") as caught:
        small.publish(session, b"x" * 11, type="t")
    assert (caught.value.size, caught.value.limit) == (11, 10)


def test_an_event_of_just_the_limit(on_sqlite: Database) -> None:
    """By default one mebibyte, counted in encoded bytes."""
    with Session(on_sqlite.engine) as session:
        assert len(outbox.publish(session, b"x" * 1_048_576, type="t").data) == 1_048_576
        with pytest.raises(EventTooLargeError, match=r"1,048,577 bytes"):
            outbox.publish(session, b"x" * 1_048_577, type="t")


# --- attributes ---

LONG = "x" * 256


@pytest.mark.parametrize(
    ("options", "attribute", "reason"),
    [
        ({"key": LONG}, "partitionkey", "1 to 255 characters, this one 256"),
        ({"key": ""}, "partitionkey", "must not be empty"),
        ({"key": 7}, "partitionkey", r"must be a string: use str"),
        ({"key": uuid4()}, "partitionkey", r"must be a string: use str"),
        ({"key": "a\x00b"}, "partitionkey", "U\\+0000"),
        ({"key": "\ud800"}, "partitionkey", "U\\+D800"),
        ({"type": ""}, "type", "must not be empty"),
        ({"type": LONG}, "type", "255 bytes"),
        ({"type": "ü" * 128}, "type", "255 bytes"),
        ({"type": Named}, "type", "must be a string"),
        ({"subject": ""}, "subject", "must not be empty"),
        ({"subject": 5}, "subject", "must be a string"),
        ({"topic": ""}, "topic", "1 to 255 bytes"),
        ({"topic": LONG}, "topic", "1 to 255 bytes"),
        ({"topic": "a\nb"}, "topic", "printable"),
        ({"topic": 5}, "topic", "must be a string"),
        ({"correlationid": LONG}, "correlationid", "255 bytes"),
        ({"correlationid": uuid4()}, "correlationid", "must be a string"),
        ({"datacontenttype": LONG}, "datacontenttype", "255 bytes"),
        ({"dataschema": 5}, "dataschema", "must be a string"),
        ({"extensions": {"Region": "eu"}}, "Region", "lower-case ASCII"),
        ({"extensions": {"my_region": "eu"}}, "my_region", "lower-case ASCII"),
        ({"extensions": {"id": "1"}}, "id", "belongs to an attribute"),
        ({"extensions": {"n": 1}}, "extensions['n']", "must be a string"),
        ({"extensions": {"n": "a\x00"}}, "n", "U\\+0000"),
        ({"deliver_at": datetime(2026, 11, 23)}, "deliver_at", "needs a timezone"),
        ({"name": "deadline"}, "name", "Pass deliver_at="),
        ({"name": "deadline", "deliver_at": datetime(2026, 11, 23, tzinfo=UTC)}, "name", "belongs to no saga"),
        (
            {"name": LONG, "deliver_at": datetime(2026, 11, 23, tzinfo=UTC), "correlationid": "saga"},
            "name",
            "1 to 255 characters",
        ),
        (
            {"name": "", "deliver_at": datetime(2026, 11, 23, tzinfo=UTC), "correlationid": "saga"},
            "name",
            "1 to 255 characters",
        ),
    ],
)
def test_an_attribute_that_breaks_a_rule(session: Session, options: Any, attribute: str, reason: str) -> None:
    """The error names the attribute, shows its value shortened, and says what fits."""
    with pytest.raises(InvalidEventError, match=reason) as caught:
        outbox.publish(session, b"", **cast("PublishOptions", {"type": "t", **options}))
    assert caught.value.attribute == attribute
    assert LONG not in str(caught.value)


def test_an_option_that_does_not_exist(session: Session) -> None:
    """A mistyped argument is a programming error, not a lost setting."""
    with pytest.raises(TypeError, match="delay"):
        outbox.publish(session, b"", type="t", delay=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def test_one_bad_event_of_several(session: Session) -> None:
    """All of them or none: those before it were not written either."""
    with pytest.raises(PublishError):
        outbox.publish_all(session, [placed(1), placed(2), Unnamed(), placed(3)])


# --- the handle ---


@pytest.mark.parametrize("handle", [None, object(), "postgresql://localhost/orders", Order(id=5)])
def test_a_handle_of_no_known_kind(session: Session, handle: Any) -> None:
    """Named with its class, and what is wanted instead."""
    with pytest.raises(TypeError, match=r"is not a handle of a transaction.*Session, AsyncSession, Connection"):
        outbox.publish(handle, placed(1))


def test_an_engine_is_not_a_transaction(session: Session, on_sqlite: Database) -> None:
    """The most likely wrong handle."""
    with pytest.raises(TypeError, match="Engine is not a handle"):
        outbox.publish(on_sqlite.engine, placed(1))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


# --- the database ---


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=pytest.mark.servers if name == "own_database" else ())
        for name in ("on_sqlite", "own_database")
        for kind in KINDS
        if name != "on_sqlite" or kind not in RAW
    ],
)
async def test_a_database_without_the_tables(request: pytest.FixtureRequest, name: str, kind: str) -> None:
    """The error says what to run; the change is rolled back with the event."""
    database: Database = request.getfixturevalue(name)
    with database.engine.begin() as connection:
        tables.outbox.drop(connection)
    async with unit_of(database, kind) as unit:
        await unit.order(1)
        with pytest.raises(SchemaError, match=r"has no sagapost tables\. Run `sagapost db upgrade`") as caught:  # noqa: PT012 - sessions say so at the commit
            await publish(unit, 1)
            await unit.commit()
    assert "sagapost_test:" not in str(caught.value)
    assert database.orders() == []


def test_another_error_of_the_database_stays_what_it_is(on_sqlite: Database) -> None:
    """Only a missing table is translated."""
    with on_sqlite.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'quota'); END"
        )
    with on_sqlite.engine.begin() as connection, pytest.raises(IntegrityError, match="quota"):
        outbox.publish(connection, placed(1))
