"""Scheduled events: moved when due, in the order in which they were due, each exactly once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import anyio
from sqlalchemy import update

from sagapost.core.outbox_store import DueEvents, OutboxStore
from tests.conformance.outbox.bed import Bed, StoreSuite

AGO = timedelta(minutes=-1)


class ScheduleConformance(StoreSuite):
    """`OutboxStore.move_due`."""

    async def test_without_scheduled_events_there_is_nothing_to_wait_for(self, bed: Bed) -> None:
        """Nothing moved, and no next one."""
        assert await bed.store.schedule.move_due(limit=10) == DueEvents(0, None)

    async def test_only_what_is_due_is_moved(self, bed: Bed) -> None:
        """And the time until the next one is told."""
        await bed.schedule((timedelta(hours=1), b"later"), (AGO, b"due"))
        moved, wait, _ = await bed.store.schedule.move_due(limit=10)
        assert moved == 1
        assert wait is not None
        assert timedelta(minutes=59) < wait <= timedelta(hours=1)
        assert await bed.fetch_data() == [b"due"]
        assert await bed.table(bed.factory.tables.scheduled, "data") == [(b"later",)]

    async def test_events_become_due_by_the_databases_clock(self, bed: Bed) -> None:
        """Waiting for as long as the store says is enough."""
        await bed.schedule((timedelta(milliseconds=100), b"soon"))
        with anyio.fail_after(10):
            moved, wait, _ = await bed.store.schedule.move_due(limit=10)
            while not moved:
                assert wait is not None
                await anyio.sleep(wait.total_seconds())
                moved, wait, _ = await bed.store.schedule.move_due(limit=10)
        assert (moved, wait) == (1, None)

    async def test_due_events_keep_the_order_in_which_they_were_due(self, bed: Bed) -> None:
        """Not that in which they were written."""
        await bed.schedule((3 * AGO, b"2"), (1 * AGO, b"4"), (4 * AGO, b"1"), (2 * AGO, b"3"))
        assert (await bed.store.schedule.move_due(limit=10)).moved == 4
        assert await bed.fetch_data() == [b"1", b"2", b"3", b"4"]

    async def test_a_move_is_limited(self, bed: Bed) -> None:
        """The oldest first; the rest is due at once."""
        await bed.schedule(*(((10 - n) * AGO, b"%d" % n) for n in range(5)))
        assert await bed.store.schedule.move_due(limit=3) == DueEvents(3, timedelta(0), [])
        assert await bed.fetch_data() == [b"0", b"1", b"2"]
        assert await bed.store.schedule.move_due(limit=3) == DueEvents(2, None, [])
        assert await bed.fetch_data() == [b"3", b"4"]

    async def test_the_event_is_the_one_that_was_scheduled(self, bed: Bed) -> None:
        """Same id, time, key and topic: the move is not another publish."""
        async with bed.factory.engine.begin() as connection:
            event = await bed.outbox.publish(
                connection,
                b"x",
                type="conformance.scheduled.v1",
                key="k",
                topic="a.topic",
                correlationid="saga",
                name="deadline",
                extensions={"a": "b"},
                deliver_at=datetime.now(UTC) + AGO,
            )
        await bed.store.schedule.move_due(limit=1)
        (row,) = await bed.fetch()
        assert row.event == event
        assert row.topic == "a.topic"

    async def test_what_was_due_while_no_relay_ran_happens_when_it_is_moved(self, bed: Bed) -> None:
        """Due weeks ago, it is not older than any inbox remembers: nobody can have seen it."""
        await bed.schedule((timedelta(days=1), b"late"))
        scheduled = bed.factory.tables.scheduled
        long_ago = datetime.now(UTC) - timedelta(days=30)
        async with bed.factory.engine.begin() as connection:
            await connection.execute(update(scheduled).values(deliver_at=long_ago, time=long_ago))
        assert (await bed.store.schedule.move_due(limit=1)).moved == 1
        (row,) = await bed.fetch()
        assert timedelta(0) <= datetime.now(UTC) - row.event.time < timedelta(minutes=2)

    async def test_a_time_in_another_zone_is_the_same_moment(self, bed: Bed) -> None:
        """An hour from now in a zone far away is an hour from now."""
        far = timezone(timedelta(hours=-11))
        async with bed.factory.engine.begin() as connection:
            await bed.outbox.publish(connection, b"x", type="t", deliver_at=datetime.now(far) + timedelta(hours=1))
        moved, wait, _ = await bed.store.schedule.move_due(limit=1)
        assert moved == 0
        assert wait is not None
        assert timedelta(minutes=59) < wait <= timedelta(hours=1)

    async def test_two_relays_move_each_event_once(self, bed: Bed, second: OutboxStore) -> None:
        """400 due events, two movers at once: 400 rows, each event once."""
        await bed.schedule(*((AGO, b"%d" % n) for n in range(400)))
        moved: list[int] = []

        async def move(store: OutboxStore) -> None:
            while await bed.count(bed.factory.tables.scheduled):
                moved.append((await store.schedule.move_due(limit=7)).moved)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(move, bed.store)
                group.start_soon(move, second)
        data = await bed.fetch_data()
        assert sum(moved) == 400
        assert sorted(data) == sorted(b"%d" % n for n in range(400))
        assert len(set(await bed.table(bed.factory.tables.outbox, "event_id"))) == 400
