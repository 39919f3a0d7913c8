"""`OutboxStore` on SQLite: for a service that keeps everything in one file."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio.to_thread
from sqlalchemy import create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from sagapost.adapters.sqlite.connection import KIT, SQLiteLink, parse_path
from sagapost.adapters.sqlite.doorbell import PositionDoorbell
from sagapost.adapters.sqlite.fetch import PositionReader, PositionSweeper
from sagapost.adapters.sqlite.gauge import SQLiteGauge
from sagapost.adapters.sqlite.leases import SQLiteLeases
from sagapost.adapters.sqlite.schedule import SQLiteSchedule
from sagapost.adapters.sqlite.settle import SQLiteSettlement
from sagapost.core.errors import SchemaError
from sagapost.core.outbox_store import Doorbell, OutboxCapabilities, OutboxReader, OutboxSweeper
from sagapost.core.schema import check_schema
from sagapost.outbox.migrations import OUTBOX_SCHEMA_VERSION
from sagapost.outbox.tables import OutboxTables

__all__ = ["SQLiteOutboxStore"]


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
        # Two, so that a heartbeat does not queue behind a settle that waits for a writer.
        self._settle_link, self._control_link = self._open_link(), self._open_link()
        self.leases = SQLiteLeases(self._control_link, self._tables)
        self.settlement = SQLiteSettlement(self._settle_link, self._tables, self.leases)
        self.schedule = SQLiteSchedule(self._control_link, self._tables)
        self.backlog = SQLiteGauge(self._control_link, self._tables)

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

    def reader(self) -> AbstractAsyncContextManager[OutboxReader]:
        """See `OutboxStore.reader`."""
        return self._open_reader()

    @asynccontextmanager
    async def _open_reader(self) -> AsyncGenerator[OutboxReader, None]:
        link = self._open_link()
        advance = KIT.advance_sequence(self._tables.outbox, self._tables.dead)
        try:
            await link.write(lambda connection: connection.execute(advance).close())
            yield PositionReader(link, self._tables.outbox, await self.leases.partition_count())
        finally:
            await link.aclose()

    def sweeper(self) -> AbstractAsyncContextManager[OutboxSweeper]:
        """See `OutboxStore.sweeper`."""
        return self._open_sweeper()

    @asynccontextmanager
    async def _open_sweeper(self) -> AsyncGenerator[OutboxSweeper, None]:
        link = self._open_link()
        try:
            yield PositionSweeper(link, self._tables.outbox, await self.leases.partition_count())
        finally:
            await link.aclose()

    def doorbell(self) -> AbstractAsyncContextManager[Doorbell]:
        """See `OutboxStore.doorbell`."""
        return self._open_doorbell()

    @asynccontextmanager
    async def _open_doorbell(self) -> AsyncGenerator[Doorbell, None]:
        link = self._open_link()
        try:
            yield PositionDoorbell(link, self._tables.outbox)
        finally:
            await link.aclose()

    def _open_link(self) -> SQLiteLink:
        return SQLiteLink(self._path, busy_timeout=self._busy_timeout)
