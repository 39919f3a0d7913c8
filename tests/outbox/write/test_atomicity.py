"""An event exists if and only if its transaction committed, whatever handle it was published through."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from sagapost.core import Event
from tests.outbox.write.service import KINDS, RAW, Database, outbox, placed, publish, settled, tables, unit_of

PLACES = [
    pytest.param((name, kind), id=f"{name}-{kind}", marks=pytest.mark.servers if name == "postgresql" else ())
    for name in ("sqlite", "postgresql")
    for kind in KINDS
    if name != "sqlite" or kind not in RAW
]
"""Every kind of handle on every database that has it."""


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> tuple[Database, str]:
    """An installed database and a kind of handle on it."""
    name, kind = request.param
    return request.getfixturevalue(f"on_{name}"), kind


@pytest.fixture
def database(place: tuple[Database, str]) -> Database:
    """The database."""
    return place[0]


@pytest.fixture
def kind(place: tuple[Database, str]) -> str:
    """The kind of handle."""
    return place[1]


async def test_commit_keeps_both(database: Database, kind: str) -> None:
    """The change and its event appear together, and the returned event is the stored one."""
    async with unit_of(database, kind) as unit:
        await unit.order(1)
        event = await publish(unit, 1, key="order-1")
        await unit.commit()
    assert isinstance(event, Event)
    assert database.orders() == [1]
    assert database.events() == [1]
    (row,) = database.rows()
    assert str(row["event_id"]) == event.id
    assert (row["partitionkey"], row["type"], row["topic"]) == ("order-1", event.type, event.type)


async def test_nothing_is_visible_before_the_commit(database: Database, kind: str) -> None:
    """Publishing does not commit behind the caller's back."""
    async with unit_of(database, kind) as unit:
        await unit.order(1)
        await publish(unit, 1)
        assert database.events() == []
        await unit.commit()
    assert database.events() == [1]


async def test_rollback_leaves_nothing(database: Database, kind: str) -> None:
    """Neither the change nor the event."""
    async with unit_of(database, kind) as unit:
        await unit.order(1)
        await publish(unit, 1)
        await unit.rollback()
    assert database.orders() == []
    assert database.events() == []


async def test_leaving_without_a_commit_leaves_nothing(database: Database, kind: str) -> None:
    """Closing a session or a connection is not a commit."""
    async with unit_of(database, kind) as unit:
        await unit.order(1)
        await publish(unit, 1)
    assert database.orders() == []
    assert database.events() == []


async def test_an_exception_leaves_nothing(database: Database, kind: str) -> None:
    """The usual way in which a transaction fails."""
    with pytest.raises(RuntimeError, match="card declined"):  # noqa: PT012 - the block is the transaction
        async with unit_of(database, kind) as unit:
            await unit.order(1)
            await publish(unit, 1)
            raise RuntimeError("card declined")
    assert database.orders() == []
    assert database.events() == []


async def test_a_savepoint_rolled_back_takes_its_events_along(database: Database, kind: str) -> None:
    """What was undone is not published; what was done before and after is."""
    async with unit_of(database, kind) as unit:
        await unit.order(1)
        await publish(unit, 1)
        savepoint = await unit.begin_nested()
        await unit.order(2)
        await publish(unit, 2)
        await settled(savepoint.rollback())
        await unit.order(3)
        await publish(unit, 3)
        await unit.commit()
    assert database.orders() == [1, 3]
    assert database.events() == [1, 3]


async def test_a_savepoint_released_keeps_its_events(database: Database, kind: str) -> None:
    """They share the fate of the transaction around it."""
    async with unit_of(database, kind) as unit:
        await publish(unit, 1)
        savepoint = await unit.begin_nested()
        await unit.order(2)
        await publish(unit, 2)
        await settled(savepoint.commit())
        await publish(unit, 3)
        await unit.commit()
    assert database.orders() == [2]
    assert database.events() == [1, 2, 3]


async def test_a_savepoint_released_inside_one_that_is_rolled_back_leaves_nothing(
    database: Database, kind: str
) -> None:
    """Undone is undone, at whatever depth."""
    async with unit_of(database, kind) as unit:
        await publish(unit, 1)
        outer = await unit.begin_nested()
        await publish(unit, 2)
        inner = await unit.begin_nested()
        await publish(unit, 3)
        await settled(inner.commit())
        await settled(outer.rollback())
        await publish(unit, 4)
        await unit.commit()
    assert database.events() == [1, 4]


async def test_events_keep_the_order_of_publishing(database: Database, kind: str) -> None:
    """Positions grow in the order of the calls, also within one publish_all, for one key and for several."""
    async with unit_of(database, kind) as unit:
        await publish(unit, 1, key="a")
        await settled(outbox.publish_all(unit.handle, [placed(n) for n in range(2, 60)], key="b"))
        await publish(unit, 60, key="a")
        await unit.commit()
    assert database.events() == list(range(1, 61))


async def test_publishing_nothing_writes_nothing(database: Database, kind: str) -> None:
    """An empty list is not an error."""
    async with unit_of(database, kind) as unit:
        assert await settled(outbox.publish_all(unit.handle, [])) == []
        await unit.commit()
    assert database.events() == []


async def test_the_transaction_goes_on_after_publishing(database: Database, kind: str) -> None:
    """Publishing neither ends the transaction nor begins another."""
    async with unit_of(database, kind) as unit:
        await publish(unit, 1)
        await unit.order(1)
        await publish(unit, 2)
        if kind == "asyncpg":
            assert await unit.handle.fetchval("SELECT count(*) FROM outbox") == 2  # type: ignore[union-attr]  # asyncpg's
        await unit.rollback()
    assert database.orders() == []
    assert database.events() == []


async def test_several_events_are_one_insert(database: Database, kind: str) -> None:
    """publish_all sends one statement, however many events it has."""
    async with unit_of(database, kind) as unit:
        await settled(outbox.publish_all(unit.handle, [placed(n) for n in range(20)], key="k"))
        await unit.commit()
    # What goes past SQLAlchemy is counted by the server itself, in the next test.
    assert database.sent("INSERT") == ([] if kind in RAW else ["INSERT INTO outbox"])
    assert database.events() == list(range(20))


@pytest.mark.servers
@pytest.mark.parametrize("kind", KINDS)
async def test_several_events_are_one_insert_to_the_server(own_database: Database, kind: str) -> None:
    """PostgreSQL itself sees one statement: a trigger that fires once per statement fires once."""
    with own_database.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE fired (n serial)")
        connection.exec_driver_sql(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN INSERT INTO fired DEFAULT VALUES; RETURN NULL; END'"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER note AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION note()"
        )
    async with unit_of(own_database, kind) as unit:
        await settled(outbox.publish_all(unit.handle, [placed(n) for n in range(50)]))
        await unit.commit()
    with own_database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM fired").scalar_one() == 1
        assert len(connection.execute(select(tables.outbox.c.position)).all()) == 50
