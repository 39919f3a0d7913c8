"""One fault of a server means the same to every part: relay, inbox, handler, and commands through either driver.

The table is printed. What the parts do then, over time, is in `tests/sagas/test_outages_alike.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Literal, TypeAlias

import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.adapters.postgresql.server import Server
from sagapost.core.databases import PostgreSQL
from sagapost.core.errors import SagapostError, StoreError, StoreRefusedError, StoreUnavailableError
from sagapost.inbox.kept.database import Database

Reaction: TypeAlias = Literal["waits", "refuses", "fails"]
"""Is tried again on a fresh connection; ends at start, for a person to act; is the statement's own fault."""


def _raised(code: str) -> str:
    return f"DO $$ BEGIN RAISE SQLSTATE '{code}'; END $$"


_READ_ONLY = "DO $$ BEGIN PERFORM set_config('transaction_read_only', 'on', true); CREATE TABLE mine (n int); END $$"
_CANCELLED = "SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(30)"

FAULTS: dict[str, tuple[str, Reaction, Reaction | Literal["again"], Literal["dropped", "kept"]]] = {
    # fault: statement, what our own statements do, what a handler's does, and the connection
    "too many connections": (_raised("53300"), "waits", "waits", "dropped"),
    "disk full": (_raised("53100"), "waits", "waits", "dropped"),
    "out of memory": (_raised("53200"), "waits", "waits", "dropped"),
    "backend terminated": ("SELECT pg_terminate_backend(pg_backend_pid())", "waits", "waits", "dropped"),
    "another backend crashed": (_raised("57P02"), "waits", "waits", "dropped"),
    "starting up": (_raised("57P03"), "waits", "waits", "dropped"),
    "idle in transaction": (_raised("25P03"), "waits", "waits", "dropped"),
    "transaction timeout": (_raised("25P04"), "waits", "waits", "dropped"),
    "statement cancelled": (_CANCELLED, "waits", "waits", "dropped"),
    "takes no writes": (_READ_ONLY, "waits", "waits", "dropped"),
    "connection failure": (_raised("08006"), "waits", "waits", "dropped"),
    "prepared statement gone": (_raised("26000"), "waits", "waits", "dropped"),
    "prepared statement there": (_raised("42P05"), "waits", "waits", "dropped"),
    "serialization failure": (_raised("40001"), "waits", "again", "kept"),
    "deadlock": (_raised("40P01"), "waits", "again", "kept"),
    "lock not available": (_raised("55P03"), "waits", "again", "kept"),
    "lacks a privilege": (_raised("42501"), "refuses", "fails", "kept"),
    "table missing": ("SELECT 1 FROM nowhere", "refuses", "fails", "kept"),
    "unique violation": (_raised("23505"), "fails", "fails", "kept"),
    "bad value": ("SELECT 'x'::int", "fails", "fails", "kept"),
}


def _reaction(error: SagapostError) -> Reaction:
    match error:
        case StoreUnavailableError():
            return "waits"
        case StoreRefusedError():
            return "refuses"
        case StoreError():
            return "fails"
        case _:
            raise AssertionError(f"no error of a store: {error!r}")


async def _relay(url: str, statement: str) -> tuple[str, str]:
    link = PostgreSQLLink(Server(url), purpose="test", timeout=30.0)
    with pytest.raises(SagapostError) as caught:
        await link.fetch(statement)
    kept = link.is_open
    await link.aclose()
    return _reaction(caught.value), "kept" if kept else "dropped"


@asynccontextmanager
async def _inbox(url: str) -> AsyncGenerator[Database, None]:
    engine = create_async_engine(url, pool_size=4, max_overflow=0)
    try:
        yield Database(engine, concurrency=1, timeout=timedelta(seconds=30))
    finally:
        await engine.dispose()


async def _housekeeping(url: str, statement: str) -> tuple[str, str]:
    """Statements of the inbox itself are made again, whatever they failed by."""

    def pid(connection: Connection) -> int:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())

    async with _inbox(url) as database:
        before = await database.run(pid)
        with pytest.raises(StoreUnavailableError):
            await database.run(lambda connection: connection.exec_driver_sql(statement))
        return "waits", "kept" if before == await database.run(pid) else "dropped"


async def _handler(url: str, statement: str) -> str:
    async with _inbox(url) as database:
        with pytest.raises(DBAPIError) as caught:
            async with database.engine.connect() as connection:
                await connection.exec_driver_sql(statement)
        if database.kit.is_conflict(caught.value):
            return "again"
        return "waits" if database.concerns(caught.value) else "fails"


def _command(url: str, statement: str) -> str:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    try:
        with pytest.raises(DBAPIError) as caught, engine.connect() as connection:
            connection.exec_driver_sql(statement)
    finally:
        engine.dispose()
    return _reaction(PostgreSQL().translate(caught.value, where="here"))


async def test_pitfall_31_a_fault_means_the_same_to_every_part(postgresql_url: str) -> None:
    """Who waits for one of them waits for all; who drops the connection does so everywhere."""
    wrong: list[str] = []
    print(f"{'fault':26}{'relay':20}{'inbox':20}{'handler':10}{'command':10}")
    for fault, (statement, ours, handlers, connection) in FAULTS.items():
        relay, inbox = await _relay(postgresql_url, statement), await _housekeeping(postgresql_url, statement)
        handler, command = await _handler(postgresql_url, statement), _command(postgresql_url, statement)
        print(f"{fault:26}{', '.join(relay):20}{', '.join(inbox):20}{handler:10}{command:10}")
        expected = ((ours, connection), ("waits", connection), handlers, ours)
        if (relay, inbox, handler, command) != expected:
            wrong.append(f"{fault}: {expected}")
    assert wrong == []
