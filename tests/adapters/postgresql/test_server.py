"""Connecting to real servers by their URLs: TLS, several hosts, and a PgBouncer in transaction mode."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import anyio
import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sagapost.adapters.postgresql import PostgreSQLOutboxStore, create_engine
from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.adapters.postgresql.server import Server
from sagapost.core.errors import StoreRefusedError, StoreUnavailableError
from sagapost.core.outbox_store import RelayId
from sagapost.core.schema import install_schema
from sagapost.outbox import Outbox, OutboxTables
from tests.servers.fixtures import OwnPostgreSQL
from tests.servers.ports import LOOPBACK, free_ports
from tests.servers.waiting import poll

# --- TLS and several hosts ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key beside it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "cert.pem"


async def _encrypted(url: str) -> tuple[bool, bool]:
    """Return whether the relay's connections and an engine's are encrypted."""
    asked = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    raw: asyncpg.Connection = await Server(url).connect("test")
    engine = create_engine(url)
    async with engine.connect() as connection:
        found = (await connection.execute(text(asked))).scalar_one()
    await engine.dispose()
    by_relay = bool(await raw.fetchval(asked))
    await raw.close()
    return by_relay, found


async def test_tls_by_the_words_of_libpq(own_postgresql: OwnPostgreSQL, certificate: Path, tmp_path: Path) -> None:
    """`require` encrypts, `verify-full` also checks; a wrong authority or name is a refusal that says so."""
    server = own_postgresql()
    for name in ("cert.pem", "key.pem"):
        shutil.copy(certificate.with_name(name), server.home / name)
        (server.home / name).chmod(0o600)
        server.give(server.home / name)
    connection: asyncpg.Connection = await asyncpg.connect(server.dsn())
    for setting, value in (("ssl_cert_file", "cert.pem"), ("ssl_key_file", "key.pem"), ("ssl", "on")):
        told = value if setting == "ssl" else str(server.home / value)
        await connection.execute(f"ALTER SYSTEM SET {setting} = '{told}'")
    await connection.close()
    await anyio.to_thread.run_sync(server.restart)
    url = server.dsn()
    assert await _encrypted(f"{url}?sslmode=disable") == (False, False)
    assert await _encrypted(f"{url}?sslmode=require") == (True, True)
    assert await _encrypted(f"{url}?sslmode=verify-full&sslrootcert={certificate}") == (True, True)
    named = make_url(url).set(host="localhost").render_as_string(hide_password=False)
    assert await _encrypted(f"{named}?sslmode=verify-ca&sslrootcert={certificate}") == (True, True)
    for refused in (f"{named}?sslmode=verify-full&sslrootcert={certificate}", f"{url}?sslmode=verify-full"):
        store = PostgreSQLOutboxStore(refused)
        with pytest.raises(StoreRefusedError, match="certificate is not trusted") as caught:
            await store.leases.partition_count()
        assert server.password not in str(caught.value)
        await store.aclose()


async def test_the_second_host_is_tried(postgresql_url: str) -> None:
    """A host at which nobody listens is passed over, by every kind of connection; both are in the address."""
    url = make_url(postgresql_url)
    dead = free_ports(1)[0]
    hosts = f"host={LOOPBACK}:{dead}&host={url.host}:{url.port}"
    both = f"postgresql://{url.username}:{url.password}@/{url.database}?{hosts}&target_session_attrs=read-write"
    assert await _encrypted(both) == (False, False)
    assert Server(both).address == f"{LOOPBACK}:{dead},{url.host}:{url.port}/{url.database}"


async def test_a_statement_is_one_round_trip_where_there_is_no_pooler(postgresql_url: str) -> None:
    """Without a pooler in between, nothing is wrapped in a transaction: BEGIN and COMMIT are a trip each."""
    server = Server(postgresql_url)
    connection = await server.connect("test")
    async with server.undivided(connection):
        assert not connection.is_in_transaction()
    await connection.close()


async def test_what_the_url_tells_the_server(postgresql_url: str) -> None:
    """`application_name` and `options` arrive, whatever name we would give by ourselves."""
    url = f"{postgresql_url}?application_name=shop&options=-csearch_path%3Dsales"
    engine = create_engine(url, connect_args={"server_settings": {"application_name": "other", "jit": "off"}})
    names = ("application_name", "search_path", "jit")
    async with engine.connect() as connection:
        told = [(await connection.execute(text(f"SHOW {name}"))).scalar_one() for name in names]
    await engine.dispose()
    assert told == ["shop", "sales", "off"]
    raw: asyncpg.Connection = await Server(url).connect("fetch")
    assert [await raw.fetchval(f"SHOW {name}") for name in names[:2]] == ["shop", "sales"]
    await raw.close()


async def test_pitfall_42_statements_of_relays_have_an_isolation_of_their_own(postgresql_url: str) -> None:
    """Whatever the database's default is: theirs would make transactions of services fail that they have read."""
    await _make_serializable(postgresql_url)
    link = PostgreSQLLink(Server(postgresql_url), purpose="test", timeout=30.0)
    assert await _isolation(link) == "read committed"
    link.drop()
    assert await _isolation(link) == "read committed"
    await link.aclose()


async def _make_serializable(url: str) -> None:
    raw: asyncpg.Connection = await Server(url).connect("test")
    await raw.execute(
        f"ALTER DATABASE \"{make_url(url).database}\" SET default_transaction_isolation = 'serializable'"
    )
    await raw.close()


async def _isolation(link: PostgreSQLLink) -> str:
    (row,) = await link.fetch("SELECT current_setting('transaction_isolation')")
    return str(row[0])


# --- through a pooler ---


@pytest.fixture
def pooler(postgresql_url: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a PgBouncer in transaction mode with three connections to the server."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("needs pgbouncer")
    url = make_url(postgresql_url)
    port, log, settings = free_ports(1)[0], tmp_path / "log", tmp_path / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n{url.database} = host={url.host} port={url.port} dbname={url.database} user={url.username} "
        f"password={url.password}\n[pgbouncer]\nlisten_addr = {LOOPBACK}\nlisten_port = {port}\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 200\nunix_socket_dir =\n"
    )
    # It refuses to run as root, and needs nothing but its settings.
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    as_nobody = ["-u", "nobody"] if os.geteuid() == 0 else []
    with log.open("w") as written:
        process = subprocess.Popen([program, *as_nobody, str(settings)], stdout=written, stderr=written)
    through = url.set(host=LOOPBACK, port=port).render_as_string(hide_password=False)

    def listens() -> bool | None:
        assert process.poll() is None, log.read_text()
        return True if "process up" in log.read_text() else None

    try:
        assert poll(listens, seconds=20), log.read_text()
        yield through
    finally:
        process.terminate()
        process.wait(10)


async def _publish(engine: AsyncEngine, outbox: Outbox, transactions: int) -> list[str]:
    """Write from many tasks at once; return what went wrong."""
    wrong: list[str] = []

    async def write(n: int) -> None:
        try:
            async with engine.begin() as connection:
                await connection.execute(text("SELECT 1"))
                await outbox.publish(connection, {"n": n}, type="shop.sold.v1", key=f"k{n % 3}")
        except DBAPIError as error:
            wrong.append(str(error.orig))

    async with anyio.create_task_group() as tasks:
        for n in range(transactions):
            tasks.start_soon(write, n)
    return wrong


async def test_through_a_pooler_in_transaction_mode(pooler: str, postgresql_url: str) -> None:
    """Writers and the relay's store share three connections of the server through it, and nothing fails.

    It is recognised by itself. An engine that is not told fails there, so this test can.
    """
    tables = OutboxTables()
    outbox = Outbox(source="urn:shop", tables=tables)
    direct = create_async_engine(postgresql_url)
    async with direct.begin() as connection:
        await connection.run_sync(install_schema, tables.versions, [tables.part])
    await direct.dispose()
    assert Server(postgresql_url).names_statements
    engine = create_engine(pooler, pool_size=10)
    assert await _publish(engine, outbox, 60) == []
    await engine.dispose()
    assert not Server(pooler).names_statements

    store = PostgreSQLOutboxStore(pooler, tables=tables)
    await store.check_schema()
    relay = RelayId(uuid4())
    await store.leases.heartbeat(relay, {}, ttl=timedelta(minutes=1))
    claims = await store.leases.claim(relay, want=await store.leases.partition_count())
    async with store.reader() as reader, store.doorbell() as doorbell:
        page = await reader.fetch(claims, max_rows=100, max_bytes=1_000_000)
        assert len(page.rows) == 60
        await doorbell.arm()
        await doorbell.disarm()
    await store.aclose()

    plain = create_async_engine(pooler, pool_size=10)
    assert await _publish(plain, outbox, 60) != []
    await plain.dispose()


async def test_pitfall_42_isolation_through_a_pooler(pooler: str, postgresql_url: str) -> None:
    """Said in each transaction: a setting of the session would be the next client's, too."""
    await _make_serializable(postgresql_url)
    link = PostgreSQLLink(Server(pooler), purpose="test", timeout=30.0, plan_each_time=True)
    assert await _isolation(link) == "read committed"
    await link.aclose()
    service: asyncpg.Connection = await asyncpg.connect(pooler.replace("+asyncpg", ""), statement_cache_size=0)
    assert await service.fetchval("SELECT current_setting('transaction_isolation')") == "serializable"
    await service.close()


async def test_a_pooler_whose_server_is_away_is_waited_for(pooler: str) -> None:
    """What PgBouncer says by itself, with a code of its own, is an outage and no refusal."""
    nowhere = make_url(pooler).set(database="another").render_as_string(hide_password=False)
    store = PostgreSQLOutboxStore(nowhere)
    with pytest.raises(StoreUnavailableError):
        await store.leases.partition_count()
    await store.aclose()
