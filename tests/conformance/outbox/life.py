"""Everything around the rows: the schema, the doorbell, the figures, opening and closing."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest
from sqlalchemy import update

from sagapost.core.errors import SchemaError
from sagapost.outbox.migrations import OUTBOX_SCHEMA_VERSION
from tests.conformance.outbox.bed import Bed, StoreFactory, StoreSuite, failure, requires

AT_ONCE = 5.0
"""Far above what a doorbell takes, far below what a test may take."""


class LifeConformance(StoreSuite):
    """Schema check, doorbell and backlog of `OutboxStore`."""

    # --- schema ---

    async def test_installed_tables_are_accepted(self, bed: Bed) -> None:
        """No answer is the good answer."""
        await bed.store.check_schema()

    async def test_missing_tables_are_named(self, store_factory: StoreFactory) -> None:
        """The error says that there are none, and what to run."""
        store = store_factory.open_empty()
        try:
            with pytest.raises(SchemaError, match="sagapost db upgrade") as caught:
                await store.check_schema()
        finally:
            await store.aclose()
        assert caught.value.found is None
        assert caught.value.expected == OUTBOX_SCHEMA_VERSION

    @pytest.mark.parametrize(("version", "remedy"), [(0, "sagapost db upgrade"), (99, "Upgrade the sagapost package")])
    async def test_tables_of_another_release_are_refused(self, bed: Bed, version: int, remedy: str) -> None:
        """The error tells which side is behind."""
        versions = bed.factory.tables.versions
        async with bed.factory.engine.begin() as connection:
            await connection.execute(update(versions).where(versions.c.part == "outbox").values(version=version))
        with pytest.raises(SchemaError, match=remedy) as caught:
            await bed.store.check_schema()
        assert caught.value.found == version

    # --- doorbell ---

    async def test_a_commit_rings(self, bed: Bed) -> None:
        """A relay that sleeps wakes when a writer commits."""
        requires(bed.store.capabilities.doorbell, "doorbell")
        rung: list[bool] = []
        async with bed.store.doorbell() as bell:
            await bell.arm()

            async def wait() -> None:
                rung.append(await bell.wait(AT_ONCE))

            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await bed.write(("a", b"1"))
            await bell.disarm()
        assert rung == [True]

    async def test_a_commit_between_arming_and_waiting_rings(self, bed: Bed) -> None:
        """There is no gap in which a writer goes unheard."""
        requires(bed.store.capabilities.doorbell, "doorbell")
        async with bed.store.doorbell() as bell:
            await bell.arm()
            await bed.write(("a", b"1"))
            assert await bell.wait(AT_ONCE)
            await bell.disarm()

    async def test_a_bell_rings_again(self, bed: Bed) -> None:
        """Sleep after sleep, on the same bell."""
        requires(bed.store.capabilities.doorbell, "doorbell")
        async with bed.store.doorbell() as bell:
            for _ in range(3):
                await bell.arm()
                await bed.write(("a", b"1"))
                assert await bell.wait(AT_ONCE)
                await bell.disarm()

    async def test_silence_times_out(self, bed: Bed) -> None:
        """Without a commit the sleep ends by itself, and says so."""
        requires(bed.store.capabilities.doorbell, "doorbell")
        async with bed.store.doorbell() as bell:
            await bell.arm()
            assert not await bell.wait(0.05)
            await bell.disarm()

    async def test_a_rollback_does_not_ring(self, bed: Bed) -> None:
        """What was undone wakes nobody."""
        requires(bed.store.capabilities.doorbell, "doorbell")
        async with bed.store.doorbell() as bell:
            await bell.arm()
            async with bed.factory.engine.connect() as connection:
                transaction = await connection.begin()
                await bed.insert(connection, ("a", b"1"))
                await transaction.rollback()
            assert not await bell.wait(0.05)
            await bell.disarm()

    # --- figures ---

    async def test_an_empty_outbox_has_no_backlog(self, bed: Bed) -> None:
        """Zeros, and no oldest row."""
        backlog = await bed.store.backlog.measure()
        assert (backlog.pending, backlog.scheduled, backlog.held, backlog.dead) == (0, 0, 0, 0)
        assert backlog.oldest_age is None

    async def test_the_backlog_is_counted(self, bed: Bed) -> None:
        """Waiting, scheduled, refused and dead rows, and the age of the oldest."""
        await bed.write(("a", b"1"), ("b", b"2"), ("c", b"3"), ("d", b"4"))
        await bed.schedule((timedelta(hours=1), b"5"), (timedelta(hours=2), b"6"))
        rows = await bed.fetch()
        await bed.store.settlement.record_failures([failure(rows[1]), failure(rows[2])], bed.claims)
        await bed.store.settlement.bury([failure(rows[3])], bed.claims, block_keys=True)
        backlog = await bed.store.backlog.measure()
        assert (backlog.pending, backlog.scheduled, backlog.held, backlog.dead) == (3, 2, 2, 1)
        assert backlog.oldest_age is not None
        assert timedelta(0) <= backlog.oldest_age < timedelta(minutes=1)

    # --- closing ---

    async def test_closing_twice_is_fine(self, store_factory: StoreFactory) -> None:
        """Also when nothing was ever opened."""
        unused, used = store_factory.open(), store_factory.open()
        await used.backlog.measure()
        for store in (unused, used):
            await store.aclose()
            await store.aclose()

    async def test_the_address_is_shown_without_the_password(self, bed: Bed) -> None:
        """It goes into logs and errors."""
        password = bed.factory.engine.url.password
        assert bed.store.address
        if password:
            assert str(password) not in bed.store.address
            assert str(password) not in repr(bed.store)
