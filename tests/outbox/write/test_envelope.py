"""What becomes of an event object: its type, its bytes, its identity, its time, and the saga it belongs to."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest
from sqlalchemy.orm import Session

from sagapost.core import Event, SagaContext, bind, continue_from, decode_data, event
from sagapost.core.errors import ConfigurationError
from sagapost.outbox import Outbox, OutboxTables
from tests.outbox.write.service import SOURCE, Database, outbox


class PlainPayload(TypedDict):
    order_id: str
    amount: int


@event("orders.pydantic.v1")
class PydanticPayload(pydantic.BaseModel):
    order_id: str
    at: datetime


@event("orders.struct.v1")
class StructPayload(msgspec.Struct):
    order_id: str
    at: datetime


@event("orders.dataclass.v1")
@dataclasses.dataclass
class DataclassPayload:
    order_id: str
    at: datetime


AT = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


@pytest.fixture
def session(on_sqlite: Database) -> Any:
    """A session to publish into."""
    with Session(on_sqlite.engine) as session:
        yield session


class FixedClock:
    """A clock that stands still."""

    def now(self) -> datetime:
        return AT

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("publishing does not wait")


# --- payloads ---


@pytest.mark.parametrize(
    "payload",
    [PydanticPayload(order_id="ö-1", at=AT), StructPayload("ö-1", AT), DataclassPayload("ö-1", AT)],
    ids=["pydantic", "msgspec", "dataclass"],
)
def test_a_named_class_round_trips(session: Session, payload: Any) -> None:
    """What is published can be read back as the class it was published from, under the class's name."""
    published = outbox.publish(session, payload)
    kind = type(payload)
    assert decode_data(published.data, kind, event_id=published.id, event_type=published.type) == payload
    assert msgspec.json.decode(published.data) == {"order_id": "ö-1", "at": "2026-11-23T08:00:00Z"}
    assert published.datacontenttype == "application/json"
    assert published.type == f"orders.{ {'P': 'pydantic', 'S': 'struct', 'D': 'dataclass'}[kind.__name__[0]] }.v1"


def test_a_typed_dict_round_trips_under_a_given_type(session: Session) -> None:
    """At run time it is a dict, so the type is named when publishing."""
    payload: PlainPayload = {"order_id": "1", "amount": 3}
    published = outbox.publish(session, payload, type="orders.plain.v1")
    assert published.type == "orders.plain.v1"
    assert decode_data(published.data, PlainPayload, event_id="", event_type="") == payload


@pytest.mark.parametrize("payload", [{"a": [1, None, "ü"], "b": {"c": 1.5}}, [1, 2], "text", 5, None])
def test_plain_values_round_trip(session: Session, payload: object) -> None:
    """Whatever JSON can say."""
    published = outbox.publish(session, payload, type="orders.plain.v1")
    assert msgspec.json.decode(published.data) == payload


@pytest.mark.parametrize("payload", [b"\x00\x01\xff", bytearray(b"abc"), memoryview(b"abc"), b""])
def test_bytes_are_left_alone(session: Session, payload: Any) -> None:
    """They are the data, of no particular format unless one is named."""
    published = outbox.publish(session, payload, type="orders.raw.v1")
    assert published.data == bytes(payload)
    assert published.datacontenttype == "application/octet-stream"
    avro = outbox.publish(session, payload, type="orders.raw.v1", datacontenttype="application/avro")
    assert avro.datacontenttype == "application/avro"


def test_the_payload_is_sealed_when_it_is_published(session: Session) -> None:
    """Changing the object afterwards changes nothing."""
    payload = StructPayload("1", AT)
    published = outbox.publish(session, payload)
    payload.order_id = "changed"
    session.commit()
    assert b"changed" not in published.data


def test_a_type_given_wins_over_the_class(session: Session) -> None:
    """For publishing one class under several names."""
    assert outbox.publish(session, StructPayload("1", AT), type="orders.other.v2").type == "orders.other.v2"


# --- identity ---


def test_ids_are_fresh_and_ordered(session: Session) -> None:
    """UUIDv7: each event its own, later ones behind earlier ones."""
    ids = [event.id for event in outbox.publish_all(session, [b""] * 100, type="t")]
    assert len(set(ids)) == 100
    assert all(UUID(one).version == 7 for one in ids)
    assert ids[0] < ids[-1]


def test_the_envelope_is_what_was_said(session: Session) -> None:
    """Every argument is found on the event."""
    published = outbox.publish(
        session,
        b"x",
        type="t.v1",
        key="k",
        subject="s",
        dataschema="https://schema.example/1",
        extensions={"region": "eu"},
        correlationid="saga",
    )
    assert (published.source, published.type, published.partitionkey) == (SOURCE, "t.v1", "k")
    assert (published.subject, published.dataschema) == ("s", "https://schema.example/1")
    assert (published.extensions, published.correlationid) == ({"region": "eu"}, "saga")


def test_the_clock_stamps_the_time(on_sqlite: Database) -> None:
    """The port, so that tests need no patience."""
    with Session(on_sqlite.engine) as session:
        assert Outbox(source="s", clock=FixedClock()).publish(session, b"", type="t").time == AT


def test_the_row_is_the_event(database: Database) -> None:
    """What the relay will read is what publish returned; the key decides the hash, the type the topic."""
    with Session(database.engine) as session, session.begin():
        with bind(SagaContext("saga", "cause", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b")):
            keyed = outbox.publish(
                session, {"n": 1}, type="t.v1", key="k", topic="elsewhere", subject="s", extensions={"e": "v"}
            )
        outbox.publish(session, b"", type="u.v1")
    first, second = database.rows()
    assert first["event_id"] == UUID(keyed.id)
    assert first["time"].replace(tzinfo=UTC) == keyed.time
    assert {name: first[name] for name in ("topic", "type", "source", "subject", "datacontenttype", "dataschema")} == {
        "topic": "elsewhere",
        "type": "t.v1",
        "source": SOURCE,
        "subject": "s",
        "datacontenttype": "application/json",
        "dataschema": None,
    }
    assert {name: first[name] for name in ("correlationid", "causationid", "partitionkey", "tracestate")} == {
        "correlationid": "saga",
        "causationid": "cause",
        "partitionkey": "k",
        "tracestate": "a=b",
    }
    assert first["traceparent"].startswith("00-0af76519")
    assert (first["extensions"], first["data"]) == ({"e": "v"}, b'{"n":1}')
    assert (first["attempts"], first["next_attempt_at"], first["last_error"]) == (0, None, None)
    assert (second["topic"], second["partitionkey"]) == ("u.v1", None)
    assert (second["extensions"], second["correlationid"], second["data"]) == (None, None, b"")


# --- the saga ---


def test_outside_a_saga_there_is_none(session: Session) -> None:
    """No correlation is invented: the first consumer continues from the event's own id."""
    published = outbox.publish(session, b"", type="t")
    assert (published.correlationid, published.causationid, published.traceparent) == (None, None, None)
    assert continue_from(published).correlationid == published.id


def test_the_running_saga_is_inherited(session: Session) -> None:
    """Inside a handler every event continues the saga and names its cause, through any number of steps."""
    first = outbox.publish(session, b"", type="t", correlationid="saga")
    with bind(continue_from(first)):
        second = outbox.publish(session, b"", type="t")
        with bind(continue_from(second)):
            third = outbox.publish_all(session, [b"", b""], type="t")
    assert (second.correlationid, second.causationid) == ("saga", first.id)
    assert [(e.correlationid, e.causationid) for e in third] == [("saga", second.id), ("saga", second.id)]
    assert outbox.publish(session, b"", type="t").correlationid is None


def test_a_saga_given_wins_and_the_cause_stays(session: Session) -> None:
    """An event may start another saga; what caused it is still known."""
    with bind(SagaContext(correlationid="running", causationid="cause")):
        published = outbox.publish(session, b"", type="t", correlationid="another")
    assert (published.correlationid, published.causationid) == ("another", "cause")


# --- the outbox itself ---


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"source": ""}, "1 to 255 bytes.*this one has 0"),
        ({"source": "x" * 256}, "this one has 256"),
        ({"source": "s", "max_bytes": 0}, "positive number of bytes, not 0"),
    ],
)
def test_a_wrong_declaration_is_refused(arguments: Any, reason: str) -> None:
    """At once, with an example."""
    with pytest.raises(ConfigurationError, match=reason):
        Outbox(**arguments)


def test_tables_are_ours_unless_given() -> None:
    """An outbox needs nothing but a source."""
    own, given = Outbox(source="s"), OutboxTables()
    assert own.tables.outbox.name == "outbox"
    assert Outbox(source="s", tables=given).tables is given


def test_an_event_shows_no_payload(session: Session) -> None:
    """It ends up in logs."""
    published: Event = outbox.publish(session, {"iban": "DE00"}, type="t")
    assert "DE00" not in repr(published)
