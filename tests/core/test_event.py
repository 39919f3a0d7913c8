"""The envelope: what is refused, and what never shows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from sagapost.core.envelope import MAX_KEY_LENGTH, MAX_NAME_LENGTH, Event, utc_iso, validate_event
from sagapost.core.errors import InvalidEventError

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def make(**changes: Any) -> Event:
    """Return a valid event with some attributes changed."""
    attributes: dict[str, Any] = {
        "id": "0197a3c2-0000-7000-8000-000000000001",
        "source": "https://orders.streamtech.example",
        "type": "orders.order-placed.v1",
        "time": NOON,
        "data": b"{}",
    }
    return Event(**(attributes | changes))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="the required attributes alone"),
        pytest.param({"partitionkey": "k" * MAX_KEY_LENGTH}, id="longest key"),
        pytest.param({"partitionkey": "\N{SNOWMAN}" * MAX_KEY_LENGTH}, id="a key is counted in characters"),
        pytest.param({"type": "t" * MAX_NAME_LENGTH}, id="longest type"),
        pytest.param({"subject": "Grüße, 世界 \N{PARTY POPPER}"}, id="any language"),
        pytest.param({"extensions": {"tenant": "acme", "sequence": "0001"}}, id="extensions"),
        pytest.param({"data": b"\x00\xff"}, id="data is any bytes"),
        pytest.param({"time": NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))}, id="any timezone"),
    ],
)
def test_valid_events_pass(changes: dict[str, Any]) -> None:
    """What CloudEvents allows and the wire can carry is accepted."""
    validate_event(make(**changes))


@pytest.mark.parametrize(
    ("changes", "attribute"),
    [
        pytest.param({"id": ""}, "id", id="empty id"),
        pytest.param({"source": ""}, "source", id="empty source"),
        pytest.param({"type": ""}, "type", id="empty type"),
        pytest.param({"id": "i" * 256}, "id", id="id of 256 bytes"),
        pytest.param({"type": "é" * 128}, "type", id="names are counted in bytes"),
        pytest.param({"partitionkey": ""}, "partitionkey", id="empty key"),
        pytest.param({"partitionkey": "k" * 256}, "partitionkey", id="key of 256 characters"),
        pytest.param({"correlationid": "c" * 256}, "correlationid", id="long correlation id"),
        pytest.param({"correlationid": ""}, "correlationid", id="empty correlation id"),
        pytest.param({"causationid": "c" * 256}, "causationid", id="long causation id"),
        pytest.param({"datacontenttype": "a/" + "b" * 254}, "datacontenttype", id="long media type"),
        pytest.param({"traceparent": "0" * 256}, "traceparent", id="long traceparent"),
        pytest.param({"time": NOON.replace(tzinfo=None)}, "time", id="time without timezone"),
        pytest.param({"extensions": {"sagaId": "1"}}, "sagaId", id="upper case in an extension name"),
        pytest.param({"extensions": {"saga_id": "1"}}, "saga_id", id="underscore in an extension name"),
        pytest.param({"extensions": {"": "1"}}, "", id="empty extension name"),
        pytest.param({"extensions": {"größe": "1"}}, "größe", id="extension name beyond ASCII"),
        pytest.param({"extensions": {"id": "other"}}, "id", id="an extension posing as the id"),
        pytest.param({"extensions": {"correlationid": "x"}}, "correlationid", id="an extension posing as the saga"),
        pytest.param({"extensions": {"specversion": "0.3"}}, "specversion", id="an extension posing as the version"),
        pytest.param({"extensions": {"data": "x"}}, "data", id="an extension named data"),
        pytest.param({"extensions": {"tenant": "a\x00b"}}, "tenant", id="NUL in an extension"),
        pytest.param({"type": "a\x00b"}, "type", id="NUL, which PostgreSQL text cannot hold"),
        pytest.param({"partitionkey": "a\x00"}, "partitionkey", id="NUL in the key"),
        pytest.param({"partitionkey": "\ud800"}, "partitionkey", id="a lone surrogate, which is no UTF-8"),
        pytest.param({"id": "\udfff"}, "id", id="a lone surrogate in the id"),
        pytest.param({"subject": "line\nbreak"}, "subject", id="control characters"),
    ],
)
def test_invalid_events_are_refused_naming_the_attribute(changes: dict[str, Any], attribute: str) -> None:
    """Each broken rule raises one error that carries the attribute, before anything is written."""
    with pytest.raises(InvalidEventError) as caught:
        validate_event(make(**changes))
    assert caught.value.attribute == attribute
    assert repr(attribute) in str(caught.value)


def test_a_huge_value_is_shortened_in_the_error() -> None:
    """An error about a value of a megabyte stays a sentence."""
    with pytest.raises(InvalidEventError) as caught:
        validate_event(make(partitionkey="k" * 1_000_000))
    assert len(str(caught.value)) < 500


def test_repr_shows_the_size_of_data_never_its_content() -> None:
    """Logs and tracebacks print events: personal data must not come along."""
    shown = repr(make(data=b'{"iban":"DE02120300000000202051"}'))
    assert "DE02" not in shown
    assert "<33 bytes>" in shown


def test_an_event_is_immutable() -> None:
    """Identity is set once: assignment fails."""
    with pytest.raises(AttributeError):
        make().id = "another"  # type: ignore[misc]


def test_events_round_trip_through_msgspec() -> None:
    """The envelope survives serialisation whole, optional attributes included."""
    event = make(partitionkey="42", correlationid="s", causationid="c", extensions={"tenant": "acme"})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=Event) == event


def test_times_are_written_in_utc() -> None:
    """RFC 3339 with `Z`, whatever timezone the time was made in."""
    tokyo = timezone(timedelta(hours=9))
    assert utc_iso(datetime(2026, 11, 23, 17, 0, tzinfo=tokyo)) == "2026-11-23T08:00:00Z"
    assert utc_iso(NOON.replace(microsecond=5)) == "2026-11-23T12:00:00.000005Z"
