"""PostgreSQL for URLs `postgresql://` and `postgres://`; imports the driver and SQLAlchemy when they are needed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sagapost.core.adapters import DatabaseAdapter, EngineOptions
from sagapost.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection, Table
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sagapost.adapters.postgresql.store import PostgreSQLOutboxStore
    from sagapost.core.databases import DatabaseKit
    from sagapost.core.findings import Diagnosis, Patience

__all__ = ["adapter"]


def _kit() -> DatabaseKit:
    from sagapost.core.databases import PostgreSQL

    return PostgreSQL()


def _check_url(url: str) -> None:
    from sagapost.core.databases.server_url import read_server_url

    try:
        read = read_server_url(url)
        read.tls_argument()
    except ConfigurationError as error:
        raise ValueError(f"is refused. {error}") from None
    if read.database is None:
        raise ValueError("names no database after the host")


def _url(url: str) -> URL:
    from sagapost.core.databases.server_url import read_server_url

    return read_server_url(url).to_sqlalchemy("asyncpg")


def _make_store(
    url: str, *, tables: Any, direct_url: str | None, connect_timeout: timedelta, call_timeout: timedelta
) -> PostgreSQLOutboxStore:
    from sagapost.adapters.postgresql.store import PostgreSQLOutboxStore

    return PostgreSQLOutboxStore(
        url,
        tables=tables,
        direct_url=direct_url,
        call_timeout=call_timeout.total_seconds(),
        connect_timeout=connect_timeout.total_seconds(),
    )


def _make_engine(url: str, options: EngineOptions) -> AsyncEngine:
    from sqlalchemy.pool import NullPool

    from sagapost.adapters.postgresql.server import create_engine

    arguments: dict[str, Any] = {"timeout": options.connect_timeout.total_seconds()}
    if options.call_timeout is not None:
        arguments["command_timeout"] = options.call_timeout.total_seconds()
    if options.name is not None:
        arguments["server_settings"] = {"application_name": options.name}
    if options.pool_size is None:
        return create_engine(url, poolclass=NullPool, connect_args=arguments)
    return create_engine(url, pool_size=options.pool_size, max_overflow=0, connect_args=arguments)


def _examine_server(connection: Connection, tables: Sequence[Table], patience: Patience | None) -> list[Diagnosis]:
    from sagapost.adapters.postgresql.examination import examine

    return examine(connection, tables, patience=patience)


def _examine_outbox(connection: Connection, outbox: Table) -> Iterable[Diagnosis]:
    from sagapost.adapters.postgresql.examination import future_rows

    return future_rows(connection, outbox)


adapter = DatabaseAdapter(
    name="postgresql",
    title="PostgreSQL",
    driver="asyncpg",
    extra="postgresql",
    kit=_kit,
    url=_url,
    make_store=_make_store,
    make_engine=_make_engine,
    examine_server=_examine_server,
    examine_outbox=_examine_outbox,
    check_url=_check_url,
)
