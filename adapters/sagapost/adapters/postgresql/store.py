"""`OutboxStore` on PostgreSQL, by raw asyncpg: the relay's fast path."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from sagapost.adapters.postgresql.connection import KIT, PostgreSQLLink
from sagapost.adapters.postgresql.doorbell import PostgreSQLDoorbell
from sagapost.adapters.postgresql.fetch import SnapshotReader, SnapshotSweeper
from sagapost.adapters.postgresql.fetch_statements import FetchStatements
from sagapost.adapters.postgresql.gauge import PostgreSQLGauge
from sagapost.adapters.postgresql.leases import PostgreSQLLeases
from sagapost.adapters.postgresql.schedule import PostgreSQLSchedule
from sagapost.adapters.postgresql.server import Server
from sagapost.adapters.postgresql.settle import PostgreSQLSettlement
from sagapost.core.outbox_store import Doorbell, OutboxCapabilities, OutboxReader, OutboxSweeper
from sagapost.core.schema import check_schema
from sagapost.outbox.tables import OutboxTables

__all__ = ["PostgreSQLOutboxStore"]


class PostgreSQLOutboxStore:
    """The outbox in a PostgreSQL database (14 or later).

    :param url: of libpq, a provider or SQLAlchemy; several connections of its own are opened as needed (fetch, settle,
        control, and one that listens). A pooler in transaction mode is recognised and served, at two more round
        trips for each call. No NOTIFY comes through it: give `direct_url` for the listening connection, or live
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
        self._settle_link = self._link("settle")
        self._control_link = PostgreSQLLink(self._server, purpose="control", timeout=call_timeout, plan_each_time=True)
        self.leases = PostgreSQLLeases(self._control_link, self._tables)
        self.settlement = PostgreSQLSettlement(self._settle_link, self._tables, self.leases)
        self.schedule = PostgreSQLSchedule(self._control_link, self._tables)
        self.backlog = PostgreSQLGauge(self._control_link, self._tables)

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

    def reader(self) -> AbstractAsyncContextManager[OutboxReader]:
        """See `OutboxStore.reader`."""
        return self._open_reader()

    @asynccontextmanager
    async def _open_reader(self) -> AsyncGenerator[OutboxReader, None]:
        link = self._link("fetch")
        try:
            yield SnapshotReader(link, self._statements, await self.leases.partition_count())
        finally:
            await link.aclose()

    def sweeper(self) -> AbstractAsyncContextManager[OutboxSweeper]:
        """See `OutboxStore.sweeper`."""
        return self._open_sweeper()

    @asynccontextmanager
    async def _open_sweeper(self) -> AsyncGenerator[OutboxSweeper, None]:
        link = self._link("sweep")
        try:
            yield SnapshotSweeper(link, self._statements, await self.leases.partition_count())
        finally:
            await link.aclose()

    def doorbell(self) -> AbstractAsyncContextManager[Doorbell]:
        """See `OutboxStore.doorbell`."""
        return self._open_doorbell()

    @asynccontextmanager
    async def _open_doorbell(self) -> AsyncGenerator[Doorbell, None]:
        link = self._link("doorbell", self._direct)
        try:
            yield PostgreSQLDoorbell(link, self._tables)
        finally:
            await link.aclose()

    def _link(self, purpose: str, server: Server | None = None) -> PostgreSQLLink:
        return PostgreSQLLink(self._server if server is None else server, purpose=purpose, timeout=self._call_timeout)
