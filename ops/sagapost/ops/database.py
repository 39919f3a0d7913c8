"""The database as the command line needs it: engines, and installing and checking the tables."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
from sqlalchemy import Connection, Table, create_mock_engine, delete, insert
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.sql import ClauseElement

from sagapost.core.adapters import DatabaseAdapter, EngineOptions
from sagapost.core.databases import Other, drop_useless_connections, kit_of, register
from sagapost.core.databases.closing import dispose
from sagapost.core.errors import MissingExtraError, SagapostError, SchemaError
from sagapost.core.findings import Diagnosis, Patience
from sagapost.core.migrations import statements_of
from sagapost.core.schema import (
    SchemaPart,
    UpgradeProgress,
    check_schema,
    check_supplements,
    missing_supplements,
    supplement_remarks,
    upgrade_schema,
)
from sagapost.ops.masking import SecretUrl
from sagapost.ops.registry import database_adapter
from sagapost.ops.settings import LoadedSettings
from sagapost.ops.tables import Tables
from sagapost.outbox.migrations import OUTBOX_SCHEMA_VERSION

__all__ = [
    "address_of",
    "check",
    "connect",
    "ddl",
    "engine_url",
    "examine",
    "examine_outbox",
    "make_engine",
    "migration",
    "missing",
    "opened_engine",
    "remarks",
    "upgrade",
]

# --- connecting ---


def engine_url(url: SecretUrl) -> URL:
    """Return the URL that SQLAlchemy shows for the database, with the driver that sagapost uses."""
    return _adapter(url).url(url.reveal())


def address_of(url: URL) -> str:
    """Return where the database is, without credentials."""
    return kit_of(url.get_backend_name()).address(url)


def make_engine(url: SecretUrl, options: EngineOptions) -> AsyncEngine:
    """Return an engine; nothing is opened yet.

    :raises MissingExtraError: if the driver is not installed.
    """
    adapter = _adapter(url)
    try:
        engine = adapter.make_engine(url.reveal(), options)
    except ModuleNotFoundError as error:
        if error.name != adapter.driver or adapter.extra is None:
            raise
        purpose = f"A {adapter.name} database"
        raise MissingExtraError(module=adapter.driver, extra=adapter.extra, purpose=purpose) from error
    drop_useless_connections(engine)
    return engine


def _adapter(url: SecretUrl) -> DatabaseAdapter:
    """Return the adapter for a URL, with its kit made known."""
    adapter = database_adapter(url.scheme)
    register(adapter.kit())
    return adapter


@asynccontextmanager
async def connect(loaded: LoadedSettings, *, create: bool = False) -> AsyncGenerator[AsyncConnection, None]:
    """Open one connection with a transaction; commit at the end, or roll back if the block fails.

    Raises like `_opened`.
    """
    async with _opened(loaded, _command_engine(loaded), create=create) as connection, connection.begin():
        yield connection


@asynccontextmanager
async def _opened(
    loaded: LoadedSettings, engine: AsyncEngine, *, create: bool
) -> AsyncGenerator[AsyncConnection, None]:
    """Open one connection, and close the engine with it.

    :param create: whether an SQLite file that is not there is made.
    :raises SchemaError: if such a file is not there and not to be made.
    :raises StoreUnavailableError: if the database cannot be reached in time.
    :raises StoreRefusedError: if it refuses.
    """
    file = kit_of(engine).file(engine.url)
    if file is not None and not create and not file.exists():
        raise SchemaError(found=None, expected=OUTBOX_SCHEMA_VERSION, where=f"There is no file {file}; a new database")
    try:
        async with AsyncExitStack() as stack:
            with anyio.fail_after(loaded.settings.connections.database_connect_timeout.total_seconds()):
                connection = await stack.enter_async_context(engine.connect())
            yield connection
    except SagapostError:
        raise
    except Exception as error:
        kit = kit_of(engine)
        if isinstance(error, DBAPIError) or not isinstance(kit.classify(error), Other):
            raise kit.translate(error, where=address_of(engine.url)) from error
        raise
    finally:
        await dispose(engine)


@asynccontextmanager
async def opened_engine(loaded: LoadedSettings) -> AsyncGenerator[AsyncEngine, None]:
    """Give an engine to a command; its connections are closed with it."""
    engine = _command_engine(loaded)
    try:
        yield engine
    finally:
        await dispose(engine)


def _command_engine(loaded: LoadedSettings, *, patient: bool = False) -> AsyncEngine:
    """Return an engine for one command.

    :param patient: without a limit on single statements: an index of a large table takes its time.
    """
    settings = loaded.settings.connections
    options = EngineOptions(
        connect_timeout=settings.database_connect_timeout,
        call_timeout=None if patient else settings.database_call_timeout,
    )
    return make_engine(loaded.database_url, options)


# --- the schema ---


async def upgrade(
    loaded: LoadedSettings, tables: Tables, *, report: Callable[[UpgradeProgress], None] = lambda _: None
) -> list[str]:
    """Create what is missing and migrate what is older; return the names of the parts that changed. Idempotent.

    :raises SchemaError: if the database is newer than this release.
    :raises UpgradeBlockedError: if others held a table all the time.
    """
    async with _opened(loaded, _command_engine(loaded, patient=True), create=True) as connection:
        return await connection.run_sync(
            lambda sync: upgrade_schema(sync, tables.versions, tables.parts, report=report)
        )


async def check(connection: AsyncConnection, versions: Table, parts: Iterable[SchemaPart]) -> None:
    """Verify that every part is there and of this release.

    :raises SchemaError: otherwise.
    """
    where = f"The database at {address_of(connection.engine.url)}"

    def verify(sync: Connection) -> None:
        for part in parts:
            check_schema(sync, versions, part, where=where)

    await connection.run_sync(verify)


async def check_needed(connection: AsyncConnection, parts: Iterable[SchemaPart]) -> None:
    """Verify that nothing is missing beside the tables without which events go wrong.

    :raises SchemaError: otherwise.
    """
    where = f"The database at {address_of(connection.engine.url)}"

    def verify(sync: Connection) -> None:
        for part in parts:
            check_supplements(sync, part, where=where)

    await connection.run_sync(verify)


async def missing(connection: AsyncConnection, parts: Iterable[SchemaPart]) -> list[str]:
    """Return what the parts would work better with and do not have."""
    return await _of_each(connection, parts, missing_supplements)


async def remarks(connection: AsyncConnection, parts: Iterable[SchemaPart]) -> list[str]:
    """Return what an operator should know that no upgrade changes."""
    return await _of_each(connection, parts, supplement_remarks)


async def _of_each(
    connection: AsyncConnection, parts: Iterable[SchemaPart], look: Callable[[Connection, SchemaPart], list[str]]
) -> list[str]:
    return await connection.run_sync(lambda sync: [found for part in parts for found in look(sync, part)])


# --- what is wrong with the server ---


def examine(
    connection: Connection, loaded: LoadedSettings, tables: Tables, *, patience: Patience | None = None
) -> Iterable[Diagnosis]:
    """Return what is wrong with the server, as far as it can be seen from here; nothing where it is a file."""
    look = _adapter(loaded.database_url).examine_server
    every = [table for part in tables.parts for table in part.tables]
    return () if look is None else look(connection, [tables.versions, *every], patience)


def examine_outbox(connection: Connection, loaded: LoadedSettings, tables: Tables) -> Iterable[Diagnosis]:
    """Return what is wrong with the outbox's rows that only this kind of database can have."""
    look = _adapter(loaded.database_url).examine_outbox
    return () if look is None else look(connection, tables.outbox.outbox)


# --- scripts ---


def ddl(tables: Tables, adapter: DatabaseAdapter) -> list[str]:
    """Return the statements that create everything in an empty database, for a migration of your own."""
    script = _Script(adapter)
    versions, engine, note = tables.versions, script.engine, script.note
    schema = adapter.kit().create_schema(versions.schema)
    if schema is not None:
        note(schema)
    versions.create(engine, checkfirst=False)
    for part in tables.parts:
        for table in part.tables:
            table.create(engine, checkfirst=False)
        note(insert(versions).values(part=part.name, version=part.version))
    return script.statements


class _Script:
    """Statements as text."""

    def __init__(self, adapter: DatabaseAdapter) -> None:
        register(adapter.kit())
        self.statements: list[str] = []
        self.engine = create_mock_engine(f"{adapter.name}://", self.note)

    def note(self, statement: ClauseElement, *_: object, **__: object) -> None:
        compiled = statement.compile(dialect=self.engine.dialect, compile_kwargs={"literal_binds": True})
        self.statements.append(_tidy(str(compiled)))


def migration(tables: Tables, adapter: DatabaseAdapter, *, after: int) -> list[str]:
    """Return the statements that lead from version `after` of each part to this release's, each with its purpose."""
    script = _Script(adapter)
    statements, note = script.statements, script.note
    for part in tables.parts:
        if part.version <= after:
            continue
        for step, statement in statements_of(part.migrations, script.engine.dialect, after=after):
            remarks = [step.what]
            if step.autocommit:
                remarks.append("outside a transaction")
            if step.repeated:
                remarks.append("again and again, until no row changes")
            statements.append(f"-- {part.name}: {'; '.join(remarks)}\n{_tidy(statement)}")
        for supplement in part.supplements:
            note(supplement)
        # Not an UPDATE: a part that this release brings, or tables that Alembic made, have no row yet.
        note(delete(tables.versions).where(tables.versions.c.part == part.name))
        note(insert(tables.versions).values(part=part.name, version=part.version))
    return statements


def _tidy(statement: str) -> str:
    lines = (line.rstrip().replace("\t", "    ") for line in statement.strip().splitlines())
    return "\n".join(line for line in lines if line) + ";"
