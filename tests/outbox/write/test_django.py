"""What is particular to Django's connection: `atomic`, autocommit, several databases."""

from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import pytest

from sagapost.core.errors import NotInTransactionError, SchemaError
from tests.outbox.write.service import Database, outbox, placed, tables

pytest.importorskip("django", reason="Django belongs to another group of dependencies")
transaction: Any = import_module("django.db.transaction")

ROLLBACK = RuntimeError("card declined")


@pytest.fixture
def django(own_database: Database) -> Generator[Any, None, None]:
    """Django's connections, of which `orders` is one to this test's database."""
    settings, connections = import_module("django.conf").settings, import_module("django.db").connections
    if not settings.configured:
        databases = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
        settings.configure(DATABASES=databases, USE_TZ=True, LOGGING_CONFIG=None)
        import_module("django").setup()
    url = own_database.url
    connections.settings["orders"] = connections.settings["default"] | {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.database,
        "HOST": url.host or url.query.get("host") or "",
        "PORT": url.port or "",
        "USER": url.username or "",
        "PASSWORD": url.password or "",
    }
    yield connections
    connections["orders"].close()
    del connections["orders"]
    del connections.settings["orders"]


def order(connection: Any, order_id: int) -> None:
    """Write a domain row through Django."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (id, status) VALUES (%s, 'placed')", [order_id])


def test_atomic_decides(django: Any, own_database: Database) -> None:
    """A rollback takes the event away with the change, also to a savepoint; one insert for several."""
    connection = django["orders"]
    with transaction.atomic(using="orders"):
        order(connection, 1)
        outbox.publish(connection, placed(1), extensions={"n": 'a"b%s'})
        with pytest.raises(RuntimeError), transaction.atomic(using="orders"):  # noqa: PT012 - the block is the savepoint
            order(connection, 2)
            outbox.publish(connection, placed(2))
            raise ROLLBACK
        outbox.publish_all(connection, [placed(3), placed(4)])
    with pytest.raises(RuntimeError), transaction.atomic(using="orders"):  # noqa: PT012 - the block is the transaction
        order(connection, 5)
        outbox.publish(connection, placed(5))
        raise ROLLBACK
    assert own_database.orders() == [1]
    assert own_database.events() == [1, 3, 4]
    assert own_database.rows()[0]["extensions"] == {"n": 'a"b%s'}


def test_autocommit_is_refused(django: Any, own_database: Database) -> None:
    """Outside of `atomic`, and after the commit; a transaction that the caller ends himself is one."""
    connection = django["orders"]

    def too_late() -> None:
        outbox.publish(connection, placed(2))

    refused = pytest.raises(NotInTransactionError, match=r"Django's connection .*transaction\.atomic\(\)")
    with refused:
        outbox.publish(connection, placed(1))
    with refused, transaction.atomic(using="orders"):
        transaction.on_commit(too_late, using="orders")
    connection.set_autocommit(False)
    outbox.publish(connection, placed(3))
    connection.commit()
    connection.set_autocommit(True)
    assert own_database.events() == [3]


def test_a_scheduled_event_is_taken_back(django: Any, own_database: Database) -> None:
    """By saga and name, in Django's transaction."""
    connection, due = django["orders"], datetime(2030, 1, 1, tzinfo=UTC)
    with transaction.atomic(using="orders"):
        outbox.publish(connection, placed(1), correlationid="s", deliver_at=due, name="late")
    with transaction.atomic(using="orders"):
        assert outbox.cancel(connection, correlationid="s", name="late") == 1
        assert outbox.cancel(connection, correlationid="s", name="late") == 0
    assert own_database.scheduled() == []


def test_a_database_without_the_tables_says_what_to_run(django: Any, own_database: Database) -> None:
    """Through Django's wrapper of the driver's error."""
    with own_database.engine.begin() as connection:
        tables.outbox.drop(connection)
    with pytest.raises(SchemaError, match="sagapost db upgrade"), transaction.atomic(using="orders"):
        outbox.publish(django["orders"], placed(1))


def test_another_database_is_refused(django: Any) -> None:
    """By name."""
    with transaction.atomic(), pytest.raises(TypeError, match="one to sqlite"):
        outbox.publish(django["default"], placed(1))
