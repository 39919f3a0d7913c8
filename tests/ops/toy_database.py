"""A database of another package: SQLite under a name, a dialect and a kit of its own. Its tests install it.

Nothing here is ours but what an adapter is to know: the port, the kit's class, and the registry of SQLAlchemy.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.dialects.sqlite.base import SQLiteTypeCompiler
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from sagapost.adapters.sqlite import SQLiteOutboxStore
from sagapost.core.adapters import DatabaseAdapter, EngineOptions
from sagapost.core.databases import SQLite

__all__ = ["ToyDialect", "adapter"]

registry.register("toysql", __name__, "ToyDialect")


class _Types(SQLiteTypeCompiler):
    """Every whole number is an INTEGER, without which no column of SQLite counts up."""

    def visit_big_integer(self, type_: Any, **options: Any) -> str:
        return self.visit_INTEGER(type_, **options)

    visit_small_integer = visit_big_integer


class ToyDialect(SQLiteDialect_aiosqlite):
    """As SQLAlchemy speaks to it."""

    name = "toysql"
    type_compiler_cls = _Types
    supports_statement_cache = True


class Toy(SQLite):
    """What differs from other databases."""

    name = "toysql"
    title = "ToySQL"


def _make_store(
    url: str, *, tables: Any, direct_url: str | None, connect_timeout: timedelta, call_timeout: timedelta
) -> SQLiteOutboxStore:
    del direct_url, connect_timeout, call_timeout
    return SQLiteOutboxStore(Path(make_url(url).database or ""), tables=tables)


def _make_engine(url: str, options: EngineOptions) -> AsyncEngine:
    if options.pool_size is None:
        return create_async_engine(_url(url), poolclass=NullPool)
    engine = create_async_engine(_url(url))

    @event.listens_for(engine.sync_engine, "connect")
    def _prepare(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.close()

    return engine


def _url(url: str) -> URL:
    return make_url(url).set(drivername="toysql")


def _check_url(url: str) -> None:
    if not url.endswith(".toys"):
        raise ValueError("names no box of toys; use toysql:///path.toys")


adapter = DatabaseAdapter(
    name="toysql",
    title="ToySQL",
    driver="aiosqlite",
    extra=None,
    kit=Toy,
    url=_url,
    make_store=_make_store,
    make_engine=_make_engine,
    is_server=False,
    check_url=_check_url,
)
