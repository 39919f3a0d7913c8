"""What every kit says of errors that real servers and files send, through every driver."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import asyncpg
import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.core.databases import (
    Conflict,
    Failure,
    MissingTable,
    Other,
    PostgreSQL,
    ReadOnly,
    Refused,
    SQLite,
    Unavailable,
    drop_useless_connections,
)
from sagapost.core.errors import StoreUnavailableError
from tests.conformance.databases.bed import Bed, metadata
from tests.servers.databases import PostgreSQLServer
from tests.servers.ports import free_ports

_RAISE = "DO $$ BEGIN RAISE SQLSTATE '{}'; END $$"


async def provoke(driver: str, url: str, *statements: str) -> Exception:
    """Run statements in one transaction; return the error of the last."""
    address = make_url(url)
    if driver == "raw":
        connection: asyncpg.Connection = await asyncpg.connect(
            address.set(drivername="postgresql").render_as_string(hide_password=False)
        )
        try:
            for statement in ("BEGIN", *statements):
                await connection.execute(statement)
        except Exception as error:
            return error
        finally:
            connection.terminate()
        raise AssertionError("no error")
    target = address.set(drivername=f"postgresql+{driver}")
    bed = Bed(create_async_engine(target) if driver == "asyncpg" else create_engine(target))

    def work(connection: Connection) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement)

    try:
        with pytest.raises(DBAPIError) as caught:
            await bed.run(work)
        return caught.value
    finally:
        await bed.dispose()


@pytest.mark.parametrize("driver", ["raw", "asyncpg", "psycopg"])
async def test_errors_of_a_server_through_every_driver(driver: str, postgresql_url: str) -> None:
    """Provoked one after the other on a real server; the same means the same, whoever passes it on."""
    deeds: list[tuple[type[Failure], tuple[str, ...]]] = [
        (MissingTable, ("SELECT 1 FROM nowhere",)),
        (MissingTable, ("SELECT nothing FROM pg_class",)),
        (MissingTable, ("SELECT 1 FROM nowhere.at_all",)),
        (Refused, ("SET LOCAL ROLE pg_monitor", "CREATE TABLE public.mine (n int)")),
        (ReadOnly, ("SET TRANSACTION READ ONLY", "CREATE TABLE mine (n int)")),
        (Other, ("CREATE TABLE one (n int UNIQUE)", "INSERT INTO one VALUES (1), (1)")),
        (Other, ("SELECT 1/0",)),
        (Other, ("SELEKT",)),
        (Unavailable, ("SET LOCAL statement_timeout = 10", "SELECT pg_sleep(30)")),
        (Unavailable, ("SELECT pg_terminate_backend(pg_backend_pid())",)),
        *((Conflict, (_RAISE.format(code),)) for code in ("40001", "40P01")),
        *((Unavailable, (_RAISE.format(code),)) for code in ("53300", "57P03", "26000", "08006")),
    ]
    said = [(deed, PostgreSQL().classify(await provoke(driver, postgresql_url, *deed))) for _, deed in deeds]
    wrong = [(deed, found) for (kind, _), (deed, found) in zip(deeds, said, strict=True) if type(found) is not kind]
    assert wrong == []


async def _connect(driver: str, url: URL) -> None:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    match driver:
        case "raw":
            await asyncpg.connect(plain)
        case "psycopg":
            await anyio.to_thread.run_sync(create_engine(url.set(drivername="postgresql+psycopg")).connect)
        case _:
            await create_async_engine(url).connect()


@pytest.mark.parametrize("driver", ["raw", "asyncpg", "psycopg"])
async def test_errors_of_connecting(driver: str, postgresql: PostgreSQLServer, postgresql_url: str) -> None:
    """No such database, nobody at the port, a role that may open no connection ("too many"), and one that is not."""
    url = make_url(postgresql_url)
    role = f"limited_{url.database}"
    admin = await asyncpg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    await admin.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'secret' CONNECTION LIMIT 0")
    try:
        limited = url.set(username=role, password="secret")
        deeds: list[tuple[type[Failure], str]] = [
            (Refused, postgresql.url("no such database")),
            (Unavailable, url.set(host="127.0.0.1", port=free_ports(1)[0]).render_as_string(hide_password=False)),
            (Unavailable, limited.render_as_string(hide_password=False)),
            (Refused, url.set(username=f"no {role}").render_as_string(hide_password=False)),
        ]
        found: list[Failure] = []
        for _, address in deeds:
            target = make_url(address)
            try:
                await _connect(driver, target)
            except Exception as error:
                found.append(PostgreSQL().classify(error))
        assert [type(failure) for failure in found] == [kind for kind, _ in deeds]
        assert found[0].code == "3D000"
        assert found[2].code == "53300"
    finally:
        await admin.execute(f'DROP ROLE "{role}"')
        await admin.close()


async def test_a_connection_that_idled_too_long_in_its_transaction(postgresql_url: str) -> None:
    """The server ends it; what comes next on it, COMMIT too, is an outage of the connection."""
    dsn = make_url(postgresql_url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection: asyncpg.Connection = await asyncpg.connect(
        dsn, server_settings={"idle_in_transaction_session_timeout": "20ms"}
    )
    ended = anyio.Event()

    def note(_connection: object) -> None:
        ended.set()

    connection.add_termination_listener(note)
    await connection.execute("BEGIN")
    with anyio.fail_after(30):
        await ended.wait()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)) as caught:
        await connection.execute("COMMIT")
    assert isinstance(PostgreSQL().classify(caught.value), Unavailable)


async def test_a_prepared_statement_that_is_gone(postgresql_url: str) -> None:
    """As a pooler in transaction mode loses it: no fault of whoever sent it, and the sentence names poolers."""
    dsn = make_url(postgresql_url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection: asyncpg.Connection = await asyncpg.connect(dsn)
    statement = await connection.prepare("SELECT 1")
    await connection.execute("DEALLOCATE ALL")
    with pytest.raises(asyncpg.PostgresError) as caught:
        await statement.fetch()
    await connection.close()
    found = PostgreSQL().translate(caught.value, where="db:6432/orders")
    assert isinstance(found, StoreUnavailableError)
    assert "pooler" in str(found)


# --- no connection is used again that cannot serve ---


async def test_after_a_server_took_no_writes_every_connection_is_a_new_one(postgresql_url: str) -> None:
    """The one that said so is closed, and with it those that were opened before: they lead to the same server."""
    engine = create_async_engine(postgresql_url, pool_size=2, max_overflow=0)
    drop_useless_connections(engine)
    pid = text("SELECT pg_backend_pid()")
    async with engine.connect() as one, engine.connect() as two:
        old = {(await one.execute(pid)).scalar_one(), (await two.execute(pid)).scalar_one()}
    async with engine.connect() as connection:
        await connection.execute(text("SET TRANSACTION READ ONLY"))
        with pytest.raises(DBAPIError) as caught:
            await connection.execute(text("CREATE TABLE mine (n int)"))
        assert caught.value.connection_invalidated
    async with engine.connect() as one, engine.connect() as two:
        assert not old & {(await one.execute(pid)).scalar_one(), (await two.execute(pid)).scalar_one()}
    await engine.dispose()


@pytest.mark.parametrize("deed", ["SELECT 1/0", "SELECT pg_sleep(30)", _RAISE.format("53300"), _RAISE.format("40P01")])
async def test_a_statement_that_failed_by_itself_leaves_its_connection(deed: str, postgresql_url: str) -> None:
    """A handler may go back to its savepoint and go on: the connection, and the transaction, are there."""
    engine = create_async_engine(postgresql_url, pool_size=1)
    drop_useless_connections(engine)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE mine (n int)"))
        await connection.execute(text("SET LOCAL statement_timeout = 500"))
        with pytest.raises(DBAPIError):
            async with connection.begin_nested():
                await connection.execute(text(deed))
        assert (await connection.execute(text("SELECT count(*) FROM mine"))).scalar_one() == 0
    await engine.dispose()


# --- files ---


def _busy(path: Path) -> None:
    holder = sqlite3.connect(path)
    holder.execute("BEGIN IMMEDIATE")
    try:
        sqlite3.connect(path, timeout=0).execute("BEGIN IMMEDIATE")
    finally:
        holder.close()


def _no_folder(path: Path) -> None:
    sqlite3.connect(path / "no" / "folder.db").execute("SELECT 1")


def _no_database(path: Path) -> None:
    path.write_text("this is no database, " * 100)
    sqlite3.connect(path).execute("SELECT 1 FROM sqlite_master")


def _read_only(path: Path) -> None:
    sqlite3.connect(path).execute("CREATE TABLE one (n int)").connection.close()
    sqlite3.connect(f"file:{path}?mode=ro", uri=True).execute("INSERT INTO one VALUES (1)")


def _constraint(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE one (n int UNIQUE)")
    connection.execute("INSERT INTO one VALUES (1), (1)")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("deed", "kind"),
    [
        (_busy, Conflict),
        (_no_folder, Unavailable),
        (_no_database, Refused),
        (_read_only, Refused),
        (_constraint, Other),
    ],
)
def test_errors_of_files(deed: Callable[[Path], None], kind: type[Failure], tmp_path: Path) -> None:
    """Provoked on real files, raw."""
    with pytest.raises(sqlite3.Error) as caught:
        deed(tmp_path / "kit.db")
    assert type(SQLite().classify(caught.value)) is kind


async def test_a_locked_file_through_sqlalchemy(bed: Bed, tmp_path: Path) -> None:
    """Behind both wrappers the code is found."""
    if not isinstance(bed.kit, SQLite):
        pytest.skip("files only")
    await bed.run(metadata.create_all)
    holder = sqlite3.connect(tmp_path / "kit.db")
    holder.execute("BEGIN IMMEDIATE")

    def work(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        connection.exec_driver_sql("INSERT INTO versions VALUES ('a', 1, 'x')")

    with pytest.raises(DBAPIError) as caught:
        await bed.run(work)
    holder.close()
    assert isinstance(bed.kit.classify(caught.value), Conflict)
