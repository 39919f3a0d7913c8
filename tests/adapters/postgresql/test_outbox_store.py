"""The PostgreSQL outbox store: the port's suite, and what is the adapter's own about URLs and connections."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Iterator
from datetime import timedelta
from operator import attrgetter
from uuid import uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import CreateSchema

from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.core.errors import ConfigurationError, StoreRefusedError, StoreUnavailableError
from sagapost.core.outbox_store import RelayId
from sagapost.core.schema import install_schema
from sagapost.outbox import OutboxTables
from tests.conformance.outbox_store import OutboxStoreConformance, StoreFactory
from tests.servers.databases import PostgreSQLServer

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def shared_url(postgresql: PostgreSQLServer) -> Iterator[str]:
    """One database for the suite; each test has a schema of its own in it, which is quicker to make."""
    with postgresql.fresh_database() as name:
        yield postgresql.url(name)


class TestPostgreSQLOutboxStore(OutboxStoreConformance):
    """The suite, in a schema and with a prefix that both need quoting."""

    @pytest.fixture
    async def store_factory(self, shared_url: str) -> AsyncGenerator[StoreFactory, None]:
        """A schema with the tables, and one without."""
        tables = OutboxTables(schema=f"Sales & more {next(_numbers)}", prefix="My-")
        nothing = OutboxTables(schema="no such schema")
        engine = create_async_engine(shared_url)
        async with engine.begin() as connection:
            assert tables.schema is not None
            await connection.execute(CreateSchema(tables.schema))
            await connection.run_sync(install_schema, tables.versions, [tables.part])
        yield StoreFactory(
            open=lambda: PostgreSQLOutboxStore(shared_url, tables=tables),
            engine=engine,
            tables=tables,
            open_empty=lambda: PostgreSQLOutboxStore(shared_url, tables=nothing),
        )
        await engine.dispose()


@pytest.mark.parametrize("url", ["mysql://localhost/orders", "sqlite:///orders.db", "://", ""])
def test_a_url_of_another_database_is_refused(url: str) -> None:
    """The error shows a good one."""
    with pytest.raises(ConfigurationError, match="Example: postgresql"):
        PostgreSQLOutboxStore(url)


def test_no_password_is_shown() -> None:
    """Neither in the address nor in the repr."""
    store = PostgreSQLOutboxStore("postgresql+asyncpg://me:s3cret@db.example:5433/orders")
    assert store.address == "db.example:5433/orders"
    assert "s3cret" not in repr(store)


async def test_a_wrong_password_is_refused_and_an_unreachable_server_waited_for(postgresql: PostgreSQLServer) -> None:
    """A person must act on the first; the second may mend itself. Neither error shows the password."""
    wrong = PostgreSQLOutboxStore(
        postgresql.url().replace("postgresql+asyncpg://sagapost:", "postgresql://sagapost:x")
    )
    nobody = PostgreSQLOutboxStore("postgresql://me:s3cret@127.0.0.1:1/orders")
    no_database = PostgreSQLOutboxStore(postgresql.url("no_such_database"))
    for call in (attrgetter("check_schema"), attrgetter("leases.partition_count")):
        with pytest.raises(StoreRefusedError, match="28P01"):
            await call(wrong)()
        with pytest.raises(StoreUnavailableError) as caught:
            await call(nobody)()
        assert "s3cret" not in str(caught.value)
        with pytest.raises(StoreRefusedError, match="3D000"):
            await call(no_database)()
    for store in (wrong, nobody, no_database):
        await store.aclose()


async def test_a_relay_that_is_stuck_in_the_middle_holds_up_no_other(postgresql: PostgreSQLServer) -> None:
    """A half-open link leaves its row locks with the server, maybe for hours; heartbeats and leases go past them."""
    tables, ttl = OutboxTables(), timedelta(seconds=5)
    with postgresql.fresh_database() as name:
        engine = create_async_engine(postgresql.url(name))
        async with engine.begin() as connection:
            await connection.run_sync(install_schema, tables.versions, [tables.part])
        store = PostgreSQLOutboxStore(postgresql.url(name), call_timeout=ttl.total_seconds())
        partitions = await store.leases.partition_count()
        silent, living = RelayId(uuid4()), RelayId(uuid4())
        await store.leases.heartbeat(silent, {}, ttl=timedelta(0))
        await store.leases.claim(silent, want=partitions // 2)
        async with engine.connect() as stuck:
            await stuck.execute(select(tables.relays).with_for_update())
            await stuck.execute(select(tables.leases).where(tables.leases.c.owner.is_not(None)).with_for_update())
            assert (await store.leases.heartbeat(living, {}, ttl=ttl)).alive == 1
            assert len(await store.leases.claim(living, want=partitions)) == partitions - partitions // 2
            await store.leases.retire(living)
        await store.aclose()
        await engine.dispose()
