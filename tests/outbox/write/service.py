"""A small service to write events in: its database, its one model, and every kind of handle on it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import asyncpg
import msgspec
import psycopg
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, insert, inspect, select
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sagapost.core import event as event_type
from sagapost.core.schema import install_schema
from sagapost.outbox import Outbox, OutboxTables
from sagapost.outbox.doorbell import ONE_PHASE
from sagapost.outbox.handles import AsyncHandle, SyncHandle

SOURCE = "https://orders.example"


class Base(DeclarativeBase):
    """The service's models."""


class Order(Base):
    """The domain row."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")


@event_type("orders.order-placed.v1")
class OrderPlaced(msgspec.Struct, frozen=True):
    """The event."""

    order_id: int


tables = OutboxTables(Base.metadata)
outbox = Outbox(source=SOURCE, tables=tables)


def placed(order_id: int) -> OrderPlaced:
    """Return the event of an order."""
    return OrderPlaced(order_id=order_id)


@dataclass(slots=True)
class Database:
    """An installed database, and engines on it."""

    url: URL
    engine: Engine = field(init=False)
    async_engine: AsyncEngine = field(init=False)
    statements: list[str] = field(default_factory=list[str])
    """What any of the engines sent, apart from BEGIN, COMMIT and ROLLBACK."""

    def __post_init__(self) -> None:
        sync, asynchronous = {
            "postgresql": ("postgresql+psycopg", "postgresql+asyncpg"),
            "sqlite": ("sqlite", "sqlite+aiosqlite"),
        }[self.url.get_backend_name()]
        # A pool would keep connections open behind the tests; NullPool closes each with its user.
        self.engine = create_engine(self.url.set(drivername=sync), poolclass=NullPool)
        self.async_engine = create_async_engine(self.url.set(drivername=asynchronous), poolclass=NullPool)
        for engine in (self.engine, self.async_engine.sync_engine):
            event.listen(engine, "before_cursor_execute", self._note)
            if not self.is_postgresql:
                _begin_for_real(engine)

    def install(self) -> None:
        """Create the tables."""
        with self.engine.begin() as connection:
            Base.metadata.create_all(connection)
            install_schema(connection, tables.versions, [tables.part])
        self.statements.clear()

    def clear(self) -> None:
        """Empty every table but the one that tells which release made them (PostgreSQL)."""
        with self.engine.begin() as connection:
            names = set(inspect(connection).get_table_names()) - {tables.versions.name}
            connection.exec_driver_sql(f"TRUNCATE {', '.join(sorted(names))}")
        self.statements.clear()

    def _note(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.statements.append(statement)

    @property
    def dsn(self) -> str:
        """The URL for a raw driver."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    @property
    def is_postgresql(self) -> bool:
        """Whether this is PostgreSQL."""
        return self.url.get_backend_name() == "postgresql"

    def sent(self, *words: str) -> list[str]:
        """Return the statements sent that begin with one of these words, shortened to their first three words.

        Without the remark by which the doorbell knows a statement of ours.
        """
        chosen = [s.replace(ONE_PHASE, "") for s in self.statements if s.split()[0] in words]
        return [" ".join(s.split()[: 3 if s.startswith("INSERT") else 2]) for s in chosen]

    def orders(self) -> list[int]:
        """Return the ids of the committed orders."""
        with self.engine.connect() as connection:
            return list(connection.scalars(select(Order.id).order_by(Order.id)))

    def events(self) -> list[int]:
        """Return the order ids of the committed events, in the order of the outbox."""
        table = tables.outbox
        with self.engine.connect() as connection:
            rows = connection.scalars(select(table.c.data).order_by(table.c.position))
            return [msgspec.json.decode(data, type=OrderPlaced).order_id for data in rows]

    def rows(self) -> list[dict[str, Any]]:
        """Return the committed rows of the outbox."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(select(tables.outbox).order_by("position")).mappings()]

    def scheduled(self) -> list[dict[str, Any]]:
        """Return the committed scheduled rows."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(select(tables.scheduled).order_by("id")).mappings()]

    def close(self) -> None:
        """Close the engines; with NullPool no connection of theirs is left to await."""
        self.engine.dispose()
        self.async_engine.sync_engine.dispose()


def _begin_for_real(engine: Engine) -> None:
    """Make sqlite3 begin when SQLAlchemy does.

    By itself it begins at the first INSERT, so that a savepoint opened before is the transaction, and its release a
    commit (SQLAlchemy's documentation of the pysqlite dialect, "Serializable isolation / Savepoints").
    """

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


class Unit(Protocol):
    """One transaction on one kind of handle."""

    @property
    def handle(self) -> SyncHandle | AsyncHandle:
        """What to publish through."""
        ...

    async def order(self, order_id: int) -> None:
        """Write a domain row."""
        ...

    async def begin_nested(self) -> Any:
        """Open a savepoint; the result has `commit` and `rollback`, awaitable or not."""
        ...

    async def commit(self) -> None:
        """Commit."""
        ...

    async def rollback(self) -> None:
        """Roll back."""
        ...


async def settled(result: Any) -> Any:
    """Await what is awaitable, pass on what is not: the same test then serves every kind."""
    return await result if hasattr(result, "__await__") else result


async def publish(unit: Unit, order_id: int, **options: Any) -> Any:
    """Publish the event of an order through any kind of handle."""
    return await settled(outbox.publish(unit.handle, placed(order_id), **options))


@dataclass(slots=True)
class SqlalchemyUnit:
    """Session, AsyncSession, Connection or AsyncConnection: they share their methods' names."""

    handle: Session | AsyncSession | Connection | AsyncConnection
    root: Any
    """What commits and rolls back."""

    async def order(self, order_id: int) -> None:
        if isinstance(self.handle, Session | AsyncSession):
            self.handle.add(Order(id=order_id))
        else:
            await settled(self.handle.execute(insert(Order).values(id=order_id, status="placed")))

    async def begin_nested(self) -> Any:
        return await settled(self.handle.begin_nested())

    async def commit(self) -> None:
        await settled(self.root.commit())

    async def rollback(self) -> None:
        await settled(self.root.rollback())


@dataclass(slots=True)
class PsycopgUnit:
    """A psycopg connection, whose statements begin a transaction by themselves."""

    handle: Any
    depth: int = 0

    async def order(self, order_id: int) -> None:
        self.handle.execute("INSERT INTO orders (id, status) VALUES (%s, 'placed')", [order_id])

    async def begin_nested(self) -> Any:
        self.depth += 1
        return PsycopgSavepoint(self.handle, f"s{self.depth}")

    async def commit(self) -> None:
        self.handle.commit()

    async def rollback(self) -> None:
        self.handle.rollback()


class PsycopgSavepoint:
    """A savepoint, open from now on."""

    def __init__(self, connection: Any, name: str) -> None:
        self._connection, self._name = connection, name
        connection.execute(f"SAVEPOINT {name}")

    def commit(self) -> None:
        self._connection.execute(f"RELEASE SAVEPOINT {self._name}")

    def rollback(self) -> None:
        self._connection.execute(f"ROLLBACK TO SAVEPOINT {self._name}")


@dataclass(slots=True)
class AsyncpgUnit:
    """A raw asyncpg connection."""

    handle: Any
    root: Any

    async def order(self, order_id: int) -> None:
        await self.handle.execute("INSERT INTO orders (id, status) VALUES ($1, 'placed')", order_id)

    async def begin_nested(self) -> Any:
        transaction = self.handle.transaction()
        await transaction.start()
        return transaction

    async def commit(self) -> None:
        await self.root.commit()

    async def rollback(self) -> None:
        await self.root.rollback()


KINDS = ("session", "async_session", "connection", "async_connection", "asyncpg", "psycopg")
RAW = frozenset({"asyncpg", "psycopg"})
"""Of PostgreSQL only, and past SQLAlchemy."""


@asynccontextmanager
async def unit_of(database: Database, kind: str) -> AsyncGenerator[Unit, None]:
    """Open a handle of this kind with a transaction on it; what is not committed is closed away."""
    match kind:
        case "session":
            with Session(database.engine) as session:
                yield SqlalchemyUnit(session, session)
        case "async_session":
            async with AsyncSession(database.async_engine) as session:
                yield SqlalchemyUnit(session, session)
        case "connection":
            with database.engine.connect() as connection:
                yield SqlalchemyUnit(connection, connection.begin())
        case "async_connection":
            async with database.async_engine.connect() as connection:
                yield SqlalchemyUnit(connection, await connection.begin())
        case "psycopg":
            with closing(psycopg.connect(database.dsn)) as connection:
                yield PsycopgUnit(connection)
        case _:
            raw = await asyncpg.connect(database.dsn)
            try:
                transaction = raw.transaction()
                await transaction.start()
                yield AsyncpgUnit(raw, transaction)
            finally:
                await raw.close()


@contextmanager
def listening(target: Any, name: str, function: Any) -> Generator[None, None, None]:
    """Listen to an SQLAlchemy event inside the block."""
    with ExitStack() as stack:
        event.listen(target, name, function)
        stack.callback(event.remove, target, name, function)
        yield
