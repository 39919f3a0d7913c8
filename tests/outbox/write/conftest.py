"""Fixtures of the write side's tests."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, make_url

from tests.outbox.write.service import Database
from tests.servers.databases import PostgreSQLServer
from tests.servers.fixtures import OwnPostgreSQL, PostgreSQLTemplate


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.servers)])
def database(request: pytest.FixtureRequest) -> Database:
    """An installed database of each kind."""
    database: Database = request.getfixturevalue(f"on_{request.param}")
    return database


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Generator[Database, None, None]:
    """An installed SQLite database."""
    database = Database(URL.create("sqlite", database=str(tmp_path / "orders.db")))
    database.install()
    yield database
    database.close()


@pytest.fixture
def on_postgresql(shared_postgresql: Database) -> Database:
    """An installed PostgreSQL database with empty tables."""
    shared_postgresql.clear()
    return shared_postgresql


@pytest.fixture(scope="module")
def shared_postgresql(
    postgresql: PostgreSQLServer, postgresql_template: PostgreSQLTemplate
) -> Generator[Database, None, None]:
    """The database that the tests of a module use one after the other: copying one for each takes ten times longer."""
    with postgresql.fresh_database(postgresql_template("outbox-write", _install)) as name:
        database = Database(make_url(postgresql.url(name)))
        yield database
        database.close()


@pytest.fixture
def own_database(
    postgresql: PostgreSQLServer, postgresql_template: PostgreSQLTemplate
) -> Generator[Database, None, None]:
    """An installed PostgreSQL database of this test's own, for tests that change more than rows."""
    with postgresql.fresh_database(postgresql_template("outbox-write", _install)) as name:
        database = Database(make_url(postgresql.url(name)))
        yield database
        database.close()


def _install(url: str) -> None:
    database = Database(make_url(url))
    database.install()
    database.close()


@pytest.fixture
def on_two_phase(own_postgresql: OwnPostgreSQL) -> Generator[Database, None, None]:
    """An installed database whose server prepares transactions."""
    server = own_postgresql(settings={"max_prepared_transactions": "5"})
    with server.fresh_database() as name:
        database = Database(make_url(server.url(name)))
        database.install()
        yield database
        database.close()
