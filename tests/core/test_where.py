"""`--where`: what is typed becomes conditions, never part of a statement; what is wrong says what there is instead."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, DateTime, Engine, Integer, MetaData, Table, Text, Uuid, create_engine, insert, select
from sqlalchemy.engine import make_url

from sagapost.core.databases import kit_of
from sagapost.core.errors import ConfigurationError
from sagapost.core.where import Field, Fields, Selection

ROWS = Table(
    "rows",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("word", Text),
    Column("n", Integer),
    Column("at", DateTime(timezone=True)),
    Column("uuid", Uuid),
    Column("flagged", Integer),
)
FIELDS = Fields(
    Field("id", "id", "number"),
    Field("type", "word"),
    Field("attempts", "n", "number"),
    Field("state", "word", "choice", ("dead", "waiting")),
    Field("due", "at", "time"),
    Field("before", "at", "before"),
    Field("after", "at", "after"),
    Field("event_id", "uuid", "uuid"),
    Field("blocks", "flagged", "flag"),
)
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ID = UUID("0192f0c1-2a3b-7c4d-8e5f-0123456789ab")
WORDS = [
    None,
    "",
    "order.placed",
    "Order.Placed",
    "order.",
    "ord",
    "100%",
    "1000",
    "a_b",
    "axb",
    "a\\b",
    "a*b",
    "[a]",
    "what?",
    "it's; DROP TABLE rows --",
    "dead",
]


@pytest.fixture(params=["sqlite", "postgresql"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A row for each word, on each database."""
    if request.param == "sqlite":
        engine = create_engine(f"sqlite:///{tmp_path / 'rows.db'}")
    else:
        url = make_url(request.getfixturevalue("postgresql_url"))
        engine = create_engine(url.set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        ROWS.create(connection)
        for number, word in enumerate(WORDS):
            at = NOON + timedelta(hours=number)
            values = {"id": number, "word": word, "n": number, "at": at, "uuid": ID if number else None}
            connection.execute(insert(ROWS).values(**values, flagged=number % 2))
    yield engine
    engine.dispose()


def found(engine: Engine, selection: Selection) -> list[int]:
    """Return the numbers of the rows that are meant."""
    with engine.connect() as connection:
        clauses = selection.clauses(ROWS, kit_of(connection))
        return list(connection.execute(select(ROWS.c.id).where(*clauses).order_by(ROWS.c.id)).scalars())


def words(engine: Engine, *where: str) -> list[str | None]:
    """Return the words of the rows that are meant."""
    return [WORDS[number] for number in found(engine, FIELDS.select(*where))]


def test_each_operator_on_each_database(rows: Engine) -> None:
    """The table of the module's docstring, line by line; the same on both."""
    assert words(rows, "type=order.placed") == ["order.placed"]
    assert words(rows, "type=order.*") == ["order.placed", "order."]
    assert words(rows, "type=*r*.*") == ["order.placed", "Order.Placed", "order."]
    assert words(rows, r"type=a\*b") == ["a*b"]
    assert words(rows, "type=a_b") == ["a_b"]
    assert words(rows, "type=a_*") == ["a_b"]
    assert words(rows, "type=100%*") == ["100%"]
    assert words(rows, "type=[*") == ["[a]"]
    assert words(rows, "type=*?") == ["what?"]
    assert words(rows, "type=") == [None]
    assert None not in words(rows, "type!=")
    assert len(words(rows, "type!=order.*")) == len(WORDS) - 2
    assert words(rows, "type~ORDER.P") == ["order.placed", "Order.Placed"]
    assert words(rows, "type~%") == ["100%"]
    assert words(rows, "type~\\") == ["a\\b"]
    assert len(words(rows, "type!~order")) == len(WORDS) - 3
    assert found(rows, FIELDS.select("attempts>3", "attempts<=5")) == [4, 5]
    assert found(rows, FIELDS.select("attempts!=0", "attempts<2")) == [1]
    assert found(rows, FIELDS.select("state=dead")) == [len(WORDS) - 1]
    assert found(rows, FIELDS.select("before=2026-11-23T14:00+01:00")) == [0]
    assert found(rows, FIELDS.select("after=2026-11-23T13:00", "due<2026-11-23T15:00Z")) == [1, 2]
    assert found(rows, FIELDS.select(f"event_id!={ID}")) == [0]
    assert found(rows, FIELDS.select("blocks=yes", "id<4")) == [1, 3]
    assert found(rows, FIELDS.select(numbers=[7, 3, 7])) == [3, 7]
    assert found(rows, FIELDS.equal(type="a*b", attempts=WORDS.index("a*b"))) == [WORDS.index("a*b")]
    assert len(found(rows, FIELDS.select())) == len(WORDS)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("type", "is no condition: write FIELD=VALUE"),
        ("", "is no condition"),
        ("=x", "is no condition"),
        ("typ=a", "no field 'typ'. Did you mean 'type'?"),
        ("colour=red", "no field 'colour'. Fields: id, type"),
        ("attempts=many", "attempts is a whole number"),
        ("attempts=99999999999999999999", "attempts is a whole number"),
        ("attempts=9223372036854775808", "attempts is a whole number"),
        ("attempts=٣", "attempts is a whole number"),
        ("attempts~3", "compared with = != < <= > >=, not with ~"),
        ("type>a", "compared with = != ~ !~, not with >"),
        ("state=alive", "use one of dead, waiting"),
        ("state=", "use one of dead, waiting"),
        ("due<tomorrow", "not a time in ISO 8601"),
        ("before=", "not a time in ISO 8601"),
        ("before=0001-01-01T00:00+14:00", "not a time in ISO 8601"),
        ("after>2026-01-01", "compared with =, not with >"),
        ("event_id=17", "not an id such as"),
        ("blocks=1", "use yes or no"),
        ("type=a\x00b", "NUL character or bytes that are no UTF-8"),
        ("type=\udcff", "NUL character or bytes that are no UTF-8"),
        (f"type={'x' * 1001}", "has 1001 characters; at most 1000"),
    ],
)
def test_a_wrong_condition_says_what_there_is(condition: str, message: str) -> None:
    """One error for each way to get it wrong, and none comes from a database."""
    with pytest.raises(ConfigurationError) as error:
        FIELDS.select(condition)
    assert message in str(error.value)


def test_a_field_is_one_thing_and_a_number_is_listed() -> None:
    """Two values for one field select nothing, and a number that no row can have is a mistake."""
    with pytest.raises(ConfigurationError, match="says twice what 'type' is"):
        FIELDS.select("type=a", "type=b")
    for number in (-1, 2**63):
        with pytest.raises(ConfigurationError, match="is no number that is listed"):
            FIELDS.select(numbers=[number])


@pytest.mark.parametrize("zone", [timezone(timedelta(hours=14)), UTC, timezone(-timedelta(hours=12))])
def test_a_time_means_the_same_in_every_zone(rows: Engine, zone: timezone) -> None:
    """SQLite keeps no zone, so what is typed is brought into the one of the columns."""
    asked = (NOON + timedelta(hours=2)).astimezone(zone).isoformat()
    assert found(rows, FIELDS.select(f"before={asked}")) == [0, 1]


def test_whatever_is_typed_is_a_value(rows: Engine) -> None:
    """Any text after any operator finds what Python finds, and leaves the table as it was."""

    @settings(
        max_examples=200,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        st.sampled_from(["=", "~", "!=", "!~"]),
        st.text(max_size=12)
        | st.text("ab*%_\\[]?'\";-.", max_size=8)
        | st.sampled_from([word or "" for word in WORDS]),
    )
    @example("=", "'; DROP TABLE rows; --")
    @example("~", "' OR 1=1 --")
    @example("=", "\\")
    @example("=", "a\\\\*")
    def one(operator: str, typed: str) -> None:
        try:
            selection = FIELDS.select(f"type{operator}{typed}")
        except ConfigurationError:
            assert "\x00" in typed or any("\ud800" <= letter <= "\udfff" for letter in typed)
            return
        got = [WORDS[number] for number in found(rows, selection)]
        value = typed.strip()
        if operator in {"~", "!~"}:
            # Of letters beyond ASCII each database has its own idea of small and capital.
            wanted = [
                word for word in WORDS if (word is not None and value.lower() in word.lower()) == (operator == "~")
            ]
            assert got == wanted or not value.isascii()
        elif value and "*" not in value:
            assert got == [word for word in WORDS if (word == value) == (operator == "=")]

    one()
    assert len(found(rows, FIELDS.select())) == len(WORDS)
