"""An outbox database in memory, on the running loop's clock, that can be taken down, slowed and stalled.

Several stores share one `FakeDatabase`, as several relays share a server. Commits are instantaneous, so there are no
late ones; what a real database does with those is tested on real ones.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import anyio
import anyio.lowlevel

from sagapost.core.errors import LeaseLostError, SchemaError, StoreUnavailableError
from sagapost.core.outbox_store import (
    Claims,
    Doorbell,
    DueEvents,
    Failure,
    FetchPage,
    Heartbeat,
    LeaseToken,
    OutboxBacklog,
    OutboxCapabilities,
    OutboxReader,
    OutboxRow,
    OutboxSweeper,
    Partition,
    Position,
    Published,
    RelayId,
)
from tests.relay.rows import TOPIC, make_row

__all__ = ["FakeDatabase", "FakeStore"]


def key_hash(key: str) -> int:
    return zlib.crc32(key.encode())


@dataclass(slots=True)
class _Lease:
    owner: RelayId | None = None
    token: int = 0


@dataclass(slots=True)
class _Row:
    key: str | None
    topic: str
    attempts: int = 0
    due: float = 0.0


@dataclass(slots=True)
class FakeDatabase:
    """The server."""

    partitions: int = 8
    leases: dict[Partition, _Lease] = field(default_factory=dict[Partition, _Lease])
    relays: dict[RelayId, float] = field(default_factory=dict[RelayId, float])
    rows: dict[Position, _Row] = field(default_factory=dict[Position, _Row])
    dead: dict[Position, tuple[str | None, bool]] = field(default_factory=dict[Position, tuple[str | None, bool]])
    down: bool = False
    """Every call fails."""
    no_deletes: bool = False
    """Only deleting published rows fails."""
    latency: float = 0.0
    """Seconds that every call takes before it does anything."""
    slow_refusals: float = 0.0
    """Seconds more to write down what was refused."""
    stalled: bool = False
    """Calls wait for `flow`."""
    schema: int = 1
    """Version of the tables; the store is made for 1."""
    flow: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        self.leases = {Partition(p): _Lease() for p in range(self.partitions)}

    def write(self, *keys: str | None, topic: str = TOPIC) -> None:
        """Commit a row for each key."""
        for key in keys:
            self.rows[Position(max(self.rows, default=0) + 1)] = _Row(key, topic)

    def partition(self, position: Position) -> Partition:
        """The partition of a row."""
        key = self.rows[position].key
        return Partition(key_hash(str(position) if key is None else key) % self.partitions)

    def owners(self) -> dict[RelayId, int]:
        """How many partitions each relay owns by leases that have not run out."""
        held = [owner for lease in self.leases.values() if (owner := lease.owner) is not None and self.lives(owner)]
        return {owner: held.count(owner) for owner in held}

    def lives(self, relay: RelayId | None) -> bool:
        """Whether its time is not over."""
        return relay is not None and self.relays.get(relay, 0.0) >= anyio.current_time()

    async def call(self) -> None:
        """What every call goes through."""
        await anyio.lowlevel.checkpoint()
        if self.latency:
            await anyio.sleep(self.latency)
        while self.stalled:
            await self.flow.wait()
        if self.down:
            raise StoreUnavailableError("The database is down, as the test asked for.")


class _Reader:
    def __init__(self, database: FakeDatabase) -> None:
        self._database = database
        self._seen: set[Position] = set()
        self._revisits: set[Position] = set()
        self._replays: dict[str, Position] = {}

    def restart(self) -> None:
        self._seen.clear()
        self._revisits.clear()
        self._replays.clear()

    def revisit(self, positions: Collection[Position]) -> None:
        self._revisits.update(positions)

    def replay_key(self, key: str, *, above: Position) -> None:
        self._replays[key] = above

    async def fetch(self, claims: Claims, *, max_rows: int, max_bytes: int) -> FetchPage:
        database = self._database
        await database.call()
        released, missing = frozenset(self._replays), frozenset(self._revisits - database.rows.keys())
        again = {
            position
            for position, row in database.rows.items()
            if position in self._revisits or (row.key in self._replays and position > self._replays[row.key])
        }
        self._seen -= again
        unseen = sorted(p for p in database.rows if p not in self._seen and database.partition(p) in claims)
        # Rows that were asked for come in any case; the bound counts the others.
        taken = [p for p in unseen if p in again] + [p for p in unseen if p not in again][:max_rows]
        self._seen.update(taken)
        self._revisits.clear()
        self._replays.clear()
        return FetchPage(
            rows=[self._load(position) for position in sorted(taken)],
            caught_up=len(taken) == len(unseen) and max_rows > 0,
            released=released,
            missing=missing,
        )

    def _load(self, position: Position) -> OutboxRow:
        row = self._database.rows[position]
        return make_row(
            position,
            key=row.key,
            topic=row.topic,
            partition=self._database.partition(position),
            attempts=row.attempts,
            retry_in=row.due - anyio.current_time() if row.attempts else 0.0,
        )


class _Sweeper:
    def __init__(self, database: FakeDatabase) -> None:
        self._database = database
        self._marked: frozenset[Position] = frozenset()

    async def mark(self) -> None:
        await self._database.call()
        self._marked = frozenset(self._database.rows)

    async def left(self, claims: Claims, *, above: Position, limit: int) -> Sequence[tuple[Position, str | None]]:
        await self._database.call()
        rows = self._database.rows
        left = sorted(self._marked & rows.keys())
        wanted = [p for p in left if p > above and self._database.partition(p) in claims]
        return [(p, rows[p].key) for p in wanted[:limit]]


class _Doorbell:
    async def arm(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def wait(self, timeout: float) -> bool:
        await anyio.sleep(timeout)
        return False

    async def disarm(self) -> None:
        await anyio.lowlevel.checkpoint()


class FakeStore:
    """`OutboxStore` on a `FakeDatabase`."""

    def __init__(self, database: FakeDatabase) -> None:
        self.database = database

    @property
    def leases(self) -> FakeStore:
        """It plays every role itself."""
        return self

    settlement = schedule = backlog = leases

    @property
    def capabilities(self) -> OutboxCapabilities:
        return OutboxCapabilities(concurrent_writers=False, many_relays=True, doorbell=False)

    @property
    def address(self) -> str:
        return "fake"

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def check_schema(self) -> None:
        await self.database.call()
        if self.database.schema != 1:
            raise SchemaError(found=self.database.schema, expected=1, where="The database")

    @asynccontextmanager
    async def _open_reader(self) -> AsyncGenerator[OutboxReader, None]:
        await self.database.call()
        yield _Reader(self.database)

    def reader(self) -> AbstractAsyncContextManager[OutboxReader]:
        return self._open_reader()

    @asynccontextmanager
    async def _open_sweeper(self) -> AsyncGenerator[OutboxSweeper, None]:
        yield _Sweeper(self.database)

    def sweeper(self) -> AbstractAsyncContextManager[OutboxSweeper]:
        return self._open_sweeper()

    @asynccontextmanager
    async def _open_doorbell(self) -> AsyncGenerator[Doorbell, None]:
        yield _Doorbell()

    def doorbell(self) -> AbstractAsyncContextManager[Doorbell]:
        return self._open_doorbell()

    # --- settle ---

    def _held(self, claims: Claims) -> frozenset[Partition]:
        return frozenset(p for p, token in claims.items() if self.database.leases[p].token == token)

    async def delete_published(self, rows: Mapping[Partition, Sequence[Published]], claims: Claims) -> int:
        await self.database.call()
        if self.database.no_deletes:
            raise StoreUnavailableError("Nothing can be deleted now, as the test asked for.")
        held = self._held(claims)
        deleted = [p for partition, group in rows.items() if partition in held for p, _ in group]
        for position in deleted:
            self.database.rows.pop(position, None)
        self._raise_if_lost(rows.keys(), held)
        return len(deleted)

    def _raise_if_lost(self, partitions: Collection[Partition], held: frozenset[Partition]) -> None:
        lost = frozenset(partitions) - held
        if lost:
            raise LeaseLostError(partitions=lost)

    async def record_failures(self, failures: Sequence[Failure], claims: Claims) -> None:
        await self.database.call()
        await anyio.sleep(self.database.slow_refusals)
        held = self._held(claims)
        for failure in failures:
            row = self.database.rows.get(failure.position)
            if row is not None and failure.partition in held:
                row.attempts += failure.counts or row.attempts == 0
                row.due = anyio.current_time() + failure.retry_after.total_seconds()
        self._raise_if_lost([failure.partition for failure in failures], held)

    async def bury(self, failures: Sequence[Failure], claims: Claims, *, block_keys: bool) -> int:
        await self.database.call()
        await anyio.sleep(self.database.slow_refusals)
        held = self._held(claims)
        buried = [f.position for f in failures if f.partition in held and f.position in self.database.rows]
        for position in buried:
            key = self.database.rows.pop(position).key
            self.database.dead[position] = (key, block_keys and key is not None)
        self._raise_if_lost([failure.partition for failure in failures], held)
        return len(buried)

    async def bury_followers(self, key: str, partition: Partition, claims: Claims) -> int:
        await self.database.call()
        heads = [p for p, (name, blocks) in self.database.dead.items() if blocks and name == key]
        if partition not in self._held(claims) or not heads:
            return 0
        followers = [p for p, row in self.database.rows.items() if row.key == key and p > min(heads)]
        for position in followers:
            del self.database.rows[position]
            self.database.dead[position] = (key, True)
        return len(followers)

    async def blocked_keys(self, claims: Claims) -> Mapping[str, tuple[Partition, Position]]:
        await self.database.call()
        blocked: dict[str, tuple[Partition, Position]] = {}
        for position, (key, blocks) in sorted(self.database.dead.items()):
            if blocks and key is not None:
                partition = Partition(key_hash(key) % self.database.partitions)
                if partition in claims:
                    blocked.setdefault(key, (partition, position))
        return blocked

    async def move_due(self, *, limit: int) -> DueEvents:
        await self.database.call()
        return DueEvents(0, None)

    # --- ownership ---

    async def partition_count(self) -> int:
        await self.database.call()
        return self.database.partitions

    async def heartbeat(self, relay: RelayId, claims: Claims, *, ttl: timedelta) -> Heartbeat:
        await self.database.call()
        self.database.relays[relay] = anyio.current_time() + ttl.total_seconds()
        return Heartbeat(sum(map(self.database.lives, self.database.relays)), self._held(claims))

    async def claim(self, relay: RelayId, *, want: int) -> Claims:
        await self.database.call()
        free = [p for p, lease in self.database.leases.items() if not self.database.lives(lease.owner)]
        for partition in free[:want]:
            lease = self.database.leases[partition]
            lease.owner, lease.token = relay, lease.token + 1
        return {p: LeaseToken(self.database.leases[p].token) for p in free[:want]}

    async def release(self, relay: RelayId, claims: Claims) -> None:
        await self.database.call()
        for partition in self._held(claims):
            self.database.leases[partition].owner = None

    async def retire(self, relay: RelayId) -> None:
        await self.database.call()
        self.database.relays.pop(relay, None)
        for lease in self.database.leases.values():
            if lease.owner == relay:
                lease.owner = None

    async def measure(self) -> OutboxBacklog:
        await self.database.call()
        held = sum(row.attempts > 0 for row in self.database.rows.values())
        return OutboxBacklog(len(self.database.rows), None, 0, held, len(self.database.dead))
