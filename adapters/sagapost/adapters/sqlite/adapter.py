"""SQLite for URLs `sqlite://`; imports the driver and SQLAlchemy when they are needed."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sagapost.core.adapters import DatabaseAdapter, EngineOptions

if TYPE_CHECKING:
    from sqlalchemy.engine import URL
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sagapost.adapters.sqlite.store import SQLiteOutboxStore
    from sagapost.core.databases import DatabaseKit

__all__ = ["adapter"]


def _kit() -> DatabaseKit:
    from sagapost.core.databases import SQLite

    return SQLite()


def _check_url(url: str) -> None:
    if url.split("://", 1)[1].partition("?")[0].lstrip("/") in {"", ":memory:"}:
        raise ValueError("names no file, and an in-memory database cannot be shared between connections")


def _url(url: str) -> URL:
    from sqlalchemy.engine import make_url

    return make_url(url).set(drivername="sqlite+aiosqlite")


def _make_store(
    url: str, *, tables: Any, direct_url: str | None, connect_timeout: timedelta, call_timeout: timedelta
) -> SQLiteOutboxStore:
    from sagapost.adapters.sqlite.store import SQLiteOutboxStore

    # Its calls wait for a writer, which is over in a moment, and for nothing else: one short limit serves them all.
    del direct_url, connect_timeout, call_timeout
    return SQLiteOutboxStore(url, tables=tables)


def _make_engine(url: str, options: EngineOptions) -> AsyncEngine:
    from sqlalchemy import event
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    turn = options.turn_timeout
    arguments = {} if turn is None else {"timeout": turn.total_seconds()}
    if options.pool_size is None:
        return create_async_engine(_url(url), poolclass=NullPool, connect_args=arguments)
    # Of any size: one writes, and the others read or wait for their turn.
    engine = create_async_engine(_url(url), connect_args=arguments)

    @event.listens_for(engine.sync_engine, "connect")
    def _prepare(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        # In WAL mode the relay and other readers do not wait for a handler's transaction, nor it for them.
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    return engine


adapter = DatabaseAdapter(
    name="sqlite",
    title="SQLite",
    driver="aiosqlite",
    extra="sqlite",
    kit=_kit,
    url=_url,
    make_store=_make_store,
    make_engine=_make_engine,
    is_server=False,
    check_url=_check_url,
    loggers={"aiosqlite": logging.WARNING},
)
