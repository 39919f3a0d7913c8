"""The time of an event is one that no publisher's clock can bend."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sagapost.core.clock import SystemClock
from sagapost.core.envelope import Event
from sagapost.outbox import Outbox
from sagapost.outbox.recorded import AHEAD, BEHIND
from tests.outbox.write.service import SOURCE, Database, placed, tables

DAYS = timedelta(days=8)


class Skewed(SystemClock):
    """The clock of a host that is wrong by this much."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self) -> datetime:
        return super().now() + self._by


def times(database: Database) -> list[datetime]:
    """Return the times of the committed events, in the order of the outbox."""
    with database.engine.connect() as connection:
        found = connection.scalars(select(tables.outbox.c.time).order_by(tables.outbox.c.position))
        return [moment if moment.tzinfo else moment.replace(tzinfo=UTC) for moment in found]


async def publish(database: Database, outbox: Outbox, handle: str, *payloads: Any) -> list[Event]:
    """Publish through one kind of handle."""
    if handle == "connection":
        with database.engine.begin() as connection:
            return outbox.publish_all(connection, payloads)
    if handle == "session":
        with Session(database.engine) as session, session.begin():
            return outbox.publish_all(session, payloads)
    if handle == "async connection":
        async with database.async_engine.begin() as asynchronous:
            return await outbox.publish_all(asynchronous, payloads)
    async with AsyncSession(database.async_engine) as session_, session_.begin():
        return await outbox.publish_all(session_, payloads)


HANDLES = ["connection", "session", "async connection", "async session"]


@pytest.mark.servers
@pytest.mark.parametrize("handle", HANDLES)
@pytest.mark.parametrize("by", [-DAYS, DAYS], ids=["behind", "ahead"])
@pytest.mark.parametrize("count", [1, 3])
async def test_a_wrong_clock_is_corrected_by_the_databases(
    on_postgresql: Database, handle: str, by: timedelta, count: int
) -> None:
    """Days behind or ahead: the row is from now, and the events of one transaction keep their order."""
    outbox = Outbox(source=SOURCE, tables=tables, clock=Skewed(by))
    before = datetime.now(UTC)
    await publish(on_postgresql, outbox, handle, *map(placed, range(count)))
    after = datetime.now(UTC)
    found = times(on_postgresql)
    assert len(found) == count
    assert found == sorted(found)
    assert all(before - BEHIND <= moment <= after + AHEAD for moment in found)


@pytest.mark.parametrize("handle", HANDLES)
async def test_a_right_clock_is_kept_to_the_microsecond(database: Database, handle: str) -> None:
    """What publish() returned is what the relay sends."""
    events = await publish(database, Outbox(source=SOURCE, tables=tables), handle, placed(1), placed(2))
    assert times(database) == [event.time for event in events]
