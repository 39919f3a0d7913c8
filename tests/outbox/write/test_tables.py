"""The tables as part of a service's own metadata: Alembic sees them, and leaves them alone once they are there."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import CreateIndexOp, CreateTableOp, ModifyTableOps
from sqlalchemy import MetaData, inspect
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError

from sagapost.outbox import OutboxTables
from tests.outbox.write.service import Base, Database, outbox, placed, tables

TABLES = {
    "sagapost_audit",
    "outbox",
    "outbox_dead",
    "outbox_scheduled",
    "outbox_leases",
    "outbox_relays",
    "sagapost_schema",
}


@pytest.fixture(params=["on_sqlite", pytest.param("own_database", marks=pytest.mark.servers)])
def empty(request: pytest.FixtureRequest) -> Database:
    """A database from which everything was removed."""
    database: Database = request.getfixturevalue(request.param)
    with database.engine.begin() as connection:
        Base.metadata.drop_all(connection)
    return database


def test_the_tables_live_in_the_services_metadata() -> None:
    """Beside its own."""
    assert TABLES | {"orders"} == set(Base.metadata.tables)


def test_autogenerate_creates_them(empty: Database) -> None:
    """`alembic revision --autogenerate` proposes every table with its indexes."""
    with empty.engine.connect() as connection:
        script = produce_migrations(MigrationContext.configure(connection), Base.metadata)
    assert script.upgrade_ops is not None
    created = {op.table_name for op in script.upgrade_ops.ops if isinstance(op, CreateTableOp)}
    assert created == TABLES | {"orders"}
    indexes = {op.index_name for op in operations(script.upgrade_ops.ops) if isinstance(op, CreateIndexOp)}
    assert {"outbox_refused", "outbox_dead_blocking", "outbox_scheduled_due", "outbox_scheduled_name"} <= indexes


def test_autogenerate_finds_nothing_to_change(database: Database) -> None:
    """After `install_schema` the next revision is empty.

    But for one index on SQLite, which is of use to PostgreSQL only: Alembic does not read the condition on it.
    """
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        proposed = [(kind, index.name) for kind, index in compare_metadata(context, Base.metadata)]
    assert proposed == ([] if database.is_postgresql else [("add_index", "outbox_xid_position")])


def test_a_migration_makes_the_same_tables(empty: Database) -> None:
    """The script as Alembic writes it, with its own imports, leaves nothing to change, and events can be written."""
    with empty.engine.begin() as connection:
        context = MigrationContext.configure(connection)
        script = produce_migrations(context, Base.metadata)
        assert script.upgrade_ops is not None
        body = render_python_code(script.upgrade_ops, migration_context=context)
        names = {"sa": sqlalchemy, "postgresql": postgresql, "op": Operations(context)}
        exec(f"def upgrade():\n    {body}\nupgrade()", names)
    with empty.engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        outbox.publish(connection, placed(1))
        outbox.publish_all(connection, [placed(2), placed(3)])
    assert empty.events() == [1, 2, 3]


def operations(ops: Any) -> list[Any]:
    """Return all operations, those inside table groups included."""
    flat: list[Any] = []
    for op in ops:
        flat += operations(op.ops) if isinstance(op, ModifyTableOps) else [op]
    return flat


def test_names_carry_the_prefix() -> None:
    """Tables, indexes and constraints alike, so that two outboxes fit into one schema."""
    metadata = MetaData()
    one, two = OutboxTables(metadata, prefix="one_"), OutboxTables(metadata, prefix="two_")
    names: list[str] = []
    for each in (one, two):
        for table in each.part.tables:
            names += [table.name, *(str(index.name) for index in table.indexes)]
    assert len(names) == len(set(names))
    assert all(name.startswith(("one_", "two_")) for name in names)


def test_a_refused_row_must_say_why(database: Database) -> None:
    """The state rules hold in the database, whoever writes."""
    with database.engine.begin() as connection:
        outbox.publish(connection, placed(1))
    with database.engine.connect() as connection, pytest.raises(IntegrityError):
        connection.execute(tables.outbox.update().values(attempts=1))


def test_one_event_is_scheduled_once(database: Database) -> None:
    """The unique index on the event's id."""
    assert any(
        index["unique"] and index["column_names"] == ["event_id"]
        for index in inspect(database.engine).get_indexes("outbox_scheduled")
    )
