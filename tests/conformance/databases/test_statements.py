"""What every kit promises of its statements. Expected values are written by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import BigInteger, ColumnElement, Connection, Integer, Text, func, literal_column, select
from sqlalchemy.exc import DBAPIError

from sagapost.core.clock import SystemClock
from sagapost.core.databases import aware
from tests.conformance.databases.bed import Bed, rows_of, seen, versions


async def test_a_row_is_inserted_once(bed: Bed) -> None:
    """`rowcount` is 1 for the first and 0 for the second, which is no error and leaves the transaction usable."""

    def work(connection: Connection) -> list[int]:
        insert = bed.kit.insert_once(seen)
        return [connection.execute(insert, {"consumer": 1, "key": key}).rowcount for key in (b"a", b"a", b"b")]

    assert await bed.run(work) == [1, 0, 1]
    assert await bed.run(lambda connection: rows_of(connection, seen)) == {(1, b"a"), (1, b"b")}


async def test_of_many_values_those_that_were_missing_are_returned(bed: Bed) -> None:
    """Each is there afterwards, under the fixed columns; another consumer's are not its own."""
    write = bed.kit.insert_missing(seen, seen.c.key, {"consumer": 7})
    other = bed.kit.insert_missing(seen, seen.c.key, {"consumer": 8})
    assert await bed.run(lambda connection: write(connection, [b"a", b"b"])) == {b"a", b"b"}
    assert await bed.run(lambda connection: write(connection, [b"a", b"b", b"c"])) == {b"c"}
    assert await bed.run(lambda connection: other(connection, [b"a"])) == {b"a"}
    assert await bed.run(lambda connection: write(connection, [])) == set()


async def test_a_batch_leaves_what_is_there_alone(bed: Bed) -> None:
    """Any number of rows through one statement; of two with one key the first stays."""
    batch = bed.kit.batch_once(versions)

    def work(connection: Connection) -> None:
        batch.execute(connection, [{"name": "a", "version": 1, "word": "first"}])
        batch.execute(connection, [{"name": n, "version": 2, "word": None} for n in ("a", "b")])

    await bed.run(work)
    assert await bed.run(lambda connection: rows_of(connection, versions)) == {("a", 1, "first"), ("b", 2, None)}


async def test_a_batch_replaces_a_row_by_its_next_version_only(bed: Bed) -> None:
    """The next version is written, as is a new row; one that skips a version, or comes late, changes nothing."""
    batch = bed.kit.batch_versions(versions, versions.c.version)

    def work(connection: Connection) -> None:
        batch.execute(connection, [{"name": n, "version": 1, "word": "one"} for n in "abc"])
        later = [("a", 2), ("b", 3), ("c", 1), ("d", 1)]
        written = batch.execute(connection, [{"name": n, "version": v, "word": "two"} for n, v in later])
        # Where nobody else can have written meanwhile, all count as written.
        assert set(written) == ({"a", "d"} if bed.kit.locks_rows else {"a", "b", "c", "d"})

    await bed.run(work)
    expected = {("a", 2, "two"), ("b", 1, "one"), ("c", 1, "one"), ("d", 1, "two")}
    assert await bed.run(lambda connection: rows_of(connection, versions)) == expected


async def test_an_upsert_replaces_the_row_of_its_key(bed: Bed) -> None:
    """The second stands."""
    for word in ("one", "two"):
        row = {"name": "a", "version": 1, "word": word}
        await bed.run(lambda connection, row=row: connection.execute(bed.kit.upsert(versions, row)))  # type: ignore[misc]
    assert await bed.run(lambda connection: rows_of(connection, versions)) == {("a", 1, "two")}


@pytest.mark.parametrize("keys", [[], [b"a"], [b"a", b"c", b"x"]], ids=len)
async def test_membership_in_a_list_of_any_length(bed: Bed, keys: list[bytes]) -> None:
    """One text for any number of values, none included."""
    write = bed.kit.insert_missing(seen, seen.c.key, {"consumer": 1})
    await bed.run(lambda connection: write(connection, [b"a", b"b", b"c"]))
    asked = select(seen.c.key).where(bed.kit.is_any(seen.c.key, "keys"))
    found = await bed.run(lambda connection: set(connection.execute(asked, {"keys": keys}).scalars()))
    assert found == {b"a", b"b", b"c"} & set(keys)


async def test_a_list_as_rows(bed: Bed) -> None:
    """In SQL they are rows with one column; quotes, emptiness and other alphabets survive."""
    values = ["plain", "it's", 'say "x"', "", "žluťoučký 🐎", "a,b{}"]
    asked = select(bed.kit.elements("values", Text).c.value)
    parameters = {"values": bed.kit.listed(values)}
    assert await bed.run(lambda connection: list(connection.execute(asked, parameters).scalars())) == values


async def test_among_what_a_query_finds(bed: Bed) -> None:
    """As an IN would say."""
    batch = bed.kit.batch_once(versions)
    await bed.run(lambda c: batch.execute(c, [{"name": n, "version": v, "word": n} for v, n in enumerate("abcd")]))
    odd = select(versions.c.version).where(versions.c.version % 2 == 1)
    asked = select(versions.c.name).where(bed.kit.among(versions.c.version, odd, Integer))
    assert await bed.run(lambda connection: set(connection.execute(asked).scalars())) == {"b", "d"}


async def test_the_clock_moves_within_a_transaction(bed: Bed) -> None:
    """Now is now and not the transaction's begin; `after` is so much later, and earlier for a negative delay."""
    moments = bed.kit.moments(SystemClock())

    def work(connection: Connection) -> list[datetime]:
        asked = (moments.now(), moments.now(), moments.after(timedelta(hours=1)), moments.after(-timedelta(hours=1)))
        return [aware(connection.execute(select(moment)).scalar_one()) for moment in asked]

    first, second, later, earlier = await bed.run(work)
    assert first < second
    assert timedelta(minutes=59) < later - second < timedelta(minutes=61)
    assert timedelta(minutes=59) < second - earlier < timedelta(minutes=61)
    assert abs(first - datetime.now(UTC)) < timedelta(minutes=1)


async def test_the_writers_turn_changes_nothing(bed: Bed) -> None:
    """A database with row locks has none; elsewhere the statement touches no row."""
    turn = bed.kit.writers_turn(versions)
    assert (turn is None) == bed.kit.locks_rows
    if turn is not None:
        await bed.run(lambda c: c.execute(bed.kit.insert_once(versions), {"name": "a", "version": 1, "word": "x"}))
        await bed.run(lambda connection: connection.execute(turn))
        assert await bed.run(lambda connection: rows_of(connection, versions)) == {("a", 1, "x")}


async def test_a_server_that_serves_answers_the_probe(bed: Bed) -> None:
    """With something true."""
    probe: ColumnElement[bool] = literal_column(f"({bed.kit.probe})")
    assert await bed.run(lambda connection: connection.execute(select(probe)).scalar_one())


async def test_a_missing_table_or_column_is_told_from_other_faults(bed: Bed) -> None:
    """Dropped, or of another release; and a broken constraint is neither."""

    async def lacks(statement: str) -> bool:
        said: list[bool] = []

        def work(connection: Connection) -> None:
            try:
                with connection.begin_nested():
                    connection.exec_driver_sql(statement)
            except DBAPIError as error:
                said.append(bed.kit.lacks(error, connection, versions))

        await bed.run(work)
        return said == [True]

    assert not await lacks("INSERT INTO versions (name) VALUES ('a')")  # version is missing
    await bed.run(lambda connection: connection.exec_driver_sql("ALTER TABLE versions DROP COLUMN word"))
    assert await lacks("INSERT INTO versions (name, version, word) VALUES ('a', 1, 'x')")
    await bed.run(versions.drop)
    assert await lacks("INSERT INTO versions (name, version) VALUES ('a', 1)")


async def test_names_are_quoted(bed: Bed) -> None:
    """A name with blanks and capitals, outside of any statement of SQLAlchemy's."""
    counted = f"SELECT count(*) FROM {bed.kit.quote(seen)}"
    assert await bed.run(lambda connection: connection.exec_driver_sql(counted).scalar_one()) == 0
    assert isinstance(await bed.run(lambda c: c.execute(select(func.count(type_=BigInteger()))).scalar_one()), int)
