"""Ownership of partitions: fair share, hand-over after draining, and a proof that ends before the lease does.

In virtual time, on a database in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import anyio
import pytest

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.ids import new_uuid
from sagapost.core.observer import Observation
from sagapost.core.outbox_store import Partition, RelayId
from sagapost.outbox.relay import Relay
from sagapost.outbox.relay.observations import LeaseLost, LeasesChanged
from sagapost.outbox.relay.ownership import Ownership
from tests.relay.fake_store import FakeDatabase, FakeStore
from tests.relay.virtual_time import VIRTUAL_TIME, LoopClock

TTL = 6.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Minutes pass at once."""
    return VIRTUAL_TIME


@dataclass
class Member:
    """One relay's ownership, without the relay."""

    database: FakeDatabase
    in_flight: Counter[Partition] = field(default_factory=Counter[Partition])
    forgotten: list[frozenset[Partition]] = field(default_factory=list[frozenset[Partition]])
    seen: list[Observation] = field(default_factory=list[Observation])
    ownership: Ownership = field(init=False)
    id: RelayId = field(init=False)

    def __post_init__(self) -> None:
        self.id = RelayId(new_uuid())
        self.ownership = Ownership(
            FakeStore(self.database),
            self.id,
            ttl=timedelta(seconds=TTL),
            clock=LoopClock(),
            observer=self,
            in_partition=lambda partition: self.in_flight[partition],
            forget=self.forgotten.append,
            changed=lambda: None,
        )

    def notify(self, event: Observation, /) -> None:
        """Keep what is reported."""
        self.seen.append(event)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Member, None]:
        """Keep the leases during the block; on the way out nothing is said to anybody, as after a SIGKILL."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.ownership.run)
            yield self
            tasks.cancel_scope.cancel()

    @property
    def size(self) -> int:
        """Partitions held, those being drained included."""
        return len(self.ownership.claims)

    def proven(self) -> bool:
        """Whether it may publish."""
        return self.ownership.proven

    def lost(self) -> list[LeaseLost]:
        """What was reported as lost."""
        return [event for event in self.seen if isinstance(event, LeaseLost)]


async def test_a_relay_alone_takes_everything() -> None:
    """At its first heartbeat."""
    async with Member(FakeDatabase()).running() as relay:
        await anyio.sleep(0.1)
        assert relay.size == 8
        assert relay.proven()
        assert [len(event.gained) for event in relay.seen if isinstance(event, LeasesChanged)] == [8]


@pytest.mark.parametrize(("count", "shares"), [(2, [4, 4]), (3, [2, 3, 3]), (8, [1] * 8), (9, [0] + [1] * 8)])
async def test_relays_share_fairly(count: int, shares: list[int]) -> None:
    """However many join one after another, each partition ends up with one owner and nobody has two more than another
    can get."""
    database = FakeDatabase()
    members = [Member(database) for _ in range(count)]
    async with anyio.create_task_group() as tasks:
        for member in members:
            tasks.start_soon(member.ownership.run)
            await anyio.sleep(0.5)
        await anyio.sleep(3 * TTL)
        assert sorted(member.size for member in members) == shares
        owned = [partition for member in members for partition in member.ownership.claims]
        assert sorted(owned) == sorted(database.leases)
        tasks.cancel_scope.cancel()


async def test_a_partition_is_handed_over_only_when_nothing_of_it_is_in_flight() -> None:
    """From the moment it is to be given up it is not read any more; it is released once the last row is settled."""
    database = FakeDatabase()
    async with Member(database).running() as old:
        await anyio.sleep(0.1)
        old.in_flight.update({Partition(p): 1 for p in range(8)})
        async with Member(database).running() as new:
            await anyio.sleep(2 * TTL)
            assert (old.size, new.size) == (8, 0)
            assert len(old.ownership.fetchable) == 4
            leaving = old.ownership.claims.keys() - old.ownership.fetchable.keys()
            assert old.forgotten == [frozenset(leaving)]
            old.in_flight[next(iter(leaving))] = 0
            await anyio.sleep(1)
            assert (old.size, new.size) == (7, 1)
            old.in_flight.clear()
            await anyio.sleep(1)
            assert (old.size, new.size) == (4, 4)
            assert new.ownership.claims.keys() == leaving


async def test_a_hand_over_is_called_off_when_the_other_relay_has_gone() -> None:
    """What was not given away yet is read again, from the start, since what was unsent has been dropped."""
    database = FakeDatabase()
    async with Member(database).running() as old:
        await anyio.sleep(0.1)
        old.in_flight.update({Partition(p): 1 for p in range(8)})
        generation = old.ownership.generation
        newcomer = Member(database)
        async with newcomer.running():
            await anyio.sleep(TTL)
            assert len(old.ownership.fetchable) == 4
        await FakeStore(database).retire(newcomer.id)
        await anyio.sleep(TTL)
        assert len(old.ownership.fetchable) == 8
        assert old.ownership.generation > generation


async def test_a_relay_that_retires_is_replaced_at_once() -> None:
    """Nobody waits for its leases to run out."""
    database = FakeDatabase()
    async with Member(database).running() as stays:
        leaves = Member(database)
        async with leaves.running():
            await anyio.sleep(2 * TTL)
            assert stays.size == 4
        await leaves.ownership.retire()
        assert leaves.size == 0
        await anyio.sleep(TTL / 3 + 0.1)
        assert stays.size == 8


async def test_a_relay_that_dies_is_replaced_when_its_leases_have_run_out() -> None:
    """Not before, and no later than a heartbeat after."""
    database = FakeDatabase()
    async with Member(database).running() as stays:
        async with Member(database).running():
            await anyio.sleep(2 * TTL)
        died = anyio.current_time()
        while stays.size < 8:
            await anyio.sleep(0.05)
            assert anyio.current_time() - died < TTL * 4 / 3 + 0.5
        assert anyio.current_time() - died > TTL * 2 / 3 - 0.5


async def test_the_proof_ends_before_the_lease() -> None:
    """While the database answers nobody, this side stops first, with a margin; the lease itself is still on."""
    database = FakeDatabase(latency=0.5)
    async with Member(database).running() as relay:
        await anyio.sleep(TTL)
        assert relay.proven()
        database.stalled = True
        while relay.proven():  # noqa: ASYNC110 - the proof ends by the clock; there is no event
            await anyio.sleep(0.01)
        now = anyio.current_time()
        assert database.relays[relay.id] - now >= 0.15 * TTL


async def test_the_proof_counts_from_before_the_call() -> None:
    """A renewal that took long on its way proves that much less."""
    database = FakeDatabase()
    async with Member(database).running() as relay:
        await anyio.sleep(TTL)
        database.latency = 1.5
        for _ in range(200):
            await anyio.sleep(0.1)
            if relay.proven():
                assert database.lives(relay.id)


async def test_an_outage_shorter_than_the_lease_costs_nothing() -> None:
    """The tokens are the same as before, and the proof never ended."""
    database = FakeDatabase()
    async with Member(database).running() as relay:
        await anyio.sleep(0.1)
        before = dict(relay.ownership.claims)
        database.down = True
        await anyio.sleep(TTL / 2)
        assert relay.proven()
        database.down = False
        await anyio.sleep(TTL)
        assert relay.proven()
        assert dict(relay.ownership.claims) == before
        assert relay.lost() == []


async def test_a_long_outage_ends_the_proof_and_is_reported() -> None:
    """Then the relay goes on under the tokens it has, if nobody took them meanwhile."""
    database = FakeDatabase()
    async with Member(database).running() as relay:
        await anyio.sleep(0.1)
        before = dict(relay.ownership.claims)
        database.down = True
        await anyio.sleep(3600)
        assert not relay.proven()
        assert relay.lost()
        database.down = False
        await anyio.sleep(1)
        assert relay.proven()
        assert dict(relay.ownership.claims) == before


async def test_what_another_relay_took_is_given_up() -> None:
    """A relay that was away too long learns it from its next renewal, and drops what it has of those partitions."""
    database = FakeDatabase()
    async with Member(database).running() as zombie:
        await anyio.sleep(0.1)
        thief = RelayId(new_uuid())
        database.relays[thief] = anyio.current_time() + 100
        for partition in (Partition(2), Partition(5)):
            database.leases[partition].owner = thief
            database.leases[partition].token += 1
        await anyio.sleep(TTL)
        assert zombie.ownership.claims.keys() == {0, 1, 3, 4}
        assert frozenset({Partition(2), Partition(5)}) in zombie.forgotten
        assert [event.partitions for event in zombie.lost()] == [frozenset({2, 5})]


async def test_a_refused_write_gives_partitions_up() -> None:
    """The settle stage reports a refused token before the next heartbeat would notice; unknown ones are ignored."""
    async with Member(FakeDatabase()).running() as relay:
        await anyio.sleep(0.1)
        relay.ownership.lose(frozenset({Partition(3)}), "the token was refused")
        relay.ownership.lose(frozenset({Partition(3)}), "the token was refused")
        assert Partition(3) not in relay.ownership.claims
        assert len(relay.lost()) == 1


async def test_gaining_a_partition_starts_a_new_generation() -> None:
    """The reader then starts over; losing one does not need that."""
    database = FakeDatabase()
    async with Member(database).running() as relay:
        await anyio.sleep(0.1)
        generation = relay.ownership.generation
        relay.ownership.lose(frozenset({Partition(0)}), "a test")
        assert relay.ownership.generation == generation
        database.leases[Partition(0)].owner = None
        await anyio.sleep(TTL)
        assert relay.size == 8
        assert relay.ownership.generation > generation


async def test_pitfall_16_identity_is_fresh_on_every_start() -> None:
    """Two relays made alike have nothing in common: a reused pod name cannot make a dead relay look alive."""
    store = FakeStore(FakeDatabase())
    first, second = Relay(store, MemoryBroker()), Relay(store, MemoryBroker())
    assert first.id != second.id
    assert first.id.version == 7
