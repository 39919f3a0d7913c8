"""`OutboxStore` on SQLite: for a service that keeps everything in one file."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import anyio.to_thread
from sqlalchemy import create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from sagapost.adapters.sqlite.connection import KIT, Link, parse_path
from sagapost.adapters.sqlite.doorbell import PositionDoorbell
from sagapost.adapters.sqlite.fetch import PositionReader, PositionSweeper
from sagapost.adapters.sqlite.leases import Leases
from sagapost.adapters.sqlite.rows import quoted, seconds_until
from sagapost.adapters.sqlite.schedule import Schedule
from sagapost.adapters.sqlite.settle import Settlement
from sagapost.core.errors import SchemaError
from sagapost.core.outbox_store import (
    Claims,
    Doorbell,
    Failure,
    OutboxBacklog,
    OutboxCapabilities,
    OutboxReader,
    OutboxSweeper,
    Partition,
    Position,
    Published,
    RelayId,
)
from sagapost.core.schema import check_schema
from sagapost.outbox.tables import OUTBOX_SCHEMA_VERSION, OutboxTables

__all__ = ["SQLiteOutboxStore"]

_COUNT_CAP = 100_000
"""Counting stops here: an exact count of a large backlog would scan it."""


class SQLiteOutboxStore:
    """The outbox in a SQLite file (3.35 or later), in WAL mode.

    One relay works at a time; a second one stands by. Several connections of its own are opened as needed.

    :param url: SQLAlchemy URL or path of the file.
    :param busy_timeout: seconds a call waits for a writer before it fails as unavailable. Keep it below the lease.
    :raises ConfigurationError: if the URL names another database or none that several connections can share.
    """

    def __init__(
        self, url: str | URL | Path, *, tables: OutboxTables | None = None, busy_timeout: float = 5.0
    ) -> None:
        self._path = parse_path(url)
        self._tables = tables if tables is not None else OutboxTables()
        self._busy_timeout = busy_timeout
        self._partitions: int | None = None
        self._settlement: Settlement | None = None
        # Two, so that a heartbeat does not queue behind a settle that waits for a writer.
        self._settle_link, self._control_link = self._open_link(), self._open_link()
        self._leases = Leases(self._control_link, self._tables)
        self._schedule = Schedule(self._control_link, self._tables)

    def __repr__(self) -> str:
        return f"SQLiteOutboxStore({self.address})"

    @property
    def capabilities(self) -> OutboxCapabilities:
        """One writer, one relay, and a look at the newest position as the doorbell."""
        return OutboxCapabilities(concurrent_writers=False, many_relays=False, doorbell=True)

    @property
    def address(self) -> str:
        """The path of the file."""
        return str(self._path)

    async def aclose(self) -> None:
        """Close the connections this store opened. Idempotent."""
        await self._settle_link.aclose()
        await self._control_link.aclose()

    async def check_schema(self) -> None:
        """See `OutboxStore.check_schema`."""
        await anyio.to_thread.run_sync(self._check_schema)

    def _check_schema(self) -> None:
        if not self._path.exists():
            # Opening would create an empty database, in the wrong place if the path is mistyped.
            raise SchemaError(
                found=None, expected=OUTBOX_SCHEMA_VERSION, where=f"There is no file {self.address}; a new database"
            )
        engine = create_engine(
            URL.create("sqlite", database=str(self._path)),
            poolclass=NullPool,
            connect_args={"timeout": self._busy_timeout},
        )
        try:
            with engine.connect() as connection:
                check_schema(
                    connection, self._tables.versions, self._tables.part, where=f"The database {self.address}"
                )
        except DBAPIError as error:
            raise KIT.translate(error, where=self.address) from error
        finally:
            engine.dispose()

    # --- fetch ---

    def reader(self) -> AbstractAsyncContextManager[OutboxReader]:
        """See `OutboxStore.reader`."""
        return self._open_reader()

    @asynccontextmanager
    async def _open_reader(self) -> AsyncGenerator[OutboxReader, None]:
        link = self._open_link()
        advance = KIT.advance_sequence(self._tables.outbox, self._tables.dead)
        try:
            await link.write(lambda connection: connection.execute(advance).close())
            yield PositionReader(link, self._tables.outbox, await self.partition_count())
        finally:
            await link.aclose()

    def sweeper(self) -> AbstractAsyncContextManager[OutboxSweeper]:
        """See `OutboxStore.sweeper`."""
        return self._open_sweeper()

    @asynccontextmanager
    async def _open_sweeper(self) -> AsyncGenerator[OutboxSweeper, None]:
        link = self._open_link()
        try:
            yield PositionSweeper(link, self._tables.outbox, await self.partition_count())
        finally:
            await link.aclose()

    # --- settle ---

    async def delete_published(self, rows: Mapping[Partition, Sequence[Published]], claims: Claims) -> int:
        """See `OutboxStore.delete_published`."""
        return await (await self._settled()).delete_published(rows, claims)

    async def record_failures(self, failures: Sequence[Failure], claims: Claims) -> None:
        """See `OutboxStore.record_failures`."""
        await (await self._settled()).record_failures(failures, claims)

    async def bury(self, failures: Sequence[Failure], claims: Claims, *, block_keys: bool) -> int:
        """See `OutboxStore.bury`."""
        return await (await self._settled()).bury(failures, claims, block_keys=block_keys)

    async def bury_followers(self, key: str, partition: Partition, claims: Claims) -> int:
        """See `OutboxStore.bury_followers`."""
        return await (await self._settled()).bury_followers(key, partition, claims)

    async def blocked_keys(self, claims: Claims) -> Mapping[str, tuple[Partition, Position]]:
        """See `OutboxStore.blocked_keys`."""
        return await (await self._settled()).blocked_keys(claims)

    async def move_due(self, *, limit: int) -> tuple[int, timedelta | None]:
        """See `OutboxStore.move_due`."""
        return await self._schedule.move_due(limit=limit)

    # --- ownership ---

    async def partition_count(self) -> int:
        """See `OutboxStore.partition_count`."""
        if self._partitions is None:
            self._partitions = await self._leases.partition_count()
        return self._partitions

    async def heartbeat(self, relay: RelayId, *, ttl: timedelta) -> int:
        """See `OutboxStore.heartbeat`."""
        return await self._leases.heartbeat(relay, ttl=ttl)

    async def claim(self, relay: RelayId, *, want: int, ttl: timedelta) -> Claims:
        """See `OutboxStore.claim`."""
        return await self._leases.claim(relay, want=want, ttl=ttl)

    async def renew(self, relay: RelayId, claims: Claims, *, ttl: timedelta) -> frozenset[Partition]:
        """See `OutboxStore.renew`."""
        return await self._leases.renew(relay, claims, ttl=ttl)

    async def release(self, relay: RelayId, claims: Claims) -> None:
        """See `OutboxStore.release`."""
        await self._leases.release(relay, claims)

    async def retire(self, relay: RelayId) -> None:
        """See `OutboxStore.retire`."""
        await self._leases.retire(relay)

    # --- wake-up and figures ---

    def doorbell(self, relay: RelayId) -> AbstractAsyncContextManager[Doorbell]:  # noqa: ARG002 - the port names it
        """See `OutboxStore.doorbell`."""
        return self._open_doorbell()

    @asynccontextmanager
    async def _open_doorbell(self) -> AsyncGenerator[Doorbell, None]:
        link = self._open_link()
        try:
            yield PositionDoorbell(link, self._tables.outbox)
        finally:
            await link.aclose()

    async def backlog(self) -> OutboxBacklog:
        """See `OutboxStore.backlog`."""
        outbox, dead, scheduled = (quoted(t) for t in (self._tables.outbox, self._tables.dead, self._tables.scheduled))
        sql = f"""
            SELECT (SELECT count(*) FROM (SELECT 1 FROM {outbox} LIMIT {_COUNT_CAP})),
                   (SELECT -{seconds_until("time")} FROM {outbox} ORDER BY position LIMIT 1),
                   (SELECT count(*) FROM (SELECT 1 FROM {scheduled} LIMIT {_COUNT_CAP})),
                   (SELECT count(*) FROM {outbox} WHERE attempts > 0),
                   (SELECT count(*) FROM (SELECT 1 FROM {dead} LIMIT {_COUNT_CAP}))"""

        def work(connection: sqlite3.Connection) -> OutboxBacklog:
            pending, age, waiting, held, buried = connection.execute(sql).fetchone()
            oldest = None if age is None else timedelta(seconds=max(age, 0.0))
            return OutboxBacklog(pending=pending, oldest_age=oldest, scheduled=waiting, held=held, dead=buried)

        return await self._control_link.read(work)

    # --- inside ---

    def _open_link(self) -> Link:
        return Link(self._path, busy_timeout=self._busy_timeout)

    async def _settled(self) -> Settlement:
        if self._settlement is None:
            self._settlement = Settlement(self._settle_link, self._tables, await self.partition_count())
        return self._settlement
