"""The SQLite outbox store: the port's suite, and what is SQLite's own."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

import anyio
import anyio.lowlevel
import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.adapters.sqlite import SQLiteOutboxStore
from sagapost.core.errors import ConfigurationError, SchemaError, StoreRefusedError, StoreUnavailableError
from sagapost.core.outbox_store import RelayId
from sagapost.core.schema import install_schema
from sagapost.outbox import Outbox, OutboxTables
from tests.conformance.outbox_store import OutboxStoreConformance, StoreFactory

TTL = timedelta(seconds=30)


class TestSQLiteOutboxStore(OutboxStoreConformance):
    """The suite, on a file of its own for each test."""

    @pytest.fixture
    async def store_factory(self, tmp_path: Path) -> AsyncGenerator[StoreFactory, None]:
        """A database file with the tables, and an empty one."""
        path, empty, tables = tmp_path / "orders & 100%?.db", tmp_path / "empty.db", OutboxTables(prefix="my_")
        empty.touch()
        engine = create_async_engine(URL.create("sqlite+aiosqlite", database=str(path)))
        async with engine.begin() as connection:
            await connection.run_sync(install_schema, tables.versions, [tables.part])
        yield StoreFactory(
            open=lambda: SQLiteOutboxStore(path, tables=tables),
            engine=engine,
            tables=tables,
            open_empty=lambda: SQLiteOutboxStore(empty, tables=tables),
        )
        await engine.dispose()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file with the tables under their default names."""
    path = tmp_path / "orders.db"
    install(path)
    return path


def install(path: Path) -> None:
    """Create the tables in a file."""
    tables = OutboxTables()
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        install_schema(connection, tables.versions, [tables.part])
    engine.dispose()


# --- configuration ---


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://localhost/orders", "names 'postgresql'"),
        ("sqlite://", "'an empty name' names none"),
        ("sqlite+aiosqlite:///:memory:", "':memory:' names none"),
        (":memory:", "':memory:' names none"),
        ("sqlite:///file:orders.db?uri=true", "names none"),
        ("", "'an empty name' names none"),
        ("://", "cannot be read"),
    ],
)
def test_a_url_that_names_no_file_is_refused(url: str, reason: str) -> None:
    """A database that several connections cannot share is no place for an outbox; the error shows a good URL."""
    with pytest.raises(ConfigurationError, match=reason) as caught:
        SQLiteOutboxStore(url)
    assert "sqlite+aiosqlite:///var/orders.db" in str(caught.value)


@pytest.mark.parametrize("form", ["{}", "sqlite:///{}", "sqlite+aiosqlite:///{}"])
async def test_the_file_is_named_by_url_or_by_path(path: Path, form: str) -> None:
    """All forms reach the same file."""
    store = SQLiteOutboxStore(form.format(path))
    await store.check_schema()
    assert store.address == str(path)
    await store.aclose()


# --- the file ---


async def test_a_missing_file_is_not_created(tmp_path: Path) -> None:
    """A mistyped path is an error, not a new and empty database."""
    path = tmp_path / "typo.db"
    store = SQLiteOutboxStore(path)
    with pytest.raises(SchemaError, match=r"There is no file .*typo\.db.*sagapost db upgrade"):
        await store.check_schema()
    with pytest.raises(StoreUnavailableError, match="SQLITE_CANTOPEN"):
        await store.backlog.measure()
    assert not path.exists()


async def test_a_store_recovers_once_the_file_is_there(tmp_path: Path) -> None:
    """A failed call is no end: the next one opens the file anew."""
    path = tmp_path / "later.db"
    store = SQLiteOutboxStore(path)
    with pytest.raises(StoreUnavailableError):
        await store.leases.partition_count()
    install(path)
    assert await store.leases.partition_count() == 32
    await store.aclose()


async def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    """A person has to look: retrying cannot help."""
    path = tmp_path / "notes.txt"
    path.write_text("this is not a database, " * 100)
    store = SQLiteOutboxStore(path)
    with pytest.raises(StoreRefusedError, match=r"SQLITE_NOTADB.*check that the path"):
        await store.backlog.measure()
    with pytest.raises(StoreRefusedError):
        await store.check_schema()


async def test_the_file_is_put_into_wal_mode(path: Path) -> None:
    """Readers and the writer then do not block one another."""
    store = SQLiteOutboxStore(path)
    await store.backlog.measure()
    await store.aclose()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_relays_that_start_at_once_share_the_change_of_mode(path: Path) -> None:
    """The change fails at once while anybody else uses the file, so it is tried again within the busy timeout."""
    stores = [SQLiteOutboxStore(path) for _ in range(8)]
    async with anyio.create_task_group() as group:
        for store in stores:
            group.start_soon(store.backlog.measure)
            group.start_soon(store.leases.partition_count)
    for store in stores:
        await store.aclose()


async def test_a_file_that_stays_in_use_is_reported(path: Path) -> None:
    """As unavailable, not as an endless wait."""
    store = SQLiteOutboxStore(path, busy_timeout=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="SQLITE_BUSY"):
            await store.backlog.measure()
    assert (await store.backlog.measure()).pending == 0
    await store.aclose()


# --- one writer ---


async def test_a_writer_in_the_way_is_waited_for_and_then_reported(path: Path) -> None:
    """A write fails as unavailable after the busy timeout; a read does not wait at all; then all is well again."""
    store = SQLiteOutboxStore(path, busy_timeout=0.05)
    relay = RelayId(uuid4())
    claims = await store.leases.claim(relay, want=await store.leases.partition_count())
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="SQLITE_BUSY"):
            await store.leases.heartbeat(relay, claims, ttl=TTL)
        assert (await store.backlog.measure()).pending == 0
        writer.execute("ROLLBACK")
    assert (await store.leases.heartbeat(relay, claims, ttl=TTL)).held == frozenset(claims)
    await store.aclose()


async def test_a_writer_that_ends_in_time_costs_nothing_but_time(path: Path) -> None:
    """The busy timeout bridges another transaction."""
    store = SQLiteOutboxStore(path, busy_timeout=10)
    relay = RelayId(uuid4())
    await store.leases.partition_count()
    claimed: list[int] = []
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as writer:
        writer.execute("BEGIN IMMEDIATE")

        async def claim() -> None:
            claimed.append(len(await store.leases.claim(relay, want=32)))

        async with anyio.create_task_group() as group:
            group.start_soon(claim)
            # The claim is in its thread by now, or will find the lock free: either way it succeeds.
            await anyio.lowlevel.checkpoint()
            writer.execute("COMMIT")
    await store.aclose()
    assert claimed == [32]


async def test_a_cancelled_call_leaves_no_transaction_open(path: Path) -> None:
    """Cancelling waits for the thread, which finishes its transaction; the file is free afterwards."""
    store = SQLiteOutboxStore(path, busy_timeout=10)
    await store.leases.partition_count()
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as writer:
        for _ in range(20):
            writer.execute("BEGIN IMMEDIATE")
            async with anyio.create_task_group() as group:
                group.start_soon(partial(store.leases.heartbeat, RelayId(uuid4()), {}, ttl=TTL))
                await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
                writer.execute("ROLLBACK")
            # With no timeout: a transaction left open would make this fail.
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("ROLLBACK")
    await store.aclose()


async def test_the_doorbell_hears_another_process(path: Path) -> None:
    """Also a writer that shares nothing but the file, here a synchronous one."""
    store, outbox = SQLiteOutboxStore(path), Outbox(source="s")
    engine = create_engine(f"sqlite:///{path}")
    async with store.doorbell() as bell:
        await bell.arm()
        with engine.begin() as connection:
            outbox.publish(connection, b"", type="t")
        assert await bell.wait(5)
    engine.dispose()
    await store.aclose()


async def test_reused_positions_do_not_exist(path: Path) -> None:
    """AUTOINCREMENT: what is written after everything was deleted still lies behind the cursor."""
    store, outbox = SQLiteOutboxStore(path), Outbox(source="s")
    relay = RelayId(uuid4())
    claims = await store.leases.claim(relay, want=await store.leases.partition_count())
    engine = create_engine(f"sqlite:///{path}")
    async with store.reader() as reader:
        for n in range(3):
            with engine.begin() as connection:
                outbox.publish(connection, b"%d" % n, type="t")
            page = await reader.fetch(claims, max_rows=10, max_bytes=1_000)
            assert [row.event.data for row in page.rows] == [b"%d" % n]
            (row,) = page.rows
            assert (
                await store.settlement.delete_published({row.partition: [(row.position, row.event.id)]}, claims) == 1
            )
    engine.dispose()
    await store.aclose()
