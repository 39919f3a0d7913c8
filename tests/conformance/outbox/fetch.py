"""Fetching: every committed row once, in order, in pages, and again when asked."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sagapost.core import SagaContext, bind
from sagapost.core.outbox_store import Position
from sagapost.outbox import Outbox
from tests.conformance.outbox.bed import BYTES, MANY, Bed, StoreSuite, by_partition, failure, requires


class FetchConformance(StoreSuite):
    """`OutboxStore.reader`."""

    async def test_an_empty_outbox_is_caught_up(self, bed: Bed) -> None:
        """A fetch of nothing says so, and promises nothing else."""
        page = await bed.reader.fetch(bed.claims, max_rows=MANY, max_bytes=BYTES)
        rest = await bed.fetch()
        assert list(page.rows) == []
        assert rest == []
        assert page.released == frozenset()
        assert page.missing == frozenset()

    async def test_rows_come_in_the_order_of_writing(self, bed: Bed) -> None:
        """Three transactions, five rows: one sequence, ascending positions."""
        await bed.write(("a", b"1"), ("b", b"2"))
        await bed.write(("a", b"3"))
        await bed.write((None, b"4"), ("b", b"5"))
        rows = await bed.fetch()
        assert [row.event.data for row in rows] == [b"1", b"2", b"3", b"4", b"5"]
        assert [row.event.partitionkey for row in rows] == ["a", "b", "a", None, "b"]
        assert [row.position for row in rows] == sorted({row.position for row in rows})

    async def test_each_row_comes_once(self, bed: Bed) -> None:
        """What was returned is not returned again, also while it is not settled."""
        await bed.write(("a", b"1"))
        assert await bed.fetch_data() == [b"1"]
        assert await bed.fetch_data() == []
        await bed.write(("a", b"2"))
        assert await bed.fetch_data() == [b"2"]
        assert await bed.fetch_data() == []

    async def test_the_envelope_survives_the_row(self, bed: Bed) -> None:
        """Every attribute of the event comes back as it was published."""
        outbox = Outbox(source="https://söurce.example", tables=bed.factory.tables)
        saga = SagaContext(
            correlationid="saga-1",
            causationid="cause-1",
            traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            tracestate="vendor=value",
        )
        with bind(saga):
            async with bed.factory.engine.begin() as connection:
                full = await outbox.publish(
                    connection,
                    b"\x00\xff{",
                    type="conformance.full.v1",
                    key="schlüssel",
                    subject="subject/1",
                    topic="a.topic",
                    datacontenttype="application/avro",
                    dataschema="https://schema.example/1",
                    extensions={"region": "eu", "n": '"quoted" \\ ünïcode'},
                )
                bare = await outbox.publish(connection, b"", type="conformance.bare.v1", correlationid="saga-2")
        rows = await bed.fetch()
        assert [row.event for row in rows] == [full, bare]
        assert [row.topic for row in rows] == ["a.topic", "conformance.bare.v1"]
        assert rows[0].event.time.utcoffset() == datetime.now(UTC).utcoffset()
        assert rows[0].event.correlationid == "saga-1"
        assert rows[0].event.causationid == "cause-1"
        assert rows[0].event.extensions == {"region": "eu", "n": '"quoted" \\ ünïcode'}
        assert rows[1].event.correlationid == "saga-2"
        assert [(row.attempts, row.retry_in) for row in rows] == [(0, 0.0), (0, 0.0)]

    async def test_the_partition_follows_from_the_key(self, bed: Bed) -> None:
        """Rows of one key share a partition; rows without a key are spread by their id."""
        await bed.write(("a", b""), ("a", b""), ("b", b""), (None, b""))
        rows = await bed.fetch()
        count = await bed.store.leases.partition_count()
        assert rows[0].partition == rows[1].partition
        assert rows[2].partition != rows[0].partition
        assert all(0 <= row.partition < count for row in rows)
        await bed.write(*[(None, b"")] * 200)
        assert len({row.partition for row in await bed.fetch()}) > count // 2

    async def test_only_claimed_partitions_are_read(self, bed: Bed) -> None:
        """Rows of partitions that are not claimed are left to their owner."""
        await bed.write(("a", b"a1"), ("b", b"b1"), ("a", b"a2"))
        partitions = {row.event.partitionkey: row.partition for row in await bed.fetch()}
        assert partitions["a"] != partitions["b"]
        bed.reader.restart()
        mine = {p: token for p, token in bed.claims.items() if p == partitions["b"]}
        page = await bed.reader.fetch(mine, max_rows=MANY, max_bytes=BYTES)
        assert [row.event.data for row in page.rows] == [b"b1"]
        bed.reader.restart()
        page = await bed.reader.fetch({}, max_rows=MANY, max_bytes=BYTES)
        assert list(page.rows) == []

    # --- pages ---

    async def test_pages_are_cut_by_rows(self, bed: Bed) -> None:
        """At most `max_rows` at a time, all of them in the end, in order and once."""
        await bed.write(*(("a", b"%d" % n) for n in range(7)))
        pages = [await bed.reader.fetch(bed.claims, max_rows=3, max_bytes=BYTES) for _ in range(3)]
        rows = [row.event.data for page in pages for row in page.rows] + await bed.fetch_data()
        assert all(len(page.rows) <= 3 for page in pages)
        assert not pages[0].caught_up
        assert rows == [b"0", b"1", b"2", b"3", b"4", b"5", b"6"]

    async def test_pages_are_cut_by_bytes(self, bed: Bed) -> None:
        """A page holds at most `max_bytes` of data, give or take one row."""
        await bed.write(*(("a", bytes([n]) * 1_000) for n in range(6)))
        sizes: list[int] = []
        seen: list[int] = []
        for _ in range(20):
            page = await bed.reader.fetch(bed.claims, max_rows=MANY, max_bytes=2_500)
            sizes.append(sum(len(row.event.data) for row in page.rows))
            seen += [row.event.data[0] for row in page.rows]
            if page.caught_up:
                break
        assert seen == [0, 1, 2, 3, 4, 5]
        assert max(sizes) <= 3_500

    async def test_a_row_larger_than_a_page_still_comes(self, bed: Bed) -> None:
        """The byte limit never stops the queue."""
        await bed.write(("a", b"x" * 100_000), ("a", b"y"))
        assert [row.event.data[:1] for row in await bed.fetch(max_bytes=10)] == [b"x", b"y"]

    async def test_rows_written_between_pages_come_after(self, bed: Bed) -> None:
        """A page boundary neither loses nor repeats what is written meanwhile."""
        await bed.write(("a", b"1"), ("a", b"2"), ("a", b"3"))
        first = await bed.reader.fetch(bed.claims, max_rows=2, max_bytes=BYTES)
        await bed.write(("a", b"4"))
        assert [row.event.data for row in first.rows] + await bed.fetch_data() == [b"1", b"2", b"3", b"4"]

    # --- transactions ---

    async def test_what_is_not_committed_is_not_seen(self, bed: Bed) -> None:
        """Neither rows of an open transaction nor those of one that was rolled back."""
        async with bed.factory.engine.connect() as connection:
            transaction = await connection.begin()
            await bed.insert(connection, ("a", b"never"))
            assert await bed.fetch_data() == []
            await transaction.rollback()
        await bed.write(("a", b"1"))
        assert await bed.fetch_data() == [b"1"]

    async def test_a_late_commit_is_not_skipped(self, bed: Bed) -> None:
        """A row with a low position that commits after higher ones were fetched is delivered."""
        requires(bed.store.capabilities.concurrent_writers, "concurrent_writers")
        async with bed.factory.engine.connect() as late:
            transaction = await late.begin()
            await bed.insert(late, ("late", b"low"))
            await bed.write(("early", b"high"))
            assert await bed.fetch_data() == [b"high"]
            await transaction.commit()
        assert await bed.fetch_data() == [b"low"]
        assert await bed.fetch_data() == []

    async def test_a_late_commit_and_what_it_caused_keep_their_order(self, bed: Bed) -> None:
        """Straggler and newcomer in one fetch come in the order in which they could cause one another."""
        requires(bed.store.capabilities.concurrent_writers, "concurrent_writers")
        async with bed.factory.engine.connect() as late:
            transaction = await late.begin()
            await bed.insert(late, ("k", b"1"))
            await bed.write(("other", b"between"))
            assert await bed.fetch_data() == [b"between"]
            await transaction.commit()
        await bed.write(("k", b"2"))
        assert await bed.fetch_data() == [b"1", b"2"]

    async def test_a_straggler_may_follow_a_newcomer(self, bed: Bed) -> None:
        """An old transaction that writes a key after a younger one committed to it comes second."""
        requires(bed.store.capabilities.concurrent_writers, "concurrent_writers")
        async with bed.factory.engine.connect() as old:
            transaction = await old.begin()
            await bed.insert(old, ("begun", b"0"))
            assert await bed.fetch_data() == []
            await bed.write(("k", b"1"))
            await bed.insert(old, ("k", b"2"))
            await transaction.commit()
        data = await bed.fetch_data()
        assert [value for value in data if value != b"0"] == [b"1", b"2"]
        assert sorted(data) == [b"0", b"1", b"2"]

    async def test_an_open_transaction_is_announced_to_a_relay_about_to_sleep(self, bed: Bed) -> None:
        """It wrote before the bell was armed, so it will commit without ringing: the page says to poll soon."""
        requires(bed.store.capabilities.concurrent_writers, "concurrent_writers")
        await bed.fetch()
        async with bed.factory.engine.connect() as connection, bed.store.doorbell() as bell:
            transaction = await connection.begin()
            await bed.insert(connection, ("a", b"1"))
            await bell.arm()
            page = await bed.reader.fetch(bed.claims, max_rows=MANY, max_bytes=BYTES)
            assert page.writers_in_progress
            await transaction.commit()
            await bell.disarm()

    # --- again ---

    async def test_restart_returns_what_is_not_settled(self, bed: Bed) -> None:
        """From the oldest row on; what was deleted stays away."""
        await bed.write(("a", b"1"), ("b", b"2"), ("a", b"3"))
        rows = await bed.fetch()
        await bed.store.settlement.delete_published(by_partition(rows[:1]), bed.claims)
        bed.reader.restart()
        assert await bed.fetch_data() == [b"2", b"3"]

    async def test_a_new_reader_starts_from_the_oldest(self, bed: Bed) -> None:
        """The cursor lives in the reader alone."""
        await bed.write(("a", b"1"))
        assert await bed.fetch_data() == [b"1"]
        async with bed.store.reader() as reader:
            page = await reader.fetch(bed.claims, max_rows=MANY, max_bytes=BYTES)
        assert [row.event.data for row in page.rows] == [b"1"]

    async def test_a_revisited_row_comes_with_the_next_fetch(self, bed: Bed) -> None:
        """Again, once, with what was recorded on it, merged with what is new."""
        await bed.write(("a", b"1"), ("b", b"2"))
        rows = await bed.fetch()
        await bed.store.settlement.record_failures([failure(rows[0])], bed.claims)
        await bed.write(("c", b"3"))
        bed.reader.revisit([rows[0].position])
        again = await bed.fetch()
        assert [(row.event.data, row.attempts) for row in again] == [(b"1", 1), (b"3", 0)]
        assert 50 < again[0].retry_in <= 60
        assert await bed.fetch_data() == []

    async def test_a_revisit_needs_no_room(self, bed: Bed) -> None:
        """With `max_rows=0` the revisited rows come and nothing else."""
        await bed.write(("a", b"1"))
        rows = await bed.fetch()
        await bed.write(("a", b"2"))
        bed.reader.revisit([rows[0].position])
        page = await bed.reader.fetch(bed.claims, max_rows=0, max_bytes=BYTES)
        assert [row.event.data for row in page.rows] == [b"1"]
        assert not page.caught_up
        assert await bed.fetch_data() == [b"2"]

    async def test_a_revisited_row_that_is_gone_is_reported(self, bed: Bed) -> None:
        """Somebody else settled it."""
        await bed.write(("a", b"1"), ("a", b"2"))
        rows = await bed.fetch()
        await bed.store.settlement.delete_published(by_partition(rows[:1]), bed.claims)
        bed.reader.revisit([row.position for row in rows])
        page = await bed.reader.fetch(bed.claims, max_rows=MANY, max_bytes=BYTES)
        assert [row.event.data for row in page.rows] == [b"2"]
        assert page.missing == {rows[0].position}

    @pytest.mark.parametrize("max_rows", [1, 2, MANY])
    async def test_a_replayed_key_comes_again_in_order(self, bed: Bed, max_rows: int) -> None:
        """The followers of a refused row, then what is new, and nothing of other keys twice; in pages of any size."""
        await bed.write(("k", b"1"), ("other", b"x"), ("k", b"2"), ("k", b"3"))
        rows = await bed.fetch()
        await bed.store.settlement.delete_published(by_partition(rows[:2]), bed.claims)
        await bed.write(("k", b"4"), ("other", b"y"))
        bed.reader.replay_key("k", above=rows[0].position)
        seen: list[bytes] = []
        released: set[str] = set()
        for _ in range(30):
            page = await bed.reader.fetch(bed.claims, max_rows=max_rows, max_bytes=BYTES)
            released |= page.released
            # What a fetch before the release returns of the key is to be ignored.
            seen += [row.event.data for row in page.rows if row.event.partitionkey != "k" or "k" in released]
            if page.caught_up and released:
                break
        assert released == {"k"}
        assert [data for data in seen if data.isdigit()] == [b"2", b"3", b"4"]
        assert seen.count(b"y") == 1
        assert b"x" not in seen
        assert await bed.fetch_data() == []

    async def test_a_replay_returns_nothing_of_other_keys(self, bed: Bed) -> None:
        """What is in flight between the replayed rows and the cursor stays in flight."""
        await bed.write(("k", b"1"), ("x", b"x1"), ("k", b"2"), ("x", b"x2"))
        rows = await bed.fetch()
        bed.reader.replay_key("k", above=rows[0].position)
        assert await bed.fetch_data() == [b"2"]
        assert await bed.fetch_data() == []

    async def test_a_key_of_any_characters_is_replayed(self, bed: Bed) -> None:
        """Quotes, backslashes and characters beyond ASCII are part of the key, not of a statement."""
        key = """it's "quoted" \\ {weird} ключ $1 %s :x"""
        await bed.write((key, b"1"), (key, b"2"))
        rows = await bed.fetch()
        bed.reader.replay_key(key, above=rows[0].position)
        assert await bed.fetch_data() == [b"2"]

    async def test_restart_drops_what_was_asked_for(self, bed: Bed) -> None:
        """Everything comes again anyway."""
        await bed.write(("k", b"1"), ("k", b"2"))
        rows = await bed.fetch()
        bed.reader.revisit([rows[0].position])
        bed.reader.replay_key("k", above=Position(0))
        bed.reader.restart()
        assert await bed.fetch_data() == [b"1", b"2"]
        assert await bed.fetch_data() == []
