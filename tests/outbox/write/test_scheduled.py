"""Events that become due later: kept apart, and taken back in the caller's transaction."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sagapost.core import SagaContext, bind
from sagapost.core.errors import NotInTransactionError
from tests.outbox.write.service import KINDS, RAW, Database, outbox, placed, publish, settled, unit_of

DUE = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)

PLACES = [
    pytest.param((name, kind), id=f"{name}-{kind}", marks=pytest.mark.servers if name == "postgresql" else ())
    for name in ("sqlite", "postgresql")
    for kind in KINDS
    if name != "sqlite" or kind not in RAW
]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> tuple[Database, str]:
    """An installed database and a kind of handle on it."""
    name, kind = request.param
    return request.getfixturevalue(f"on_{name}"), kind


async def test_a_scheduled_event_waits_in_its_own_table(place: tuple[Database, str]) -> None:
    """With its time, its name and everything else an event has; the outbox stays empty."""
    database, kind = place
    async with unit_of(database, kind) as unit:
        event = await publish(
            unit, 1, deliver_at=DUE, name="payment", correlationid="saga", key="k", extensions={"a": "b"}
        )
        await unit.commit()
    assert database.events() == []
    (row,) = database.scheduled()
    assert row["event_id"] == UUID(event.id)
    assert row["deliver_at"].replace(tzinfo=UTC) == DUE
    assert (row["name"], row["correlationid"], row["partitionkey"]) == ("payment", "saga", "k")
    assert (row["type"], row["topic"], row["extensions"]) == (event.type, event.type, {"a": "b"})
    # It happens when it is due; published now, a deadline of a month would reach an inbox a month old.
    assert event.time == DUE
    assert row["time"].replace(tzinfo=UTC) == DUE


async def test_several_are_scheduled_together(place: tuple[Database, str]) -> None:
    """All of them for the same time."""
    database, kind = place
    async with unit_of(database, kind) as unit:
        await settled(outbox.publish_all(unit.handle, [placed(1), placed(2)], deliver_at=DUE))
        await unit.commit()
    assert [row["data"] for row in database.scheduled()] == [b'{"order_id":1}', b'{"order_id":2}']


async def test_rolled_back_is_not_scheduled(place: tuple[Database, str]) -> None:
    """A deadline exists if and only if its transaction committed."""
    database, kind = place
    async with unit_of(database, kind) as unit:
        await publish(unit, 1, deliver_at=DUE)
        await unit.rollback()
    assert database.scheduled() == []


def test_a_time_in_any_zone_is_the_same_moment(database: Database) -> None:
    """Also where the database keeps the digits of a time only."""
    with Session(database.engine) as session, session.begin():
        for zone in (UTC, timezone(timedelta(hours=9)), timezone(timedelta(hours=-11, minutes=-30))):
            outbox.publish(session, placed(1), deliver_at=DUE.astimezone(zone))
    assert [
        row["deliver_at"].astimezone(UTC) if row["deliver_at"].tzinfo else row["deliver_at"].replace(tzinfo=UTC)
        for row in database.scheduled()
    ] == [DUE, DUE, DUE]


@pytest.mark.parametrize(
    ("deliver_at", "due"),
    [
        (datetime.max.replace(tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))), datetime(9999, 12, 30, tzinfo=UTC)),
        (datetime.min.replace(tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC)),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=5))), datetime(1, 1, 2, tzinfo=UTC)),
    ],
    ids=["never", "never, where UTC ends later", "at once", "at once, where UTC began later"],
)
def test_never_and_at_once_are_times_that_a_database_can_tell(
    database: Database, deliver_at: datetime, due: datetime
) -> None:
    """The ends of the calendar are infinity to a driver, and have no UTC; the event itself happens now or then."""
    before = datetime.now(UTC)
    with Session(database.engine) as session, session.begin():
        event = outbox.publish(session, {"n": 1}, type="t", deliver_at=deliver_at)
    (row,) = database.scheduled()
    assert row["deliver_at"].replace(tzinfo=UTC) == due
    assert event.time >= before


def test_the_name_may_come_from_the_running_saga(database: Database) -> None:
    """Inside a handler a deadline needs a name and nothing else."""
    with Session(database.engine) as session, session.begin(), bind(SagaContext("saga")):
        outbox.publish(session, placed(1), deliver_at=DUE, name="payment")
    assert database.scheduled()[0]["correlationid"] == "saga"


# --- cancel ---


async def cancel(unit: Any, **which: Any) -> int:
    """Cancel through any kind of handle."""
    return int(await settled(outbox.cancel(unit.handle, **which)))


async def test_cancel_by_id(place: tuple[Database, str]) -> None:
    """That one and no other."""
    database, kind = place
    async with unit_of(database, kind) as unit:
        first = await publish(unit, 1, deliver_at=DUE)
        second = await publish(unit, 2, deliver_at=DUE)
        await unit.commit()
    async with unit_of(database, kind) as unit:
        assert await cancel(unit, event_id=first.id) == 1
        assert await cancel(unit, event_id=first.id) == 0
        await unit.commit()
    assert [str(row["event_id"]) for row in database.scheduled()] == [second.id]


async def test_cancel_by_saga_and_name(place: tuple[Database, str]) -> None:
    """All of that name in that saga; other names and other sagas stay."""
    database, kind = place
    async with unit_of(database, kind) as unit:
        for saga, name, n in (("a", "pay", 1), ("a", "ship", 2), ("b", "pay", 3), ("a", "pay", 4)):
            await publish(unit, n, deliver_at=DUE, name=name, correlationid=saga)
        await unit.commit()
    async with unit_of(database, kind) as unit:
        assert await cancel(unit, correlationid="a", name="pay") == 2
        await unit.commit()
    assert [(row["correlationid"], row["name"]) for row in database.scheduled()] == [("a", "ship"), ("b", "pay")]


async def test_a_cancellation_rolled_back_is_none(place: tuple[Database, str]) -> None:
    """It takes effect with its transaction."""
    database, kind = place
    async with unit_of(database, kind) as unit:
        event = await publish(unit, 1, deliver_at=DUE)
        await unit.commit()
    async with unit_of(database, kind) as unit:
        assert await cancel(unit, event_id=event.id) == 1
        await unit.rollback()
    assert len(database.scheduled()) == 1


async def test_cancel_in_the_transaction_that_scheduled(place: tuple[Database, str]) -> None:
    """Whether its row was sent already or is still pending in the session."""
    database, kind = place
    async with unit_of(database, kind) as unit:
        events = await settled(outbox.publish_all(unit.handle, [placed(1), placed(2), placed(3)], deliver_at=DUE))
        assert await cancel(unit, event_id=events[1].id) == 1
        if isinstance(unit.handle, Session | AsyncSession):
            await settled(unit.handle.flush())
        assert await cancel(unit, event_id=events[2].id) == 1
        await unit.commit()
    assert [str(row["event_id"]) for row in database.scheduled()] == [events[0].id]


async def test_cancelling_nothing_cancels_nothing(place: tuple[Database, str]) -> None:
    """The event is gone or never was: the count tells, and no error interrupts the step that no longer needs it."""
    database, kind = place
    async with unit_of(database, kind) as unit:
        assert await cancel(unit, event_id=str(uuid4())) == 0
        assert await cancel(unit, correlationid="saga", name="payment") == 0


def test_only_scheduled_events_are_taken_back(database: Database) -> None:
    """An event that was published for now stays published, also while it is pending."""
    with Session(database.engine) as session, session.begin():
        event = outbox.publish(session, placed(1))
        assert outbox.cancel(session, event_id=event.id) == 0
    assert database.events() == [1]


def test_a_cancellation_flushes_nothing(database: Database) -> None:
    """It sends its DELETE and leaves the caller's pending objects alone."""
    with Session(database.engine) as session:
        outbox.publish(session, placed(1))
        outbox.cancel(session, event_id=str(uuid4()))
        assert database.sent("INSERT") == []
        assert database.sent("DELETE") == ["DELETE FROM"]


@pytest.mark.parametrize(
    "which",
    [{}, {"name": "x"}, {"correlationid": "x"}, {"event_id": str(uuid4()), "name": "x"}],
)
def test_a_cancellation_names_one_thing(on_sqlite: Database, which: Any) -> None:
    """Half a name would take back too much."""
    with Session(on_sqlite.engine) as session, pytest.raises(TypeError, match="either event_id="):
        outbox.cancel(session, **which)


async def test_a_cancellation_needs_a_transaction(on_sqlite: Database) -> None:
    """Like everything else here."""
    with on_sqlite.engine.connect() as connection, pytest.raises(NotInTransactionError):
        outbox.cancel(connection, event_id=str(uuid4()))
    async with AsyncSession(on_sqlite.async_engine, autobegin=False) as session:
        with pytest.raises(NotInTransactionError):
            _ = outbox.cancel(session, event_id=str(uuid4()))
