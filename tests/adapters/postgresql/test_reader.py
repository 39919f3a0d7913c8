"""The reader under what only a real database does: late commits of any size, restored dumps, crashed servers."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

import pytest

from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.adapters.postgresql.fetch import SnapshotReader
from sagapost.adapters.postgresql.fetch_statements import FetchStatements
from sagapost.core.outbox_store import OutboxReader, Position
from sagapost.outbox import OutboxTables
from tests.adapters.postgresql.outbox import EVERYTHING, OutboxDatabase, drain, numbers

MIB = 2**20


async def test_pitfall_04_a_late_commit_comes_after_what_overtook_it(database: OutboxDatabase) -> None:
    """The first position commits last, behind 3,000 rows of others: it comes, once, and nothing comes twice."""
    async with database.reader() as reader, database.open_transaction(first=1) as late:
        await database.write(3_000, first=2)
        assert numbers(await drain(reader, max_rows=500)) == list(range(2, 3_002))
        await late.execute("COMMIT")
        assert numbers(await drain(reader)) == [1]
        assert await drain(reader) == []


async def test_a_huge_late_commit_is_paged(database: OutboxDatabase) -> None:
    """A transaction of 20,000 rows that was open all the time: in pages, in order, with the newcomers after it."""
    async with database.reader() as reader, database.open_transaction(insert=20_000, first=1) as late:
        await database.write(10, first=20_001)
        assert numbers(await drain(reader)) == list(range(20_001, 20_011))
        await late.execute("COMMIT")
        await database.write(10, first=20_011)
        assert numbers(await drain(reader, max_rows=700)) == [*range(1, 20_001), *range(20_011, 20_021)]


async def test_a_huge_commit_is_paged(database: OutboxDatabase) -> None:
    """20,000 new rows between two fetches; what commits while they are being paged comes after them."""
    async with database.reader() as reader:
        assert await drain(reader) == []
        await database.write(20_000, first=1)
        rows = list((await reader.fetch(EVERYTHING, max_rows=700, max_bytes=2**25)).rows)
        await database.write(10, first=20_001)
        rows += await drain(reader, max_rows=700)
        assert numbers(rows) == list(range(1, 20_011))


async def test_gaps_and_deleted_stretches_cost_no_round_trip_each(database: OutboxDatabase) -> None:
    """Rolled-back positions, and rows settled long ago, between the rows of a backlog."""
    await database.write(10, first=1)
    await database.sql.execute("SELECT setval('outbox_position_seq', 50000000)")
    await database.write(10, first=11)
    await database.sql.execute("SELECT setval('outbox_position_seq', 90000000)")
    await database.write(10, first=21)
    async with database.reader() as reader:
        pages = 0
        rows: list[int] = []
        while True:
            page = await reader.fetch(EVERYTHING, max_rows=100, max_bytes=2**25)
            pages += 1
            rows += numbers(page.rows)
            if page.caught_up:
                break
        assert rows == list(range(1, 31))
        assert pages <= 6


async def test_a_transaction_open_since_before_the_first_row_slows_nothing(database: OutboxDatabase) -> None:
    """G8: 30,000 rows come and go under it, and the pages touched per fetch do not grow."""
    async with database.counted_reader() as (reader, pages_read), database.open_transaction():
        await drain(reader)
        reads: list[int] = []
        for batch in range(30):
            await database.write(1_000, first=batch * 1_000 + 2)
            before = await pages_read()
            assert len(await drain(reader)) == 1_000
            reads.append(await pages_read() - before)
            await database.sql.execute("DELETE FROM outbox")
        print(reads)
        assert min(reads) > 0, "the reader's own pages are not counted"
        assert max(reads[-5:]) < 2 * max(reads[:5])


async def test_rows_of_a_mebibyte_are_paged_by_bytes(database: OutboxDatabase) -> None:
    """60 MiB of rows in pages of 4: this process never holds much more than one page."""
    await database.write(60, size=MIB)
    async with database.reader() as reader:
        tracemalloc.start()
        count = 0
        while True:
            page = await reader.fetch(EVERYTHING, max_rows=1_000, max_bytes=4 * MIB)
            assert sum(len(row.event.data) for row in page.rows) <= 4 * MIB
            count += len(page.rows)
            if page.caught_up:
                break
            del page
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == 60
        # The bytes of a page exist as received and as decoded.
        assert peak < 20 * MIB


async def test_a_delta_of_large_rows_is_paged_by_bytes(database: OutboxDatabase) -> None:
    """Few rows, but too heavy for one answer."""
    async with database.reader() as reader:
        await drain(reader)
        await database.write(10, size=MIB)
        pages: list[int] = []
        while sum(pages) < 10:
            page = await reader.fetch(EVERYTHING, max_rows=1_000, max_bytes=3 * MIB)
            pages.append(len(page.rows))
        assert max(pages) == 3


# --- other histories ---


async def test_pitfall_06_rows_from_the_future_are_stamped_anew(database: OutboxDatabase) -> None:
    """A dump of a cluster with higher transaction ids was restored here: the rows come, in order, and only once."""
    await database.write(2_000, first=1)
    await database.sql.execute("UPDATE outbox SET xid = '4000000000'")
    async with database.reader() as reader:
        assert numbers(await drain(reader)) == list(range(1, 2_001))
        await database.write(5, first=2_001)
        assert numbers(await drain(reader)) == list(range(2_001, 2_006))


async def test_pitfall_06_rows_restored_under_a_running_relay_come_with_its_next_start(
    database: OutboxDatabase,
) -> None:
    """Restored behind its back they look like rows of transactions yet to come; the regular restart finds them."""
    async with database.reader() as reader:
        await drain(reader)
        await database.write(3, first=1)
        await database.sql.execute("UPDATE outbox SET xid = '4000000000'")
        await drain(reader)
        reader.restart()
        assert numbers(await drain(reader)) == [1, 2, 3]


async def test_a_new_connection_starts_over(database: OutboxDatabase) -> None:
    """After a crash the server may give a transaction id out a second time; to the old snapshot its rows are old news.

    Such a row is made here by hand: its transaction id is one that the reader has seen completed.
    """
    async with database.reader() as reader:
        await database.write(3, first=1)
        assert numbers(await drain(reader)) == [1, 2, 3]
        await database.write(1, first=4)
        await database.sql.execute("UPDATE outbox SET xid = '700' WHERE convert_from(data, 'UTF8') = '4'")
        assert await drain(reader) == [], "this reader cannot tell; the test would prove nothing otherwise"
        await _end_sessions(database, "sagapost-fetch")
        assert numbers(await drain(reader)) == [1, 2, 3, 4]
        assert await drain(reader) == []


async def test_what_was_asked_for_survives_a_new_connection(database: OutboxDatabase) -> None:
    """A row that is gone is still reported as missing, a key still as released: the gate waits for both."""
    async with database.reader() as reader:
        first = await database.write_one(1)
        await database.write_one(2)
        await drain(reader)
        await _end_sessions(database, "sagapost-fetch")
        reader.revisit([Position(first + 1_000)])
        reader.replay_key("k", above=Position(first))
        missing: frozenset[Position] = frozenset()
        released: frozenset[str] = frozenset()
        rows: list[int] = []
        for _ in range(10):
            page = await reader.fetch(EVERYTHING, max_rows=100, max_bytes=2**25)
            missing |= page.missing
            released |= page.released
            rows += numbers(page.rows)
        assert missing == {first + 1_000}
        assert released == {"k"}
        assert rows[:2] == [1, 2]


async def _end_sessions(database: OutboxDatabase, name: str) -> None:
    ended = await database.value(
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
        "WHERE application_name = $1 AND datname = current_database()",
        name,
    )
    assert ended == 1
    # The end of the stream is noticed on the loop, as it is by a relay that sleeps.
    await asyncio.sleep(0.05)


class _FailedOver:
    """A link through a pooler: one connection, and behind it first a server and then its lagging standby."""

    opened = 1

    def __init__(self, *answers: tuple[str, int]) -> None:
        self.answers = list(answers)
        """Snapshots, each with the second in which the server was started that took it."""
        self.server = 0
        self.asked: list[str] = []

    async def fetchrow(self, sql: str, *_args: object) -> Sequence[object]:
        (row,) = await self.fetch(sql)
        return row

    async def fetch(self, sql: str, *_args: object) -> Sequence[Sequence[object]]:
        if "setval" in sql:
            return []
        if sql.strip().startswith("UPDATE"):
            self.asked.append("restamp")
            return []
        if "AS first" in sql:
            self.asked.append("page")
            return [self._header(None, self.server)]
        snapshot, self.server = self.answers.pop(0)
        if sql.startswith("SELECT pg_current_snapshot"):
            lowest, highest, _ = snapshot.split(":")
            return [[(int(lowest), int(highest), ()), _started(self.server)]]
        self.asked.append("delta")
        return [self._header(snapshot, self.server)]

    def _header(self, snapshot: str | None, server: int) -> Sequence[object]:
        return [0, 0, snapshot, None, None, None, _started(server), *[None] * 10, 0, 1.0]


def _started(second: int) -> datetime:
    return datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)


@pytest.mark.parametrize(
    "later",
    [
        pytest.param([("90:90:", 1), ("90:90:", 1)], id="its transaction ids went back"),
        pytest.param([("130:130:", 2), ("131:131:", 2)], id="its transaction ids have passed the old ones"),
    ],
)
async def test_another_server_behind_the_same_connection_starts_over(later: list[tuple[str, int]]) -> None:
    """Behind a pooler a standby may take over without the connection noticing: ids or the start of the server tell."""
    link = _FailedOver(("100:100:", 1), ("120:120:", 1), *later)
    statements = FetchStatements(OutboxTables().outbox, OutboxTables().dead)
    reader: OutboxReader = SnapshotReader(cast("PostgreSQLLink", link), statements, 32)
    for _ in range(3):
        await reader.fetch(EVERYTHING, max_rows=10, max_bytes=10)
    assert link.asked == ["restamp", "page", "delta", "delta", "restamp", "page"]


# --- everything at once ---


@pytest.mark.parametrize("seed", [random.randrange(2**32) for _ in range(1)], ids=["fresh-seed"])
async def test_no_row_is_lost_doubled_or_before_its_cause(database: OutboxDatabase, seed: int) -> None:
    """Writers that take a key's row lock, commit early, late or never, while a reader fetches pages of all sizes."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    await database.sql.execute("CREATE TABLE keys (key text PRIMARY KEY, version int NOT NULL)")
    await database.sql.execute("INSERT INTO keys SELECT 'k' || n, 0 FROM generate_series(0, 4) n")
    committed: set[tuple[str, int]] = set()
    seen: list[tuple[str, int]] = []
    done = asyncio.Event()

    async def write(writer: random.Random) -> None:
        async with database.session() as session:
            for _ in range(120):
                key = f"k{writer.randrange(5)}"
                await session.execute("BEGIN")
                version = await database.value(
                    "UPDATE keys SET version = version + 1 WHERE key = $1 RETURNING version", key, through=session
                )
                await database.write_one(version, key=key, through=session)
                if writer.random() < 0.2:
                    await asyncio.sleep(writer.uniform(0, 0.02))
                if writer.random() < 0.15:
                    await session.execute("ROLLBACK")
                    continue
                await session.execute("COMMIT")
                committed.add((key, version))

    async def read(reader: OutboxReader) -> None:
        caught_up = False
        while not (caught_up and done.is_set()):
            last_round = done.is_set()
            page = await reader.fetch(EVERYTHING, max_rows=rng.choice([1, 3, 1_000]), max_bytes=rng.choice([1, 2**20]))
            seen.extend((str(row.event.partitionkey), int(row.event.data)) for row in page.rows)
            caught_up = page.caught_up and last_round

    async with database.reader() as reader, asyncio.TaskGroup() as tasks:
        tasks.create_task(read(reader))
        async with asyncio.TaskGroup() as writers:
            for _ in range(6):
                writers.create_task(write(random.Random(rng.randrange(2**32))))
        done.set()
    assert len(seen) == len(set(seen)), "a row came twice"
    assert set(seen) == committed
    for key in {key for key, _ in seen}:
        versions = [version for name, version in seen if name == key]
        assert versions == sorted(versions)
