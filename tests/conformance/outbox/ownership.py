"""Ownership: who may write, for how long, and how it changes hands. Time is the database's."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import anyio
from sqlalchemy import delete

from sagapost.core.outbox_store import Claims, LeaseToken, OutboxStore, RelayId
from tests.conformance.outbox.bed import TTL, Bed, StoreFactory, StoreSuite, requires

PARTITIONS = 32


def relay_id() -> RelayId:
    """Return the identity of one more relay."""
    return RelayId(uuid4())


async def alive(store: OutboxStore) -> RelayId:
    """Return the identity of one more relay, which has announced itself."""
    relay = relay_id()
    await store.leases.heartbeat(relay, {}, ttl=TTL)
    return relay


class OwnershipConformance(StoreSuite):
    """Leases, heartbeats and tokens of `OutboxStore`."""

    async def test_the_number_of_partitions_is_the_databases(self, store_factory: StoreFactory) -> None:
        """Seeded once, by whoever asks first, and the same for everyone."""
        stores = [store_factory.open() for _ in range(3)]
        counts: list[int] = []

        async def ask(store: OutboxStore) -> None:
            counts.append(await store.leases.partition_count())

        async with anyio.create_task_group() as group:
            for store in stores:
                group.start_soon(ask, store)
        for store in stores:
            await store.aclose()
        assert counts == [PARTITIONS] * 3

    async def test_every_partition_is_claimed_once(self, bed: Bed) -> None:
        """All of them, each with a token, and then no more."""
        assert set(bed.claims) == set(range(PARTITIONS))
        assert all(token > 0 for token in bed.claims.values())
        assert await bed.store.leases.claim(bed.relay, want=PARTITIONS) == {}

    async def test_leases_that_vanish_are_made_again(self, bed: Bed) -> None:
        """The table was truncated, or restored empty: all are claimed again, and no former token holds any more."""
        leases = bed.factory.tables.leases
        async with bed.factory.engine.begin() as connection:
            await connection.execute(delete(leases))
        assert await bed.beat() == frozenset()
        again = await bed.store.leases.claim(bed.relay, want=PARTITIONS)
        assert set(again) == set(range(PARTITIONS))
        assert all(again[partition] > bed.claims[partition] + 1_000_000 for partition in again)
        assert await bed.beat(again) == frozenset(range(PARTITIONS))

    async def test_a_single_lease_that_vanishes_is_made_again(self, bed: Bed) -> None:
        """Deleted by hand: it alone is claimed again."""
        leases = bed.factory.tables.leases
        async with bed.factory.engine.begin() as connection:
            await connection.execute(delete(leases).where(leases.c.partition == 7))
        assert set(await bed.store.leases.claim(bed.relay, want=1)) == {7}

    async def test_a_claim_takes_no_more_than_wanted(self, second: OutboxStore) -> None:
        """A relay takes its share and leaves the rest."""
        relay = await alive(second)
        await second.leases.partition_count()
        first = await second.leases.claim(relay, want=5)
        more = await second.leases.claim(relay, want=3)
        assert len(first) == 5
        assert len(more) == 3
        assert not set(first) & set(more)

    async def test_relays_that_claim_at_once_share(self, store_factory: StoreFactory) -> None:
        """Nothing is granted twice, and everything is granted in the end."""
        requires((probe := store_factory.open()).capabilities.many_relays, "many_relays")
        await probe.leases.partition_count()
        await probe.aclose()
        stores = [store_factory.open() for _ in range(4)]
        granted: list[int] = []

        async def claim(store: OutboxStore) -> None:
            relay = await alive(store)
            for _ in range(8):
                granted.extend(await store.leases.claim(relay, want=1))

        async with anyio.create_task_group() as group:
            for store in stores:
                group.start_soon(claim, store)
        last = await stores[0].leases.claim(await alive(stores[0]), want=PARTITIONS)
        for store in stores:
            await store.aclose()
        assert sorted([*granted, *last]) == list(range(PARTITIONS))

    async def test_what_is_held_is_not_granted(self, bed: Bed, second: OutboxStore) -> None:
        """A second relay gets nothing while the first one's leases run."""
        assert await second.leases.claim(await alive(second), want=PARTITIONS) == {}

    async def test_a_second_relay_stands_by(self, bed: Bed, second: OutboxStore) -> None:
        """Where partitions are not shared, what the active relay releases goes to nobody until it is gone."""
        if bed.store.capabilities.many_relays:
            return
        other = await alive(second)
        some = dict(list(bed.claims.items())[:4])
        await bed.store.leases.release(bed.relay, some)
        assert await second.leases.claim(other, want=PARTITIONS) == {}
        await bed.store.leases.retire(bed.relay)
        assert set(await second.leases.claim(other, want=PARTITIONS)) == set(range(PARTITIONS))

    async def test_a_lease_that_ran_out_goes_to_the_next(self, bed: Bed, second: OutboxStore) -> None:
        """With a token that is higher than the one before."""
        await bed.let_expire()
        taken = await second.leases.claim(await alive(second), want=PARTITIONS)
        assert set(taken) == set(bed.claims)
        assert all(taken[partition] > bed.claims[partition] for partition in taken)

    async def test_a_short_lease_runs_out_by_itself(self, bed: Bed, second: OutboxStore) -> None:
        """By the database's clock, with nobody doing anything."""
        await bed.store.leases.heartbeat(bed.relay, bed.claims, ttl=timedelta(milliseconds=20))
        taken: Claims = {}
        with anyio.fail_after(10):
            while not taken:
                taken = await second.leases.claim(await alive(second), want=PARTITIONS)
        assert set(taken) == set(bed.claims)

    # --- live on ---

    async def test_a_renewed_lease_holds(self, bed: Bed, second: OutboxStore) -> None:
        """Every lease of ours is extended, also one that ran out but that nobody took."""
        await bed.let_expire()
        assert await bed.beat() == frozenset(bed.claims)
        assert await second.leases.claim(await alive(second), want=PARTITIONS) == {}

    async def test_a_lease_that_was_taken_is_not_renewed(self, bed: Bed) -> None:
        """The answer is what still holds."""
        lost, *kept = bed.claims
        await bed.lose(lost)
        assert await bed.beat() == frozenset(kept)

    async def test_a_relay_that_was_given_up_holds_nothing(self, bed: Bed, second: OutboxStore) -> None:
        """Another found its time to be over; also what nobody has taken yet may be taken at this very moment."""
        requires(bed.store.capabilities.many_relays, "many_relays")
        await bed.let_expire()
        await alive(second)
        assert await bed.beat() == frozenset()
        assert set(await bed.store.leases.claim(bed.relay, want=PARTITIONS)) == set(bed.claims)

    async def test_an_old_token_is_not_renewed(self, bed: Bed) -> None:
        """Also for the same relay: it lost the partition in between."""
        partition = next(iter(bed.claims))
        stale = {partition: LeaseToken(bed.claims[partition] - 1)}
        assert await bed.beat(stale) == frozenset()

    # --- release and retire ---

    async def test_released_partitions_are_free_at_once(self, bed: Bed) -> None:
        """Those and no others, with a higher token for the next owner."""
        some = dict(list(bed.claims.items())[:3])
        await bed.store.leases.release(bed.relay, some)
        await bed.store.leases.release(bed.relay, some)
        again = await bed.store.leases.claim(bed.relay, want=PARTITIONS)
        assert set(again) == set(some)
        assert all(again[partition] > some[partition] for partition in some)

    async def test_an_old_token_releases_nothing(self, bed: Bed) -> None:
        """A relay that comes back late must not take the partition from its new owner, nor from itself."""
        lost, regained = list(bed.claims)[:2]
        await bed.lose(lost)
        await bed.store.leases.release(
            bed.relay, {lost: bed.claims[lost], regained: LeaseToken(bed.claims[regained] - 1)}
        )
        owners = dict(await bed.table(bed.factory.tables.leases, "partition", "owner"))
        assert owners[lost] not in {None, bed.relay}
        assert owners[regained] == bed.relay

    async def test_a_retired_relay_leaves_nothing_behind(self, bed: Bed, second: OutboxStore) -> None:
        """Every lease it still has is free, and it is not counted any more."""
        await bed.store.leases.retire(bed.relay)
        await bed.store.leases.retire(bed.relay)
        other = await alive(second)
        assert set(await second.leases.claim(other, want=PARTITIONS)) == set(range(PARTITIONS))
        await second.leases.retire(other)
        assert await bed.count(bed.factory.tables.relays) == 0

    # --- heartbeat ---

    async def test_the_living_are_counted(self, bed: Bed, second: OutboxStore) -> None:
        """Itself included; a heartbeat more makes nobody more."""
        requires(bed.store.capabilities.many_relays, "many_relays")
        other = relay_id()
        assert (await bed.store.leases.heartbeat(bed.relay, {}, ttl=TTL)).alive == 1
        assert (await second.leases.heartbeat(other, {}, ttl=TTL)).alive == 2
        assert (await bed.store.leases.heartbeat(bed.relay, {}, ttl=TTL)).alive == 2
        await second.leases.retire(other)
        assert (await bed.store.leases.heartbeat(bed.relay, {}, ttl=TTL)).alive == 1

    async def test_the_silent_are_not_counted(self, bed: Bed, second: OutboxStore) -> None:
        """A relay whose announcement ran out is dead, until it speaks again."""
        requires(bed.store.capabilities.many_relays, "many_relays")
        other = relay_id()
        assert (await second.leases.heartbeat(other, {}, ttl=TTL)).alive == 2
        await second.leases.heartbeat(other, {}, ttl=-TTL)
        assert (await bed.store.leases.heartbeat(bed.relay, {}, ttl=TTL)).alive == 1
        assert (await second.leases.heartbeat(other, {}, ttl=TTL)).alive == 2

    async def test_a_relay_that_shares_with_nobody_counts_itself(self, bed: Bed, second: OutboxStore) -> None:
        """Where partitions are not shared, one that stands by takes no share from the active one."""
        if bed.store.capabilities.many_relays:
            return
        assert (await second.leases.heartbeat(relay_id(), {}, ttl=TTL)).alive == 1
        assert (await bed.store.leases.heartbeat(bed.relay, {}, ttl=TTL)).alive == 1
