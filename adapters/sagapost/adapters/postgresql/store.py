"""`OutboxStore` on PostgreSQL, by raw asyncpg: the relay's fast path."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta

from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from sagapost.adapters.postgresql.connection import KIT, Link
from sagapost.adapters.postgresql.doorbell import PostgreSQLDoorbell
from sagapost.adapters.postgresql.fetch import SnapshotReader, SnapshotSweeper
from sagapost.adapters.postgresql.fetch_statements import FetchStatements
from sagapost.adapters.postgresql.leases import Leases
from sagapost.adapters.postgresql.rows import qualified
from sagapost.adapters.postgresql.schedule import Schedule
from sagapost.adapters.postgresql.server import Server
from sagapost.adapters.postgresql.settle import Settlement
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
from sagapost.outbox.tables import OutboxTables

__all__ = ["PostgreSQLOutboxStore"]

_COUNT_CAP = 100_000
"""Counting stops here: an exact count of a large backlog would scan it."""


class PostgreSQLOutboxStore:
    """The outbox in a PostgreSQL database (14 or later).

    :param url: of libpq, a provider or SQLAlchemy; several connections of its own are opened as needed (fetch, settle,
        control, and one that listens). A pooler in transaction mode is recognised and served, at two more round
        trips for each call. Nothing can be heard through it: give `direct_url` for the listening connection, or live
        with polling.
    :param call_timeout: seconds until a database call counts as failed and its connection is dropped.
    :raises ConfigurationError: if a URL cannot be read; it names the part that is wrong.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        tables: OutboxTables | None = None,
        direct_url: str | URL | None = None,
        call_timeout: float = 30.0,
        connect_timeout: float = 10.0,
    ) -> None:
        self._server = Server(url, connect_timeout=connect_timeout)
        self._direct = self._server if direct_url is None else Server(direct_url, connect_timeout=connect_timeout)
        self._tables = tables if tables is not None else OutboxTables()
        self._call_timeout = call_timeout
        self._statements = FetchStatements(self._tables.outbox, self._tables.dead)
        self._partitions: int | None = None
        self._settle_link = self._link("settle")
        self._control_link = self._link("control")
        self._leases = Leases(self._control_link, self._tables)
        self._schedule = Schedule(self._control_link, self._tables)
        self._settlement: Settlement | None = None

    def __repr__(self) -> str:
        return f"PostgreSQLOutboxStore({self.address})"

    @property
    def capabilities(self) -> OutboxCapabilities:
        """Everything the port knows."""
        return OutboxCapabilities(concurrent_writers=True, many_relays=True, doorbell=True)

    @property
    def address(self) -> str:
        """Host, port and database."""
        return self._server.address

    async def check_schema(self) -> None:
        """See `OutboxStore.check_schema`."""
        engine = self._server.engine("check", poolclass=NullPool, connect_args={"command_timeout": self._call_timeout})
        try:
            async with engine.connect() as connection:
                await connection.run_sync(
                    check_schema, self._tables.versions, self._tables.part, where=f"The database {self.address}"
                )
        except Exception as error:
            raise KIT.translate(error, where=self.address) from error
        finally:
            await engine.dispose()

    async def aclose(self) -> None:
        """Close the connections this store opened. Idempotent."""
        await self._settle_link.aclose()
        await self._control_link.aclose()

    # --- fetch ---

    def reader(self) -> AbstractAsyncContextManager[OutboxReader]:
        """See `OutboxStore.reader`."""
        return self._open_reader()

    @asynccontextmanager
    async def _open_reader(self) -> AsyncGenerator[OutboxReader, None]:
        link = self._link("fetch")
        try:
            yield SnapshotReader(link, self._statements, await self.partition_count())
        finally:
            await link.aclose()

    def sweeper(self) -> AbstractAsyncContextManager[OutboxSweeper]:
        """See `OutboxStore.sweeper`."""
        return self._open_sweeper()

    @asynccontextmanager
    async def _open_sweeper(self) -> AsyncGenerator[OutboxSweeper, None]:
        link = self._link("sweep")
        try:
            yield SnapshotSweeper(link, self._statements, await self.partition_count())
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

    def doorbell(self, relay: RelayId) -> AbstractAsyncContextManager[Doorbell]:
        """See `OutboxStore.doorbell`."""
        return self._open_doorbell(relay)

    @asynccontextmanager
    async def _open_doorbell(self, relay: RelayId) -> AsyncGenerator[Doorbell, None]:
        link = self._link("doorbell", self._direct)
        try:
            yield PostgreSQLDoorbell(link, self._tables, relay)
        finally:
            await link.aclose()

    async def backlog(self) -> OutboxBacklog:
        """See `OutboxStore.backlog`."""
        outbox, dead, scheduled = (
            qualified(t) for t in (self._tables.outbox, self._tables.dead, self._tables.scheduled)
        )
        row = await self._control_link.fetchrow(f"""
            SELECT (SELECT count(*) FROM (SELECT FROM {outbox} LIMIT {_COUNT_CAP}) o),
                   (SELECT clock_timestamp() - time FROM {outbox} ORDER BY position LIMIT 1),
                   (SELECT count(*) FROM (SELECT FROM {scheduled} LIMIT {_COUNT_CAP}) s),
                   (SELECT count(*) FROM {outbox} WHERE attempts > 0),
                   (SELECT count(*) FROM (SELECT FROM {dead} LIMIT {_COUNT_CAP}) d)""")
        assert row is not None  # noqa: S101 - a SELECT without FROM always has a row
        return OutboxBacklog(pending=row[0], oldest_age=row[1], scheduled=row[2], held=row[3], dead=row[4])

    # --- inside ---

    def _link(self, purpose: str, server: Server | None = None) -> Link:
        return Link(self._server if server is None else server, purpose=purpose, timeout=self._call_timeout)

    async def _settled(self) -> Settlement:
        if self._settlement is None:
            self._settlement = Settlement(self._settle_link, self._tables, await self.partition_count())
        return self._settlement
