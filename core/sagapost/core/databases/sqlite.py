"""SQLite, through sqlite3 or aiosqlite."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Executable,
    FromClause,
    Insert,
    Select,
    Table,
    Text,
    bindparam,
    false,
    func,
    inspect,
    literal,
    text,
    update,
)
from sqlalchemy import column as named
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import URL
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.types import TypeEngine

from sagapost.core.clock import Clock
from sagapost.core.databases.failures import (
    Conflict,
    Failure,
    Other,
    Refused,
    Unavailable,
    driver_error,
    is_lost,
    of_the_socket,
)
from sagapost.core.databases.kit import Batch, DatabaseKit

__all__ = ["SQLite"]

_CONFLICTS: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
"""Another connection is writing."""

_UNAVAILABLE: Final = frozenset(
    {
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        # The file is not there yet, or its folder is not mounted: it may be there at the next attempt.
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_SCHEMA,
    }
)

_REFUSED: Final = frozenset(
    {
        sqlite3.SQLITE_PERM,
        # No fail-over will make a file writable: a person must act.
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_NOTADB,
    }
)


class SQLite(DatabaseKit):
    """SQLite, in a file or in memory."""

    name = "sqlite"
    title = "SQLite"
    one_writer = True
    locks_rows = False
    has_schemas = False
    advice = "check that the path names a SQLite database and that this user may write the file and its folder"

    def classify(self, error: BaseException) -> Failure:
        """See `DatabaseKit.classify`."""
        cause = driver_error(error)
        code: object = getattr(cause, "sqlite_errorcode", None)
        if not isinstance(code, int):
            found = of_the_socket(cause) or Other(type(cause).__name__)
        else:
            found = _by_code(code, getattr(cause, "sqlite_errorname", str(code)))
        if isinstance(found, Other) and is_lost(error):
            return Unavailable(found.code, "the connection broke")
        return found

    def lacks(self, error: BaseException, connection: Connection, table: Table) -> bool:
        """See `DatabaseKit.lacks`. SQLite has one code for everything that is wrong with a statement; so we look."""
        if getattr(driver_error(error), "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR:
            return False
        there = inspect(connection)
        if not there.has_table(table.name, schema=table.schema):
            return True
        found = {each["name"] for each in there.get_columns(table.name, schema=table.schema)}
        return not found.issuperset(table.columns.keys())

    def address(self, url: URL) -> str:
        """See `DatabaseKit.address`."""
        return f"the file {url.database}" if url.database and url.database != ":memory:" else "memory"

    def file(self, url: URL) -> Path | None:
        """See `DatabaseKit.file`."""
        return Path(url.database) if url.database and url.database != ":memory:" else None

    # --- statements ---

    def quote(self, table: Table) -> str:
        """See `DatabaseKit.quote`."""
        return sqlite.dialect().identifier_preparer.format_table(table)

    def insert_once(self, table: Table) -> Insert:
        """See `DatabaseKit.insert_once`."""
        return sqlite.insert(table).on_conflict_do_nothing().inline()

    def insert_missing(
        self, table: Table, column: Column[Any], fixed: Mapping[str, object]
    ) -> Callable[[Connection, Sequence[Any]], set[Any]]:
        """See `DatabaseKit.insert_missing`. A statement for each value: they are calls within this process."""
        statement = self.insert_once(table)

        def write(connection: Connection, values: Sequence[Any]) -> set[Any]:
            rows = ({**fixed, column.name: value} for value in values)
            return {row[column.name] for row in rows if connection.execute(statement, row).rowcount == 1}

        return write

    def batch_once(self, table: Table) -> Batch:
        """See `DatabaseKit.batch_once`."""
        return _Rows(_of_parameters(table).on_conflict_do_nothing())

    def batch_versions(self, table: Table, version: Column[int]) -> Batch:
        """See `DatabaseKit.batch_versions`."""
        insert = _of_parameters(table)
        new = insert.excluded
        upsert = insert.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={each.name: new[each.name] for each in table.columns if not each.primary_key},
            where=version == new[version.name] - 1,
        )
        return _Rows(upsert, next(iter(table.primary_key.columns)).name)

    def upsert(self, table: Table, values: Mapping[str, object]) -> Executable:
        """See `DatabaseKit.upsert`."""
        keys = list(table.primary_key.columns)
        replaced = {name: value for name, value in values.items() if not table.c[name].primary_key}
        return sqlite.insert(table).values(dict(values)).on_conflict_do_update(index_elements=keys, set_=replaced)

    def is_any(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """See `DatabaseKit.is_any`."""
        return column.in_(bindparam(name, expanding=True))

    def matches(self, column: ColumnElement[Any], pieces: Sequence[str]) -> ColumnElement[bool]:
        """See `DatabaseKit`. LIKE makes no difference between capital and small letters here; GLOB does."""
        pattern = "*".join(re.sub(r"([*?\[])", r"[\1]", piece) for piece in pieces)
        return column.op("GLOB", is_comparison=True, return_type=Boolean())(literal(pattern, Text))

    def elements(self, name: str, of: type[TypeEngine[Any]]) -> FromClause:
        """See `DatabaseKit.elements`: any number of values are the JSON of one text."""
        return func.json_each(bindparam(name)).table_valued(named("value", of), name="incoming")

    def listed(self, values: Sequence[Any]) -> object:
        """See `DatabaseKit.listed`."""
        return json.dumps(list(values), ensure_ascii=False)

    def among(self, column: ColumnElement[Any], found: Select[Any], of: type[TypeEngine[Any]]) -> ColumnElement[bool]:
        """See `DatabaseKit.among`."""
        del of
        return column.in_(found)

    def sequence_lags(self, table: Table, other: Table) -> str:
        """See `DatabaseKit.sequence_lags`.

        AUTOINCREMENT looks at the table as well as at its memory, so only rows of the other table can be ahead.
        """
        return (
            f"SELECT ({self._highest(table, other)}) > max("  # noqa: S608 - names of ours
            f"coalesce((SELECT seq FROM sqlite_sequence WHERE name = '{table.name}'), 0), "
            f"coalesce((SELECT max(position) FROM {self.quote(table)}), 0)), NULL"
        )

    def advance_sequence(self, table: Table, other: Table) -> str:
        """See `DatabaseKit.advance_sequence`."""
        highest = self._highest(table, other)
        return (
            f"UPDATE sqlite_sequence SET seq = ({highest}) "  # noqa: S608 - names of ours
            f"WHERE name = '{table.name}' AND seq < ({highest})"
        )

    def _highest(self, table: Table, other: Table) -> str:
        return (
            f"SELECT max(coalesce((SELECT max(position) FROM {self.quote(table)}), 0), "  # noqa: S608 - likewise
            f"coalesce((SELECT max(position) FROM {self.quote(other)}), 0))"
        )

    def writers_turn(self, table: Table) -> Executable | None:
        """See `DatabaseKit.writers_turn`.

        There are no row locks, and the driver begins a transaction with the first statement that writes: until then
        reads stand alone, and the end of an outermost savepoint is a commit. This one writes nothing.
        """
        first = next(iter(table.columns))
        return update(table).where(false()).values({first.name: first})

    def begin_writing(self, connection: Connection) -> None:
        """See `DatabaseKit.begin_writing`. The driver opens no transaction for DDL by itself."""
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def prepare_install(self, connection: Connection, schema: str | None) -> None:
        """See `DatabaseKit.prepare_install`: whoever writes has the turn, and there are no schemas."""

    def create_schema(self, schema: str | None) -> ExecutableDDLElement | None:
        """See `DatabaseKit.create_schema`."""
        del schema
        return None

    # --- migrations ---

    rebuilds_tables = True

    def begin_step(self, connection: Connection, *, patience: timedelta) -> None:
        """See `DatabaseKit.begin_step`. The connection's own busy timeout limits the wait."""
        del patience
        self.begin_writing(connection)

    def table_as_created(self, connection: Connection, table: Table) -> str | None:
        """See `DatabaseKit.table_as_created`."""
        kept = text("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = :name")
        found: str | None = connection.execute(kept, {"name": table.name}).scalar_one_or_none()
        return found

    # --- time ---

    def now(self, clock: Clock) -> ColumnElement[datetime]:
        """See `DatabaseKit.now`.

        SQLite runs in this very process, and its own CURRENT_TIMESTAMP has whole seconds only.
        """
        return literal(clock.now(), DateTime(timezone=True))

    def after(self, clock: Clock, delay: timedelta) -> ColumnElement[datetime]:
        """See `DatabaseKit.after`."""
        return literal(clock.now() + delay, DateTime(timezone=True))


class _Rows(Batch):
    """The same statement for many rows.

    :param key: of what is returned. Nobody else writes meanwhile, so all rows count as written.
    """

    def __init__(self, statement: Executable, key: str | None = None) -> None:
        self._statement = statement
        self._key = key

    def execute(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> Collection[Any]:
        """See `Batch.execute`."""
        connection.execute(self._statement, list(rows))
        return () if self._key is None else {row[self._key] for row in rows}


def _of_parameters(table: Table) -> sqlite.Insert:
    return sqlite.insert(table).values({each.name: bindparam(each.name) for each in table.columns})


def _by_code(code: int, name: str) -> Failure:
    # Extended result codes keep the primary one in their low byte.
    primary = code & 0xFF
    if primary in _CONFLICTS:
        return Conflict(name)
    if primary in _UNAVAILABLE:
        return Unavailable(name)
    if primary in _REFUSED:
        return Refused(name)
    return Other(name)
