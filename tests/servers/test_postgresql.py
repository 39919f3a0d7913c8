"""A private PostgreSQL does what tests of the library need of it: die, come back, stand still, be many."""

from __future__ import annotations

import contextlib
from pathlib import Path
from urllib.parse import quote

import anyio
import anyio.to_thread
import asyncpg
import pytest

from tests.servers.databases import GivenPostgreSQL, PostgreSQLServer, answers, execute, fetch_value
from tests.servers.errors import ServerFailedError
from tests.servers.fixtures import OwnPostgreSQL, PostgreSQLTemplate
from tests.servers.postgresql import PrivatePostgreSQL

_SECONDS = 30


def test_settings(own_postgresql: OwnPostgreSQL) -> None:
    """Logical decoding and prepared transactions are possible; settings of the test win."""
    server = own_postgresql(settings={"max_connections": "37"})
    for name, value in (
        ("wal_level", "logical"),
        ("max_connections", "37"),
        ("max_prepared_transactions", "20"),
        ("fsync", "off"),
        ("timezone", "UTC"),
    ):
        assert fetch_value(server.dsn(), f"SHOW {name}") == value


@pytest.mark.parametrize("durable", [True, False])
def test_data_survives_restart_and_crash(own_postgresql: OwnPostgreSQL, *, durable: bool) -> None:
    """What was committed is there after a restart and after a SIGKILL, under the same address."""
    server = own_postgresql(durable=durable)
    dsn = server.dsn()
    assert fetch_value(dsn, "SHOW fsync") == ("on" if durable else "off")
    execute(dsn, "CREATE TABLE t (n int)", "INSERT INTO t VALUES (1)")
    server.restart()
    assert server.dsn() == dsn
    # Waits for the log to be written, also where commits do not.
    execute(dsn, "INSERT INTO t VALUES (2)", "CHECKPOINT")
    server.kill()
    assert not server.running
    assert not answers(dsn)
    server.start()
    assert fetch_value(dsn, "SELECT sum(n) FROM t") == 3


def test_crash_leaves_no_shared_memory(own_postgresql: OwnPostgreSQL) -> None:
    """A killed server leaves nothing behind in the system, even when it is never started again."""
    server = own_postgresql()
    words = (server.home / "data" / "postmaster.pid").read_text().splitlines()[6].split()
    assert words[1] in _segments()
    server.kill()
    assert words[1] not in _segments()


def _segments() -> set[str]:
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def test_stop_does_not_wait_for_clients(own_postgresql: OwnPostgreSQL) -> None:
    """`stop` ends the connections of others, also of a paused server."""
    server = own_postgresql()
    server.pause()
    server.stop()
    assert not server.running
    server.stop()


def test_wrong_password_is_refused(postgresql: PostgreSQLServer) -> None:
    """Authentication is real, so a test of wrong credentials proves something."""
    if not isinstance(postgresql, PrivatePostgreSQL):
        pytest.skip("somebody else's server may trust everybody")
    with pytest.raises(asyncpg.InvalidPasswordError):
        answers(postgresql.dsn().replace(quote(postgresql.password), "wrong"))


async def test_paused_server_keeps_connections(own_postgresql: OwnPostgreSQL) -> None:
    """While paused it takes a query and does not answer; after `resume` the same connection goes on."""
    server = await anyio.to_thread.run_sync(own_postgresql)
    connection = await asyncpg.connect(server.dsn())
    with anyio.fail_after(_SECONDS):
        server.pause()
        async with anyio.create_task_group() as tasks:
            answered = anyio.Event()

            async def ask() -> None:
                assert await connection.fetchval("SELECT 1") == 1
                answered.set()

            tasks.start_soon(ask)
            with anyio.move_on_after(0.2) as patience:
                await answered.wait()
            assert patience.cancelled_caught
            server.resume()
        await connection.close()


def test_failure_to_start_shows_the_log(own_postgresql: OwnPostgreSQL) -> None:
    """A server that does not start says why in the error, instead of a timeout later."""
    with pytest.raises(ServerFailedError, match="max_connections"):
        own_postgresql(settings={"max_connections": "-1"})


def test_server_can_be_controlled_from_another_process(own_postgresql: OwnPostgreSQL) -> None:
    """A second object on the same folder is the same server: that is how workers share it."""
    server = own_postgresql()
    other = PrivatePostgreSQL(server.home)
    assert other.dsn() == server.dsn()
    other.kill()
    assert not server.running
    server.start()
    assert other.running


def test_databases_are_copied_from_a_template(
    postgresql: PostgreSQLServer, postgresql_template: PostgreSQLTemplate
) -> None:
    """A template is built once, and each copy of it is a database of its own."""
    built: list[str] = []

    def build(url: str) -> None:
        built.append(url)
        execute(url.replace("+asyncpg", ""), "CREATE TABLE prepared (n int)", "INSERT INTO prepared VALUES (7)")

    for _ in range(2):
        template = postgresql_template("prepared", build)
        with postgresql.fresh_database(template) as name:
            assert fetch_value(postgresql.dsn(name), "SELECT n FROM prepared") == 7
            execute(postgresql.dsn(name), "DELETE FROM prepared")
    assert len(built) == 1


async def test_fresh_database_is_dropped_with_its_connections(postgresql: PostgreSQLServer) -> None:
    """A test that leaks a connection does not keep its database alive."""
    with postgresql.fresh_database() as name:
        leaked = await asyncpg.connect(postgresql.dsn(name))
    with contextlib.suppress(asyncpg.PostgresError, OSError):
        await leaked.close(timeout=_SECONDS)
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        answers(postgresql.dsn(name))


def test_url_fixture_is_an_empty_database(postgresql_url: str) -> None:
    """Nothing of any other test is in it."""
    dsn = postgresql_url.replace("postgresql+asyncpg://", "postgresql://")
    count = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert fetch_value(dsn, count) == 0


def test_given_server_works_the_same(postgresql: PostgreSQLServer) -> None:
    """Databases can be made on a server that is only known by its URL."""
    given = GivenPostgreSQL(postgresql.url())
    with given.fresh_database() as name:
        assert fetch_value(given.dsn(name), "SELECT current_database()") == name


async def test_a_client_that_offers_tls_gets_in_all_the_same(
    postgresql: PostgreSQLServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests make no offer (PGSSLMODE); a service does, which our server declines."""
    monkeypatch.delenv("PGSSLMODE", raising=False)
    connection = await asyncpg.connect(postgresql.dsn())
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()
