"""What the parts of the outbox store's conformance suite share: the database under test, and one open store on it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from sqlalchemy import Table, bindparam, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sagapost.core.databases import kit_of
from sagapost.core.outbox_store import (
    Claims,
    Failure,
    OutboxReader,
    OutboxRow,
    OutboxStore,
    Partition,
    Position,
    Published,
    RelayId,
)
from sagapost.outbox import Outbox, OutboxTables

__all__ = [
    "BYTES",
    "MANY",
    "TTL",
    "Bed",
    "StoreFactory",
    "StoreSuite",
    "by_partition",
    "failure",
    "requires",
]

TTL = timedelta(seconds=30)
MANY = 1_000
BYTES = 16 * 2**20


@dataclass(slots=True)
class StoreFactory:
    """What an adapter gives the suite: a database of its own with the outbox tables installed."""

    open: Callable[[], OutboxStore]
    """Open a store on that database, as one more process would."""
    engine: AsyncEngine
    """For the writers, and for looking at the tables."""
    tables: OutboxTables
    open_empty: Callable[[], OutboxStore]
    """Open a store on a database without any tables."""


@dataclass(slots=True)
class Bed:
    """One open store that holds every partition, and a reader on it."""

    factory: StoreFactory
    store: OutboxStore
    reader: OutboxReader
    relay: RelayId
    claims: Claims
    outbox: Outbox = field(init=False)

    def __post_init__(self) -> None:
        self.outbox = Outbox(source="https://conformance.example", tables=self.factory.tables)

    # --- writing ---

    async def write(self, *rows: tuple[str | None, bytes]) -> None:
        """Commit events given as (key, data), in one transaction."""
        async with self.factory.engine.begin() as connection:
            await self.insert(connection, *rows)

    async def insert(self, connection: AsyncConnection, *rows: tuple[str | None, bytes]) -> None:
        """Write events in a transaction that stays open."""
        for key, data in rows:
            await self.outbox.publish(connection, data, key=key, type="conformance.written.v1")

    async def schedule(self, *due: tuple[timedelta, bytes]) -> None:
        """Commit scheduled events given as (from now, data)."""
        async with self.factory.engine.begin() as connection:
            for after, data in due:
                await self.outbox.publish(
                    connection, data, type="conformance.scheduled.v1", deliver_at=datetime.now(UTC) + after
                )

    async def write_at(self, position: Position, data: bytes, *, event_id: str | None = None) -> None:
        """Commit a row at a given position."""
        outbox = self.factory.tables.outbox
        values = {
            "position": position,
            "event_id": UUID(event_id) if event_id else uuid4(),
            "type": "t",
            "source": "s",
        }
        async with self.factory.engine.begin() as connection:
            kit = kit_of(connection)
            columns = ", ".join((*values, "data"))
            statement = f"INSERT INTO {kit.quote(outbox)} ({columns}) {kit.overrides_identity}"
            types = {name: outbox.c[name].type for name in (*values, "data")}
            given = [bindparam(name, type_=type_) for name, type_ in types.items()]
            marks = ", ".join(f":{name}" for name in types)
            await connection.execute(
                text(f"{statement} VALUES ({marks})").bindparams(*given), {**values, "data": data}
            )

    async def replace_ids(self) -> None:
        """Turn every row into another event at the same position."""
        outbox = self.factory.tables.outbox
        async with self.factory.engine.begin() as connection:
            await connection.execute(update(outbox).values(event_id=uuid4()))

    # --- reading ---

    async def fetch(self, *, max_rows: int = MANY, max_bytes: int = BYTES) -> list[OutboxRow]:
        """Fetch until caught up; return all rows."""
        rows: list[OutboxRow] = []
        with anyio.fail_after(10):
            while True:
                page = await self.reader.fetch(self.claims, max_rows=max_rows, max_bytes=max_bytes)
                rows += page.rows
                if page.caught_up:
                    return rows

    async def fetch_data(self) -> list[bytes]:
        """Fetch until caught up; return the payloads."""
        return [row.event.data for row in await self.fetch()]

    async def table(self, table: Table, *columns: str) -> list[tuple[Any, ...]]:
        """Return columns of a table, ordered by its first primary key column."""
        key = next(iter(table.primary_key))
        async with self.factory.engine.connect() as connection:
            result = await connection.execute(select(*(table.c[name] for name in columns)).order_by(key))
            return [tuple(row) for row in result]

    async def count(self, table: Table) -> int:
        """Return the number of rows of a table."""
        async with self.factory.engine.connect() as connection:
            return (await connection.execute(select(func.count()).select_from(table))).scalar_one()

    # --- ownership ---

    async def beat(self, claims: Claims | None = None) -> frozenset[Partition]:
        """Let the relay live on; return which of its leases (default: all it was given) still hold."""
        beat = await self.store.leases.heartbeat(self.relay, self.claims if claims is None else claims, ttl=TTL)
        return beat.held

    async def let_expire(self) -> None:
        """Let the time of the relay be over, as if it had been suspended."""
        await self.store.leases.heartbeat(self.relay, self.claims, ttl=-TTL)

    async def lose(self, *partitions: Partition) -> None:
        """Give partitions to another relay, as `claim` does when this one is dead."""
        leases = self.factory.tables.leases
        async with self.factory.engine.begin() as connection:
            await connection.execute(
                update(leases)
                .where(leases.c.partition.in_(partitions))
                .values(owner=uuid4(), token=leases.c.token + 1)
            )


def failure(row: OutboxRow, reason: str = "refused", *, retry_after: timedelta = timedelta(seconds=60)) -> Failure:
    """Return the failure of a row."""
    return Failure(position=row.position, partition=row.partition, reason=reason, retry_after=retry_after)


def by_partition(rows: Sequence[OutboxRow]) -> dict[Partition, list[Published]]:
    """Group rows for `delete_published`."""
    grouped: dict[Partition, list[Published]] = {}
    for row in rows:
        grouped.setdefault(row.partition, []).append((row.position, row.event.id))
    return grouped


def requires(declared: bool, capability: str) -> None:
    """Skip the test by declaration."""
    if not declared:
        pytest.skip(f"not declared: {capability}")


class StoreSuite:
    """Base of the parts: the fixtures."""

    @pytest.fixture
    def store_factory(self) -> StoreFactory:
        """Overridden by the adapter's test module."""
        raise NotImplementedError("the adapter's test class provides the fixture store_factory")

    @pytest.fixture
    async def bed(self, store_factory: StoreFactory) -> AsyncGenerator[Bed, None]:
        """A store that holds every partition, with a reader."""
        store, relay = store_factory.open(), RelayId(uuid4())
        try:
            await store.leases.heartbeat(relay, {}, ttl=TTL)
            claims = await store.leases.claim(relay, want=await store.leases.partition_count())
            async with store.reader() as reader:
                yield Bed(store_factory, store, reader, relay, claims)
        finally:
            await store.aclose()

    @pytest.fixture
    async def second(self, store_factory: StoreFactory) -> AsyncGenerator[OutboxStore, None]:
        """Another store on the same database, as a second process would open it."""
        store = store_factory.open()
        try:
            yield store
        finally:
            await store.aclose()
