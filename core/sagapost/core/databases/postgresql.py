"""PostgreSQL, through asyncpg, psycopg, or any driver whose errors carry a SQLSTATE."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Executable,
    FromClause,
    Insert,
    Interval,
    Select,
    Table,
    Text,
    any_,
    bindparam,
    func,
    literal,
    select,
    text,
)
from sqlalchemy import column as named
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.base import PGDialect, PGIdentifierPreparer
from sqlalchemy.engine import URL
from sqlalchemy.schema import CreateSchema
from sqlalchemy.types import TypeEngine

from sagapost.core.clock import Clock
from sagapost.core.databases.failures import (
    Conflict,
    Failure,
    MissingTable,
    Other,
    ReadOnly,
    Refused,
    Unavailable,
    code_of,
    driver_error,
    is_lost,
    of_the_socket,
)
from sagapost.core.databases.kit import Batch, DatabaseKit
from sagapost.core.databases.libpq import code_in

__all__ = ["PostgreSQL", "quoting"]

quoting = PGIdentifierPreparer(PGDialect())  # type: ignore[no-untyped-call]  # untyped in SQLAlchemy
"""Quotes names where no connection is at hand."""

_INSTALL_LOCK: Final = int.from_bytes(b"sagapost")
"""Advisory lock of installers, one per database; eight bytes that nobody else is likely to take."""

_POOLER = (
    "a pooler between here and the server mixes up prepared statements: use sagapost's own connections, or switch "
    "statement names off in your engine (docs/operations.md, Poolers)"
)
_UNAVAILABLE: Final[Mapping[str, str]] = {
    "25P03": "it ended a connection that was idle in its transaction for longer than "
    "idle_in_transaction_session_timeout",
    "25P04": "it ended a connection whose transaction took longer than transaction_timeout",
    "53100": "its disk is full",
    "53200": "it is out of memory",
    "53300": "it has no connection left: raise max_connections or the limit of the role or database, or use fewer",
    "57014": "it cancelled the statement (statement_timeout, or by hand)",
    "57P01": "it ended the connection: a shutdown, or by hand",
    "57P02": "it ended the connection: another backend crashed",
    "57P03": "it is starting up or shutting down",
    "57P05": "it ended a connection that was idle for longer than idle_session_timeout",
    "26000": _POOLER,  # the prepared statement is not there
    "42P05": _POOLER,  # it is there already
    "34000": _POOLER,  # nor is the portal
    "40003": "whether the statement took effect is unknown",
}
"""SQLSTATE -> what to tell an operator."""

_UNAVAILABLE_CLASSES: Final = frozenset({"08", "53", "55", "57", "58"})
"""Connection, resources, object not in the right state (starting up), operator intervention, system error."""

_STATEMENT_CLASSES: Final = frozenset({"53", "55", "58"})
_STATEMENT_CODES: Final = frozenset({"57014"})
"""The statement failed, the connection did not: a handler may roll back to its savepoint and go on."""

_CONFLICTS: Final = frozenset({"40000", "40001", "40P01", "55P03"})
"""Rolled back, serialisation failure, deadlock, and a lock that was not to be had in time."""

_MISSING: Final = frozenset({"42P01", "42703", "3F000"})
"""Undefined table, undefined column, no such schema: no tables of ours, or those of another release."""

_REFUSALS: Final[Mapping[str, str]] = {
    "28P01": "user or password is wrong",
    "28000": "this user may not log in to this database from here (pg_hba.conf, or the role may not log in)",
    "3D000": "there is no such database",
    "42501": "this user lacks a privilege",
}
_REFUSED_CLASSES: Final = frozenset({"28", "3D"})

# Errors without a SQLSTATE, which clients raise themselves: by the names that PEP 249 and asyncpg give their classes.
_BROKEN_CLIENT: Final = frozenset({"InterfaceError", "OperationalError", "InternalClientError"})
_BAD_ARGUMENT: Final = frozenset({"DataError", "UnsupportedClientFeatureError", "UnsupportedServerFeatureError"})


class PostgreSQL(DatabaseKit):
    """PostgreSQL, 14 or later."""

    name = "postgresql"
    title = "PostgreSQL"
    notifies = True
    writes_in_with = True
    overrides_identity = "OVERRIDING SYSTEM VALUE "
    # The ping of a standby, and of a server that a fail-over has set to read-only, is no answer that helps a writer.
    probe = "SELECT current_setting('transaction_read_only') = 'off'"

    def classify(self, error: BaseException) -> Failure:
        """See `DatabaseKit.classify`."""
        code = code_of(error)
        found = _by_sqlstate(code) if code else _by_class(driver_error(error))
        if isinstance(found, Other) and is_lost(error):
            return Unavailable(found.code, "the connection broke")
        return found

    def lacks(self, error: BaseException, connection: Connection, table: Table) -> bool:
        """See `DatabaseKit.lacks`. The code says so."""
        del connection, table
        return isinstance(self.classify(error), MissingTable)

    def address(self, url: URL) -> str:
        """See `DatabaseKit.address`: host, port and database."""
        host = url.host or url.query.get("host") or "local socket"
        return f"{host if isinstance(host, str) else ','.join(host)}:{url.port or 5432}/{url.database or ''}"

    # --- statements ---

    def quote(self, table: Table) -> str:
        """See `DatabaseKit.quote`."""
        return quoting.format_table(table)

    def numbers_parameters(self, driver: str) -> bool:
        """See `DatabaseKit.numbers_parameters`."""
        return driver == "asyncpg"

    def insert_once(self, table: Table) -> Insert:
        """See `DatabaseKit.insert_once`."""
        # psycopg's cursor forgets the count when it is closed.
        insert = postgresql.insert(table).on_conflict_do_nothing().inline()
        return insert.execution_options(preserve_rowcount=True)

    def insert_once_in_plain(self, table: Table, number: Column[Any], octets: Column[Any]) -> str | None:
        """See `DatabaseKit.insert_once_in_plain`."""
        name = self.quote(table).replace("{", "{{").replace("}", "}}")
        # Not a literal with a backslash: what that is depends on standard_conforming_strings.
        values = "VALUES ({}, decode('{}', 'hex')) ON CONFLICT DO NOTHING"
        return f"INSERT INTO {name} ({number.name}, {octets.name}) {values}"

    def insert_missing(
        self, table: Table, column: Column[Any], fixed: Mapping[str, object]
    ) -> Callable[[Connection, Sequence[Any]], set[Any]]:
        """See `DatabaseKit.insert_missing`: one statement, and one text of it for any number of values."""
        incoming = self.elements("values", type(column.type))
        constants = [literal(value, table.c[name].type) for name, value in fixed.items()]
        statement = (
            postgresql.insert(table)
            .from_select([*fixed, column.name], select(*constants, incoming.c.value))
            .on_conflict_do_nothing()
            .returning(column)
        )

        def write(connection: Connection, values: Sequence[Any]) -> set[Any]:
            return set(connection.execute(statement, {"values": list(values)}).scalars())

        return write

    def batch_once(self, table: Table) -> Batch:
        """See `DatabaseKit.batch_once`."""
        return _Arrays(table, _of_arrays(table).on_conflict_do_nothing())

    def batch_versions(self, table: Table, version: Column[int]) -> Batch:
        """See `DatabaseKit.batch_versions`."""
        insert = _of_arrays(table)
        new = insert.excluded
        upsert = insert.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={each.name: new[each.name] for each in table.columns if not each.primary_key},
            where=version == new[version.name] - 1,
        )
        return _Arrays(table, upsert.returning(_key(table)))

    def upsert(self, table: Table, values: Mapping[str, object]) -> Executable:
        """See `DatabaseKit.upsert`."""
        keys = list(table.primary_key.columns)
        replaced = {name: value for name, value in values.items() if not table.c[name].primary_key}
        return postgresql.insert(table).values(dict(values)).on_conflict_do_update(index_elements=keys, set_=replaced)

    def is_any(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """See `DatabaseKit.is_any`: the values are one array."""
        return column == func.any(bindparam(name, type_=ARRAY(column.type)))

    def matches(self, column: ColumnElement[Any], pieces: Sequence[str]) -> ColumnElement[bool]:
        """See `DatabaseKit`."""
        pattern = "%".join(re.sub(r"([\\%_])", r"\\\1", piece) for piece in pieces)
        return column.like(literal(pattern, Text), escape="\\")

    def elements(self, name: str, of: type[TypeEngine[Any]]) -> FromClause:
        """See `DatabaseKit.elements`."""
        array = func.unnest(bindparam(name, type_=ARRAY(of)))
        return array.table_valued(named("value", of), name="incoming").render_derived()

    def listed(self, values: Sequence[Any]) -> object:
        """See `DatabaseKit.listed`."""
        return list(values)

    def among(self, column: ColumnElement[Any], found: Select[Any], of: type[TypeEngine[Any]]) -> ColumnElement[bool]:
        """See `DatabaseKit.among`.

        As an array: without statistics of a table that has just grown, a join looks anew for each of its rows.
        """
        return column == any_(func.array(found.scalar_subquery(), type_=ARRAY(of)))

    def sequence_lags(self, table: Table, other: Table) -> str:
        """See `DatabaseKit.sequence_lags`."""
        seen = "has_sequence_privilege(seq, 'USAGE, SELECT')"
        return (
            f"SELECT CASE WHEN seq IS NULL OR highest IS NULL THEN false WHEN {seen} THEN {_BEHIND} END, "  # noqa: S608
            f"format('GRANT SELECT ON SEQUENCE %s TO %I', seq, current_user) FROM {_positions(table, other)}"
        )

    def advance_sequence(self, table: Table, other: Table) -> str:
        """See `DatabaseKit.advance_sequence`. It needs the right UPDATE on the sequence only where it has to act."""
        return f"SELECT setval(seq, highest) FROM {_positions(table, other)} WHERE seq IS NOT NULL AND {_BEHIND}"  # noqa: S608

    def end_stranded(self, tables: Sequence[Table], *, silent_for: timedelta) -> Executable:
        """See `DatabaseKit.end_stranded`.

        asyncpg prepares a statement with Parse and Flush, and executes it with Bind and Sync. A client that is lost in
        between leaves its transaction `active`, waiting for `ClientRead`: no idle_in_transaction_session_timeout is
        running then, cancel requests and statement_timeout are held back until the next byte arrives, and TCP
        notices after two hours or, behind a proxy, never. Only pg_terminate_backend ends it, which a role may call
        for its own connections. pg_locks tells by the lock that every INSERT takes on its table who wrote to it.
        """
        return text(
            """
            SELECT pg_terminate_backend(a.pid)
            FROM pg_catalog.pg_stat_activity a
            WHERE a.usename = current_user AND a.datname = current_database() AND a.pid <> pg_backend_pid()
              AND a.state = 'active' AND a.wait_event = 'ClientRead'
              AND a.state_change < clock_timestamp() - :silent_for
              AND EXISTS (SELECT FROM pg_catalog.pg_locks l
                          WHERE l.pid = a.pid AND l.granted AND l.mode = 'RowExclusiveLock'
                            AND l.relation = ANY (SELECT to_regclass(name) FROM unnest(:tables) name))
            """
        ).bindparams(
            bindparam("silent_for", silent_for, type_=Interval()),
            bindparam("tables", [self.quote(table) for table in tables], type_=ARRAY(Text)),
        )

    def begin_writing(self, connection: Connection) -> None:
        """See `DatabaseKit.begin_writing`: the driver does it."""

    def prepare_install(self, connection: Connection, schema: str | None) -> None:
        """See `DatabaseKit.prepare_install`.

        IF NOT EXISTS does not help two transactions that create the same name: the second fails on the catalogue's
        unique index. The lock ends with the caller's transaction; it is waited for as in `turn_of_upgrades`.
        """
        wait = text(f"SELECT pg_try_advisory_xact_lock({_INSTALL_LOCK}) OR pg_sleep(0.1) IS NULL")
        while not connection.execute(wait).scalar_one():
            pass
        if schema is not None:
            connection.execute(CreateSchema(schema, if_not_exists=True))

    # --- migrations ---

    builds_beside_writers = True

    @contextmanager
    def turn_of_upgrades(self, connection: Connection) -> Generator[None]:
        """See `DatabaseKit.turn_of_upgrades`: a lock of the session, so that it holds over several transactions.

        Waited for in short statements: an index that is built concurrently waits for every older statement, and would
        wait for ever for one that waits for its builder.
        """
        wait = text(f"SELECT pg_try_advisory_lock({_INSTALL_LOCK}) OR pg_sleep(0.2) IS NULL")
        while not connection.execute(wait).scalar_one():
            connection.rollback()
        connection.commit()
        try:
            yield
        finally:
            connection.rollback()
            connection.execute(select(func.pg_advisory_unlock(_INSTALL_LOCK)))
            connection.commit()

    def begin_step(self, connection: Connection, *, patience: timedelta) -> None:
        """See `DatabaseKit.begin_step`."""
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{int(patience.total_seconds() * 1000)}ms'")

    def index_is_valid(self, connection: Connection, name: str) -> bool:
        """See `DatabaseKit.index_is_valid`."""
        valid = text("SELECT indisvalid FROM pg_catalog.pg_index WHERE indexrelid = to_regclass(:name)")
        return bool(connection.execute(valid, {"name": name}).scalar_one_or_none())

    def check_is_validated(self, connection: Connection, table: Table, name: str) -> bool:
        """See `DatabaseKit.check_is_validated`."""
        valid = text(
            "SELECT convalidated FROM pg_catalog.pg_constraint WHERE conname = :name AND conrelid = to_regclass(:of)"
        )
        return bool(connection.execute(valid, {"name": name, "of": self.quote(table)}).scalar_one_or_none())

    # --- time ---

    def now(self, clock: Clock) -> ColumnElement[datetime]:
        """See `DatabaseKit.now`: the clock that every replica shares."""
        del clock
        return func.clock_timestamp(type_=DateTime(timezone=True))

    def after(self, clock: Clock, delay: timedelta) -> ColumnElement[datetime]:
        """See `DatabaseKit.after`."""
        return self.now(clock) + delay


class _Arrays(Batch):
    """Rows go in as one array for each column, so that text and plan are the same for every number of them."""

    def __init__(self, table: Table, statement: Executable) -> None:
        self._columns = [each.name for each in table.columns]
        self._statement = statement

    def execute(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> Collection[Any]:
        """See `Batch.execute`."""
        parameters = {name: [row[name] for row in rows] for name in self._columns}
        result = connection.execute(self._statement, parameters)
        return set(result.scalars()) if result.returns_rows else ()


_BEHIND: Final = "highest > coalesce(pg_sequence_last_value(seq), 0)"
"""The sequence's state is read through a function, since its name is known only when the statement runs."""


def _positions(table: Table, other: Table) -> str:
    """Return what to select from: the sequence of a table's positions, and the highest one in either table.

    Rows are not locked and none is read: both maxima come from the end of a primary key.
    """
    one, two = quoting.format_table(table), quoting.format_table(other)
    name = one.replace("'", "''")
    return (
        f"(SELECT pg_get_serial_sequence('{name}', 'position')::regclass AS seq, "  # noqa: S608
        f"greatest((SELECT max(position) FROM {one}), (SELECT max(position) FROM {two})) AS highest) s"
    )


def _of_arrays(table: Table) -> postgresql.Insert:
    columns = list(table.columns)
    arrays = [func.unnest(bindparam(each.name, type_=ARRAY(each.type))).label(each.name) for each in columns]
    return postgresql.insert(table).from_select([each.name for each in columns], select(*arrays))


def _key(table: Table) -> Column[Any]:
    return next(iter(table.primary_key.columns))


def _by_sqlstate(code: str) -> Failure:
    if code == "25006":
        return ReadOnly(code)
    if code in _CONFLICTS:
        return Conflict(code)
    if code in _UNAVAILABLE or code[:2] in _UNAVAILABLE_CLASSES:
        ended = code[:2] not in _STATEMENT_CLASSES and code not in _STATEMENT_CODES
        return Unavailable(code, _UNAVAILABLE.get(code, ""), ended)
    if code in _MISSING:
        return MissingTable(code)
    if code in _REFUSALS or code[:2] in _REFUSED_CLASSES:
        return Refused(code, _REFUSALS.get(code, ""))
    return Other(code)


def _by_class(error: BaseException) -> Failure:
    """Classify an error that no server has sent."""
    found = of_the_socket(error)
    if found is not None:
        return found
    name, classes = type(error).__name__, {each.__name__ for each in type(error).__mro__}
    if "OperationalError" in classes and (code := code_in(str(error))) is not None:
        return Refused(name, "no TLS connection could be agreed on") if code == "SSL" else _by_sqlstate(code)
    if name == "TargetServerAttributeNotMatched":
        return ReadOnly(name, "none of the hosts is what target_session_attrs asks for")
    if name == "ClientConfigurationError":
        return Refused(name)
    if name in _BAD_ARGUMENT or isinstance(error, ValueError | TypeError):
        return Other(name)
    return Unavailable(name, "the connection is closed or broken") if classes & _BROKEN_CLIENT else Other(name)
