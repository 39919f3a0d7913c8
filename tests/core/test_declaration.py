"""The envelope is declared once: columns, records, headers and the parked envelope follow from `Event`."""

from __future__ import annotations

from datetime import UTC, datetime

from sagapost.adapters.cloudevents import binary_headers, read_message
from sagapost.core.envelope import ATTRIBUTES, Event, Form
from sagapost.core.foreign import ForeignMessages, Incoming
from sagapost.inbox.kept.envelope import envelope_of, restore
from sagapost.outbox.reading import RECORD
from sagapost.outbox.rows import PUBLISHED, row_values
from sagapost.outbox.tables import ENVELOPE_COLUMNS, OutboxTables

FULL = Event(
    time=datetime(2026, 1, 1, tzinfo=UTC),
    data=b"{}",
    extensions={"region": "eu"},
    **{each.name: "0b9e1a53-5b0e-7c7e-8a3c-000000000001" for each in ATTRIBUTES if each.is_text},
)
"""Every attribute has a value."""


def test_every_attribute_has_its_place_everywhere() -> None:
    """In the row, in what is read of a row, in the headers, and in what is parked: there and back."""
    names = {"event_id" if each.name == "id" else each.name for each in ATTRIBUTES}
    assert set(ENVELOPE_COLUMNS) == {*names, "topic"}
    assert set(row_values(FULL, "t")) == {*ENVELOPE_COLUMNS, PUBLISHED} - {"time"}
    assert set(RECORD) == {*names, "topic", "position", "slot", "attempts", "retry_in"}
    message = Incoming(body=FULL.data, topic="t", headers=binary_headers(FULL), content_type=FULL.datacontenttype)
    assert read_message(message, ForeignMessages()) == FULL
    assert restore(envelope_of(FULL), FULL.data) == FULL


def test_columns_take_what_the_attributes_allow() -> None:
    """What is required may not be NULL, and names have the length that brokers carry."""
    columns = OutboxTables().outbox.c
    for each in ATTRIBUTES:
        column = columns["event_id" if each.name == "id" else each.name]
        assert column.nullable is not (each.required or each.form is Form.DATA), each
        if each.form in {Form.NAME, Form.KEY} and each.name != "id":
            assert getattr(column.type, "length", None) == 255, each
