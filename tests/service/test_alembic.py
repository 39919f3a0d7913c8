"""A service's tables by Alembic, whatever its MetaData is like."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, Engine, MetaData, create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import make_url

from sagapost.core.schema import check_schema
from sagapost.inbox import Inbox
from sagapost.outbox import Outbox, OutboxTables
from sagapost.sagas import Sagas

CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def service(metadata: MetaData, **where: Any) -> tuple[Outbox, Inbox, Sagas]:
    """Return parts of which only the outbox is told where its tables are."""
    outbox = Outbox(source="https://shop.example", tables=OutboxTables(metadata, **where))
    sagas = Sagas("shop", outbox=outbox)
    return outbox, Inbox("shop", outbox=outbox, context=sagas.context), sagas


def engine_on(url: str) -> Engine:
    """Return an engine of the driver that Alembic is used with."""
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"))


def migrate(connection: Connection, metadata: MetaData) -> None:
    """Generate a migration and run it with nothing but what Alembic imports."""
    context = MigrationContext.configure(connection)
    operations = produce_migrations(context, metadata).upgrade_ops
    assert operations is not None
    body = render_python_code(operations, migration_context=context)
    names = {"sa": sqlalchemy, "postgresql": postgresql, "op": Operations(context)}
    exec(f"def upgrade():\n    {body}\nupgrade()", names)


@pytest.mark.parametrize("convention", [None, CONVENTION], ids=["plain", "convention"])
def test_a_generated_migration_is_recognised_and_leaves_nothing(
    postgresql_url: str, convention: dict[str, str] | None
) -> None:
    """It makes the tables of all parts, which pass the check, and the next one is empty: no ledger is dropped."""
    metadata = MetaData(naming_convention=convention)
    outbox, inbox, sagas = service(metadata)
    engine = engine_on(postgresql_url)
    with engine.begin() as connection:
        migrate(connection, metadata)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        for part in (outbox.tables.part, inbox.tables.part, sagas.tables.part):
            check_schema(connection, outbox.tables.versions, part, where="here")
    engine.dispose()


def test_tables_of_the_command_line_suit_any_naming_convention(postgresql_url: str) -> None:
    """What `sagapost db upgrade` made needs no migration in a service whose constraints have names of a convention."""
    engine = engine_on(postgresql_url)
    with engine.begin() as connection:
        plain = MetaData()
        service(plain)
        plain.create_all(connection)
    with engine.begin() as connection:
        metadata = MetaData(naming_convention=CONVENTION)
        service(metadata)
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_parts_share_the_place_of_their_outbox() -> None:
    """Schema and prefix too; and a second service there has the same tables, not tables of the same names."""
    metadata = MetaData()
    outbox, inbox, sagas = service(metadata, schema="messaging", prefix="shop_")
    other = Sagas("warehouse", outbox=outbox)
    assert {each.tables.metadata for each in (outbox, inbox, sagas)} == {metadata}
    assert sagas.tables.states.fullname == "messaging.shop_saga_states"
    assert inbox.tables.seen.fullname == "messaging.shop_inbox_seen"
    assert other.tables is sagas.tables
