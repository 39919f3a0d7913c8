"""Settling: what is published goes, what is refused stays with its reason, what is given up is kept apart."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from sagapost.core.errors import LeaseLostError
from sagapost.core.outbox_store import OutboxRow
from tests.conformance.outbox.bed import Bed, StoreSuite, by_partition, failure


class SettleConformance(StoreSuite):
    """The terminal writes of `OutboxStore`."""

    # --- delete ---

    async def test_published_rows_are_deleted(self, bed: Bed) -> None:
        """Those named and no others; the count says how many."""
        await bed.write(("a", b"1"), ("b", b"2"), ("a", b"3"), (None, b"4"))
        rows = await bed.fetch()
        assert await bed.store.settlement.delete_published(by_partition([rows[0], rows[1], rows[3]]), bed.claims) == 3
        assert await bed.table(bed.factory.tables.outbox, "data") == [(b"3",)]

    async def test_another_event_at_the_same_position_is_not_deleted(self, bed: Bed) -> None:
        """A server that took over may have drawn the position again: the confirm is of the other event."""
        await bed.write(("a", b"confirmed"))
        rows = await bed.fetch()
        await bed.replace_ids()
        assert await bed.store.settlement.delete_published(by_partition(rows), bed.claims) == 0
        assert await bed.count(bed.factory.tables.outbox) == 1

    async def test_a_row_is_buried_although_its_position_holds_a_dead_letter(self, bed: Bed) -> None:
        """Positions began again, as after TRUNCATE ... RESTART IDENTITY: both are dead letters, with their reasons."""
        await bed.write(("a", b"old"))
        (old,) = await bed.fetch()
        await bed.store.settlement.bury([failure(old, "then")], bed.claims, block_keys=True)
        await bed.write_at(old.position, b"new")
        bed.reader.restart()
        (new,) = await bed.fetch()
        assert new.position == old.position
        assert await bed.store.settlement.bury([failure(new, "now")], bed.claims, block_keys=True) == 1
        dead = bed.factory.tables.dead
        assert sorted(await bed.table(dead, "data", "last_error")) == [(b"new", "now"), (b"old", "then")]

    async def test_a_dead_letter_that_was_put_back_is_buried_again(self, bed: Bed) -> None:
        """Somebody restored the outbox's row from a backup: one dead letter, with the newer reason."""
        await bed.write((None, b"twice"))
        (row,) = await bed.fetch()
        await bed.store.settlement.bury([failure(row, "then")], bed.claims, block_keys=True)
        await bed.write_at(row.position, b"twice", event_id=row.event.id)
        assert await bed.store.settlement.bury([failure(row, "now")], bed.claims, block_keys=True) == 1
        assert await bed.table(bed.factory.tables.dead, "last_error") == [("now",)]
        assert await bed.count(bed.factory.tables.outbox) == 0

    async def test_deleting_twice_deletes_nothing(self, bed: Bed) -> None:
        """Idempotent: the answer to the first call may have been lost."""
        await bed.write(("a", b"1"))
        rows = await bed.fetch()
        assert await bed.store.settlement.delete_published(by_partition(rows), bed.claims) == 1
        assert await bed.store.settlement.delete_published(by_partition(rows), bed.claims) == 0

    async def test_a_lost_lease_deletes_nothing_of_its_partition(self, bed: Bed) -> None:
        """The rows of the other partitions are deleted, and the error names the lost one."""
        lost, kept = await two_partitions(bed)
        await bed.lose(lost.partition)
        with pytest.raises(LeaseLostError) as caught:
            await bed.store.settlement.delete_published(by_partition([lost, kept]), bed.claims)
        assert caught.value.partitions == {lost.partition}
        assert await bed.table(bed.factory.tables.outbox, "data") == [(b"lost",)]

    async def test_a_partition_that_was_never_claimed_is_not_written(self, bed: Bed) -> None:
        """Without a token there is no write."""
        lost, kept = await two_partitions(bed)
        claims = {p: token for p, token in bed.claims.items() if p != lost.partition}
        with pytest.raises(LeaseLostError) as caught:
            await bed.store.settlement.delete_published(by_partition([lost, kept]), claims)
        assert caught.value.partitions == {lost.partition}
        assert await bed.table(bed.factory.tables.outbox, "data") == [(b"lost",)]

    # --- refused ---

    async def test_a_refusal_is_recorded_on_the_row(self, bed: Bed) -> None:
        """Attempts, reason and due time are there for a person to see; other rows are untouched."""
        await bed.write(("a", b"1"), ("b", b"2"))
        rows = await bed.fetch()
        await bed.store.settlement.record_failures([failure(rows[0], "no queue is bound")], bed.claims)
        assert await bed.table(bed.factory.tables.outbox, "data", "attempts", "last_error") == [
            (b"1", 1, "no queue is bound"),
            (b"2", 0, None),
        ]
        due = await bed.table(bed.factory.tables.outbox, "next_attempt_at")
        assert due[0][0] is not None
        assert due[1][0] is None

    async def test_refusals_add_up(self, bed: Bed) -> None:
        """The last reason stays, the attempts are counted, and the due time moves."""
        await bed.write(("a", b"1"))
        rows = await bed.fetch()
        await bed.store.settlement.record_failures(
            [failure(rows[0], "first", retry_after=timedelta(seconds=5))], bed.claims
        )
        await bed.store.settlement.record_failures(
            [failure(rows[0], "second", retry_after=timedelta(minutes=10))], bed.claims
        )
        bed.reader.restart()
        (row,) = await bed.fetch()
        assert row.attempts == 2
        assert 590 < row.retry_in <= 600
        assert await bed.table(bed.factory.tables.outbox, "last_error") == [("second",)]

    async def test_a_refusal_that_does_not_count_is_seen_and_adds_nothing(self, bed: Bed) -> None:
        """The row shows that it is held, with reason and due time; the attempts stay at one, or where they were."""
        await bed.write(("a", b"1"))
        rows = await bed.fetch()
        for reason in ("nobody listens", "still nobody"):
            await bed.store.settlement.record_failures([replace(failure(rows[0], reason), counts=False)], bed.claims)
            assert await bed.table(bed.factory.tables.outbox, "attempts", "last_error") == [(1, reason)]
        await bed.store.settlement.record_failures([failure(rows[0])], bed.claims)
        assert await bed.table(bed.factory.tables.outbox, "attempts") == [(2,)]

    async def test_a_retry_that_is_due_says_so(self, bed: Bed) -> None:
        """`retry_in` counts down to 0 and below."""
        await bed.write(("a", b"1"))
        rows = await bed.fetch()
        await bed.store.settlement.record_failures([failure(rows[0], retry_after=timedelta(0))], bed.claims)
        bed.reader.revisit([rows[0].position])
        (row,) = await bed.fetch()
        assert row.retry_in <= 0

    async def test_a_lost_lease_records_nothing_of_its_partition(self, bed: Bed) -> None:
        """The other refusals are recorded, and the error names the lost partition."""
        lost, kept = await two_partitions(bed)
        await bed.lose(lost.partition)
        with pytest.raises(LeaseLostError) as caught:
            await bed.store.settlement.record_failures([failure(lost), failure(kept)], bed.claims)
        assert caught.value.partitions == {lost.partition}
        assert await bed.table(bed.factory.tables.outbox, "data", "attempts") == [(b"lost", 0), (b"kept", 1)]

    async def test_a_refusal_of_a_row_that_is_gone_is_no_error(self, bed: Bed) -> None:
        """An operator may take a row at any time."""
        await bed.write(("a", b"1"))
        rows = await bed.fetch()
        await bed.store.settlement.delete_published(by_partition(rows), bed.claims)
        await bed.store.settlement.record_failures([failure(rows[0])], bed.claims)
        assert await bed.store.settlement.bury([failure(rows[0])], bed.claims, block_keys=True) == 0
        assert await bed.count(bed.factory.tables.dead) == 0

    # --- dead ---

    async def test_a_dead_letter_keeps_the_event_and_the_reason(self, bed: Bed) -> None:
        """The row moves as it is: position, event, attempts counted up, and why."""
        await bed.write(("a", b"1"), ("b", b"2"))
        rows = await bed.fetch()
        await bed.store.settlement.record_failures([failure(rows[0], "first")], bed.claims)
        assert await bed.store.settlement.bury([failure(rows[0], "too large")], bed.claims, block_keys=False) == 1
        dead = bed.factory.tables.dead
        assert await bed.table(dead, "position", "data", "partitionkey", "attempts", "last_error", "blocks_key") == [
            (int(rows[0].position), b"1", "a", 2, "too large", 0)
        ]
        ((event_id, died_at),) = await bed.table(dead, "event_id", "died_at")
        assert str(event_id) == rows[0].event.id
        assert died_at is not None
        assert await bed.table(bed.factory.tables.outbox, "data") == [(b"2",)]

    async def test_burying_twice_buries_once(self, bed: Bed) -> None:
        """Idempotent: the row is in the outbox or among the dead, never in both."""
        await bed.write(("a", b"1"))
        rows = await bed.fetch()
        assert await bed.store.settlement.bury([failure(rows[0])], bed.claims, block_keys=True) == 1
        assert await bed.store.settlement.bury([failure(rows[0])], bed.claims, block_keys=True) == 0
        assert await bed.count(bed.factory.tables.dead) == 1
        assert await bed.count(bed.factory.tables.outbox) == 0

    async def test_a_lost_lease_buries_nothing_of_its_partition(self, bed: Bed) -> None:
        """The others are buried, and the error names the lost partition."""
        lost, kept = await two_partitions(bed)
        await bed.lose(lost.partition)
        with pytest.raises(LeaseLostError) as caught:
            await bed.store.settlement.bury([failure(lost), failure(kept)], bed.claims, block_keys=True)
        assert caught.value.partitions == {lost.partition}
        assert await bed.table(bed.factory.tables.outbox, "data") == [(b"lost",)]
        assert await bed.table(bed.factory.tables.dead, "data") == [(b"kept",)]

    async def test_followers_are_parked_behind_their_dead_letter(self, bed: Bed) -> None:
        """All remaining rows of the key move, in order, and block it; other keys stay."""
        await bed.write(("k", b"1"), ("other", b"x"), ("k", b"2"), ("k", b"3"))
        rows = await bed.fetch()
        await bed.store.settlement.bury([failure(rows[0], "refused")], bed.claims, block_keys=True)
        assert await bed.store.settlement.bury_followers("k", rows[0].partition, bed.claims) == 2
        assert await bed.store.settlement.bury_followers("k", rows[0].partition, bed.claims) == 0
        dead = await bed.table(bed.factory.tables.dead, "data", "blocks_key", "attempts")
        assert dead == [(b"1", 1, 1), (b"2", 1, 0), (b"3", 1, 0)]
        assert await bed.table(bed.factory.tables.outbox, "data") == [(b"x",)]

    async def test_only_what_lies_behind_a_dead_letter_is_parked(self, bed: Bed) -> None:
        """A row before it is none of its followers; and without a dead letter, redriven meanwhile, nobody follows."""
        await bed.write(("k", b"1"), ("k", b"2"), ("k", b"3"))
        rows = await bed.fetch()
        assert await bed.store.settlement.bury_followers("k", rows[0].partition, bed.claims) == 0
        await bed.store.settlement.bury([failure(rows[1])], bed.claims, block_keys=True)
        assert await bed.store.settlement.bury_followers("k", rows[0].partition, bed.claims) == 1
        assert await bed.table(bed.factory.tables.outbox, "data") == [(b"1",)]

    async def test_followers_of_a_lost_partition_stay(self, bed: Bed) -> None:
        """Their new owner decides."""
        await bed.write(("k", b"1"))
        rows = await bed.fetch()
        await bed.lose(rows[0].partition)
        assert await bed.store.settlement.bury_followers("k", rows[0].partition, bed.claims) == 0
        assert await bed.count(bed.factory.tables.outbox) == 1

    async def test_blocked_keys_are_those_with_a_blocking_dead_letter(self, bed: Bed) -> None:
        """Each with its oldest one; not what was buried without blocking, not rows without a key."""
        await bed.write(("k", b"1"), ("k", b"2"), ("free", b"3"), (None, b"4"))
        rows = await bed.fetch()
        assert await bed.store.settlement.blocked_keys(bed.claims) == {}
        await bed.store.settlement.bury(
            [failure(rows[1]), failure(rows[0]), failure(rows[3])], bed.claims, block_keys=True
        )
        await bed.store.settlement.bury([failure(rows[2])], bed.claims, block_keys=False)
        assert await bed.store.settlement.blocked_keys(bed.claims) == {"k": (rows[0].partition, rows[0].position)}

    async def test_blocked_keys_are_those_of_the_claims(self, bed: Bed) -> None:
        """What another relay owns is not our concern."""
        lost, kept = await two_partitions(bed)
        await bed.store.settlement.bury([failure(lost), failure(kept)], bed.claims, block_keys=True)
        mine = {p: token for p, token in bed.claims.items() if p == kept.partition}
        assert await bed.store.settlement.blocked_keys(mine) == {"b": (kept.partition, kept.position)}
        assert await bed.store.settlement.blocked_keys({}) == {}

    async def test_nothing_to_settle_is_fine(self, bed: Bed) -> None:
        """Empty batches are not an error."""
        assert await bed.store.settlement.delete_published({}, bed.claims) == 0
        await bed.store.settlement.record_failures([], bed.claims)
        assert await bed.store.settlement.bury([], bed.claims, block_keys=True) == 0


async def two_partitions(bed: Bed) -> tuple[OutboxRow, OutboxRow]:
    """Write and fetch two rows of different partitions: (the one to lose, the one to keep)."""
    await bed.write(("a", b"lost"), ("b", b"kept"))
    lost, kept = await bed.fetch()
    assert lost.partition != kept.partition
    return lost, kept
