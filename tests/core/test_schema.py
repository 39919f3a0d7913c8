"""Which tables a database holds is recorded, checked, and never guessed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, create_engine, inspect, update
from sqlalchemy.pool import StaticPool

from sagapost.core.errors import SchemaError
from sagapost.core.schema import SchemaPart, check_schema, install_schema, schema_table
from sagapost.outbox.tables import OutboxTables


class Installed:
    """Two parts in one MetaData, as a user with outbox and inbox has them."""

    def __init__(self, prefix: str = "") -> None:
        self.metadata = MetaData()
        self.versions = schema_table(self.metadata, schema=None, prefix=prefix)
        self.letters = Table(f"{prefix}letters", self.metadata, Column("id", Integer, primary_key=True))
        self.stamps = Table(f"{prefix}stamps", self.metadata, Column("id", Integer, primary_key=True))
        self.first = SchemaPart("first", 2, (self.letters,))
        self.second = SchemaPart("second", 1, (self.stamps,))

    def install(self, connection: Connection) -> list[str]:
        """Install both parts."""
        return install_schema(connection, self.versions, [self.first, self.second])

    def check(self, connection: Connection, part: SchemaPart) -> None:
        """Check one part."""
        check_schema(connection, self.versions, part, where="test database")


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An empty SQLite database."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    yield engine
    engine.dispose()


def test_what_was_installed_passes_the_check(engine: Engine) -> None:
    """Install, then check: no complaint, for each part."""
    tables = Installed()
    with engine.begin() as connection:
        assert tables.install(connection) == ["first", "second"]
        tables.check(connection, tables.first)
        tables.check(connection, tables.second)


def test_installing_again_changes_nothing(engine: Engine) -> None:
    """A deployment may run it on every start."""
    tables = Installed()
    with engine.begin() as connection:
        tables.install(connection)
        connection.execute(tables.letters.insert().values(id=7))
        assert tables.install(connection) == []
        assert connection.execute(tables.letters.select()).all() == [(7,)]


def test_an_empty_database_fails_the_check(engine: Engine) -> None:
    """Nothing installed: found is None, and the way out is named."""
    tables = Installed()
    with engine.begin() as connection, pytest.raises(SchemaError, match="sagapost db upgrade") as caught:
        tables.check(connection, tables.first)
    assert (caught.value.found, caught.value.expected) == (None, 2)


def test_a_part_that_was_not_installed_fails_the_check(engine: Engine) -> None:
    """An outbox alone does not make an inbox."""
    tables = Installed()
    with engine.begin() as connection:
        install_schema(connection, tables.versions, [tables.first])
        tables.check(connection, tables.first)
        with pytest.raises(SchemaError) as caught:
            tables.check(connection, tables.second)
    assert caught.value.found is None


def test_a_version_row_without_its_tables_fails_the_check(engine: Engine) -> None:
    """The row alone is not believed: a restore may have left tables out."""
    tables = Installed()
    with engine.begin() as connection:
        tables.install(connection)
        tables.letters.drop(connection)
        with pytest.raises(SchemaError):
            tables.check(connection, tables.first)


@pytest.mark.parametrize("version", [1, 3])
def test_another_version_fails_the_check_with_both_numbers(engine: Engine, version: int) -> None:
    """Older or newer, the error says which is there and which is needed."""
    tables = Installed()
    with engine.begin() as connection:
        tables.install(connection)
        connection.execute(update(tables.versions).where(tables.versions.c.part == "first").values(version=version))
        with pytest.raises(SchemaError) as caught:
            tables.check(connection, tables.first)
    assert (caught.value.found, caught.value.expected) == (version, 2)


def test_a_newer_database_is_not_touched(engine: Engine) -> None:
    """An old release never downgrades what a new one installed."""
    tables = Installed()
    with engine.begin() as connection:
        tables.install(connection)
        connection.execute(update(tables.versions).where(tables.versions.c.part == "first").values(version=3))
        with pytest.raises(SchemaError, match="Upgrade the sagapost package"):
            tables.install(connection)
        rows = connection.execute(tables.versions.select()).all()
    assert {(row.part, row.version) for row in rows} == {("first", 3), ("second", 1)}


def test_a_table_that_got_lost_is_created_again(engine: Engine) -> None:
    """Install repairs what check complains of."""
    tables = Installed()
    with engine.begin() as connection:
        tables.install(connection)
        tables.letters.drop(connection)
        tables.install(connection)
        tables.check(connection, tables.first)


def test_prefixes_keep_two_installations_apart(engine: Engine) -> None:
    """Two services can share one database."""
    one, two = Installed("orders_"), Installed("warehouse_")
    with engine.begin() as connection:
        one.install(connection)
        with pytest.raises(SchemaError):
            two.check(connection, two.first)
        two.install(connection)
        names = set(inspect(connection).get_table_names())
    assert {"orders_sagapost_schema", "orders_letters", "warehouse_sagapost_schema", "warehouse_letters"} <= names


def test_the_version_table_is_added_to_a_metadata_once() -> None:
    """Outbox and inbox tables in one MetaData share it."""
    metadata = MetaData()
    assert schema_table(metadata, schema=None, prefix="") is schema_table(metadata, schema=None, prefix="")
    assert schema_table(metadata, schema="app", prefix="") is schema_table(metadata, schema="app", prefix="")


def test_the_outbox_installs_on_sqlite(engine: Engine) -> None:
    """The real tables, with their constraints: a refused row must say why."""
    tables = OutboxTables()
    with engine.begin() as connection:
        assert install_schema(connection, tables.versions, [tables.part]) == ["audit", "outbox"]
        check_schema(connection, tables.versions, tables.part, where="test database")
