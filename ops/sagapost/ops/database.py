"""The database as the command line needs it: engines, which tables belong there, installing and checking them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from sqlalchemy import Connection, MetaData, Table, create_mock_engine, event, insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.sql import ClauseElement

from sagapost.core.databases import Other, kit_of
from sagapost.core.errors import MissingExtraError, SagapostError, SchemaError
from sagapost.core.schema import SchemaPart, check_schema, install_schema, missing_supplements
from sagapost.inbox.database import HOUSEKEEPING
from sagapost.inbox.tables import InboxTables
from sagapost.ops.masking import SecretUrl
from sagapost.ops.settings import LoadedSettings, Settings
from sagapost.outbox.tables import OUTBOX_SCHEMA_VERSION, OutboxTables
from sagapost.sagas.tables import SagaTables
from sagapost.sagas.tracker.tables import TrackerTables

__all__ = [
    "Tables",
    "address_of",
    "check",
    "connect",
    "ddl",
    "engine_url",
    "make_consumer_engine",
    "make_engine",
    "missing",
    "opened_engine",
    "tables_of",
    "upgrade",
]

_DRIVERS = {"postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}
_PACKAGES = {"postgresql": "asyncpg", "sqlite": "aiosqlite"}


@dataclass(frozen=True, slots=True)
class Tables:
    """Every table of sagapost in one database."""

    outbox: OutboxTables
    inbox: InboxTables
    sagas: SagaTables
    tracker: TrackerTables
    with_tracker: bool = False
    """Whether the tracker's tables are among what is installed and checked: its database is usually its own."""

    @property
    def versions(self) -> Table:
        """The table that records which parts are installed."""
        return self.outbox.versions

    @property
    def parts(self) -> Sequence[SchemaPart]:
        """What is installed and checked, in this order."""
        parts = (self.outbox.part, self.inbox.part, self.sagas.part)
        return (*parts, self.tracker.part) if self.with_tracker else parts


def tables_of(settings: Settings) -> Tables:
    """Return the tables with the schema and prefix of the settings."""
    metadata = MetaData()
    where: dict[str, Any] = {"schema": settings.database_schema, "prefix": settings.table_prefix}
    return Tables(
        OutboxTables(metadata, **where),
        InboxTables(metadata, **where),
        SagaTables(metadata, **where),
        TrackerTables(metadata, **where),
    )


# --- connecting ---


def engine_url(url: SecretUrl) -> URL:
    """Return the URL with the asyncio driver that sagapost uses."""
    parsed = make_url(url.reveal())
    return parsed.set(drivername=_DRIVERS[parsed.get_backend_name()])


def address_of(url: URL) -> str:
    """Return where the database is, without credentials."""
    return kit_of(url.get_backend_name()).address(url)


def make_engine(url: SecretUrl, **options: Any) -> AsyncEngine:
    """Return an engine; nothing is opened yet.

    :raises MissingExtraError: if the driver is not installed.
    """
    target = engine_url(url)
    backend = target.get_backend_name()
    try:
        return create_async_engine(target, **options)
    except ModuleNotFoundError as error:
        package = _PACKAGES[backend]
        if error.name != package:
            raise
        raise MissingExtraError(module=package, extra=backend, purpose=f"A {backend} database") from error


def make_consumer_engine(loaded: LoadedSettings, *, inboxes: int) -> AsyncEngine:
    """Return the engine whose transactions the handlers of `inboxes` inboxes run in; nothing is opened yet."""
    settings, url = loaded.settings, loaded.database_url
    # As many as can be in use at once: waiting for the pool would look like a database that does not answer.
    room = inboxes * (settings.consumer_concurrency + HOUSEKEEPING)
    if not url.scheme.startswith("sqlite"):
        limits = {
            "timeout": settings.database_connect_timeout.total_seconds(),
            "server_settings": {"application_name": "sagapost-consumer"},
        }
        return make_engine(url, pool_size=room, max_overflow=0, connect_args=limits)
    engine = make_engine(url, connect_args={"timeout": settings.consumer_database_timeout.total_seconds()})

    @event.listens_for(engine.sync_engine, "connect")
    def _prepare(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        # In WAL mode the relay and other readers do not wait for a handler's transaction, nor it for them.
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    return engine


@asynccontextmanager
async def connect(loaded: LoadedSettings, *, create: bool = False) -> AsyncGenerator[AsyncConnection, None]:
    """Open one connection with a transaction; commit at the end, or roll back if the block fails.

    :param create: whether an SQLite file that is not there is made.
    :raises SchemaError: if such a file is not there and not to be made.
    :raises StoreUnavailableError: if the database cannot be reached in time.
    :raises StoreRefusedError: if it refuses.
    """
    engine = _command_engine(loaded)
    file = kit_of(engine).file(engine.url)
    if file is not None and not create and not file.exists():
        raise SchemaError(found=None, expected=OUTBOX_SCHEMA_VERSION, where=f"There is no file {file}; a new database")
    try:
        async with AsyncExitStack() as stack:
            with anyio.fail_after(loaded.settings.database_connect_timeout.total_seconds()):
                connection = await stack.enter_async_context(engine.connect())
            async with connection.begin():
                yield connection
    except SagapostError:
        raise
    except Exception as error:
        kit = kit_of(engine)
        if isinstance(error, DBAPIError) or not isinstance(kit.classify(error), Other):
            raise kit.translate(error, where=address_of(engine.url)) from error
        raise
    finally:
        await engine.dispose()


@asynccontextmanager
async def opened_engine(loaded: LoadedSettings) -> AsyncGenerator[AsyncEngine, None]:
    """Give an engine to a command; its connections are closed with it."""
    engine = _command_engine(loaded)
    try:
        yield engine
    finally:
        await engine.dispose()


def _command_engine(loaded: LoadedSettings) -> AsyncEngine:
    settings, url = loaded.settings, loaded.database_url
    if url.scheme.startswith("sqlite"):
        return make_engine(url, poolclass=NullPool)
    limits = {
        "timeout": settings.database_connect_timeout.total_seconds(),
        "command_timeout": settings.database_call_timeout.total_seconds(),
    }
    return make_engine(url, poolclass=NullPool, connect_args=limits)


# --- the schema ---


async def upgrade(connection: AsyncConnection, tables: Tables) -> list[str]:
    """Create what is missing, in one transaction; return the names of the parts that changed. Idempotent.

    :raises SchemaError: if the database is newer than this release.
    """
    await connection.run_sync(kit_of(connection).begin_writing)
    return await connection.run_sync(install_schema, tables.versions, tables.parts)


async def check(connection: AsyncConnection, versions: Table, parts: Iterable[SchemaPart]) -> None:
    """Verify that every part is there and of this release.

    :raises SchemaError: otherwise.
    """
    where = f"The database at {address_of(connection.engine.url)}"

    def verify(sync: Connection) -> None:
        for part in parts:
            check_schema(sync, versions, part, where=where)

    await connection.run_sync(verify)


async def missing(connection: AsyncConnection, parts: Iterable[SchemaPart]) -> list[str]:
    """Return what the parts would work better with and do not have."""

    def look(sync: Connection) -> list[str]:
        return [what for part in parts for what in missing_supplements(sync, part)]

    return await connection.run_sync(look)


def ddl(tables: Tables, dialect: str) -> list[str]:
    """Return the statements that create everything in an empty database, for a migration of your own."""
    statements: list[str] = []

    def note(statement: ClauseElement, *_: object, **__: object) -> None:
        compiled = statement.compile(dialect=engine.dialect, compile_kwargs={"literal_binds": True})
        statements.append(_tidy(str(compiled)))

    engine = create_mock_engine(f"{dialect}://", note)
    versions = tables.versions
    schema = kit_of(dialect).create_schema(versions.schema)
    if schema is not None:
        note(schema)
    versions.create(engine, checkfirst=False)
    for part in tables.parts:
        for table in part.tables:
            table.create(engine, checkfirst=False)
        note(insert(versions).values(part=part.name, version=part.version))
    return statements


def _tidy(statement: str) -> str:
    lines = (line.rstrip().replace("\t", "    ") for line in statement.strip().splitlines())
    return "\n".join(line for line in lines if line) + ";"
