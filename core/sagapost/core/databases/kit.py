"""One object per kind of database: how it is spoken to, where it differs from the others, and what its errors mean.

Chosen once from an engine or connection (`kit_of`). Nothing outside the kits and the adapters asks for a dialect or a
code. Another database is one module with one subclass of `DatabaseKit`, made known by `register`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Protocol, assert_never

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Executable,
    FromClause,
    Insert,
    Select,
    Table,
)
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.schema import CreateSchema, ExecutableDDLElement
from sqlalchemy.types import TypeEngine

from sagapost.core.clock import Clock
from sagapost.core.databases.failures import (
    Conflict,
    Failure,
    MissingTable,
    Other,
    Outage,
    ReadOnly,
    Refused,
    Unavailable,
    code_of,
    driver_error,
)
from sagapost.core.errors import (
    ConfigurationError,
    SagapostError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
)

__all__ = ["Batch", "DatabaseKit", "HasDialect", "Moments", "aware", "kit_of", "register"]


class HasDialect(Protocol):
    """An engine, connection or bind of SQLAlchemy, synchronous or not."""

    @property
    def dialect(self) -> Dialect:
        """SQLAlchemy's dialect."""
        ...


class Batch(ABC):
    """A statement that writes any number of rows, compiled once."""

    @abstractmethod
    def execute(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> Collection[Any]:
        """Write the rows, in this order; return what the statement says was written.

        Of `batch_versions` the first column of the primary key of each row that was written; of `batch_once` nothing.

        :param rows: at least one; all with the same columns.
        """


class DatabaseKit(ABC):
    """One kind of database."""

    name: ClassVar[str]
    """As SQLAlchemy's dialect calls it."""
    title: ClassVar[str]
    """As people call it."""
    one_writer: ClassVar[bool] = False
    """Writing transactions take turns, and a statement must not be cancelled half-way; one connection is enough."""
    locks_rows: ClassVar[bool] = True
    """SELECT ... FOR UPDATE locks a row until the transaction ends."""
    has_schemas: ClassVar[bool] = True
    """Tables are in schemas."""
    notifies: ClassVar[bool] = False
    """A trigger can wake who listens (LISTEN/NOTIFY)."""
    writes_in_with: ClassVar[bool] = False
    """A WITH clause may hold an INSERT ... RETURNING."""
    overrides_identity: ClassVar[str] = ""
    """What INSERT says between its columns and its rows to write an identity column on purpose."""
    builds_beside_writers: ClassVar[bool] = False
    """An index can be built, and a constraint validated, while others write (CONCURRENTLY, NOT VALID)."""
    rebuilds_tables: ClassVar[bool] = False
    """A table cannot be given a constraint or lose one: it is copied into one of the new form."""
    probe: ClassVar[str] = "SELECT 1"
    """A query that a database which serves answers. If its one value is false, this server takes no writes."""
    advice: ClassVar[str] = "check user, password, database name and privileges in the database URL"
    """What to look at when it refuses."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    # --- what an error means ---

    @abstractmethod
    def classify(self, error: BaseException) -> Failure:
        """Return what an error means: of the driver, of SQLAlchemy around it, or of the socket below it.

        By class and code, never by text. What is no error of a database is `Other`.
        """

    def is_outage(self, error: BaseException) -> bool:
        """Return whether an error is one of those that are waited for on a fresh connection."""
        return isinstance(self.classify(error), Outage)

    def is_conflict(self, error: BaseException) -> bool:
        """Return whether the database undid a transaction for the sake of another one."""
        return isinstance(self.classify(error), Conflict)

    @abstractmethod
    def lacks(self, error: BaseException, connection: Connection, table: Table) -> bool:
        """Return whether an error that a statement on `table` raised says that it is not there as we know it."""

    def sentence(self, error: BaseException, *, where: str) -> str:
        """Return what an operator is told of an error. Of `Other`, whose text may quote data, only the code."""
        cause, failure = driver_error(error), self.classify(error)
        said = f" It said: {cause}" if str(cause) and not isinstance(cause, TimeoutError) else ""
        match failure:
            case Unavailable(code=code, why=why) | ReadOnly(code=code, why=why):
                # Without a code of its own it never answered.
                state = "cannot serve now" if code_of(error) else "cannot be reached"
                return f"The database at {where} {state} ({code}){f': {why}' if why else ''}.{said}"
            case Conflict(code=code):
                return f"The database at {where} undid the call for the sake of another ({code})."
            case MissingTable(code=code):
                return (
                    f"The database at {where} lacks a table or column ({code}). Run `sagapost db upgrade`, and check "
                    f"schema and table prefix.{said}"
                )
            case Refused(code=code, why=why):
                return f"The database at {where} refused ({code}): {why or self.advice}.{said}"
            case Other(code=code):
                return f"The database at {where} failed the call ({type(cause).__name__}, {code})."
            case _ as never:
                assert_never(never)

    def translate(self, error: BaseException, *, where: str) -> SagapostError:
        """Return the error of the store's port for any error of the database."""
        if isinstance(error, SagapostError):
            return error
        sentence = self.sentence(error, where=where)
        match self.classify(error):
            case Unavailable() | ReadOnly() | Conflict():
                return StoreUnavailableError(sentence)
            case MissingTable() | Refused():
                return StoreRefusedError(sentence)
            case Other():
                return StoreError(f"{sentence} It said: {driver_error(error)}")
            case _ as never:
                assert_never(never)

    # --- where it is ---

    @abstractmethod
    def address(self, url: URL) -> str:
        """Return where a database is, for logs and errors; never credentials."""

    def file(self, url: URL) -> Path | None:
        """Return the file that the database is in, where it is one and not a server."""
        del url
        return None

    # --- statements ---

    @abstractmethod
    def quote(self, table: Table) -> str:
        """Return a table's name with its schema, quoted where needed."""

    def numbers_parameters(self, driver: str) -> bool:
        """Return whether this driver takes hand-written statements with `$1::type` parameters as they are."""
        del driver
        return False

    @abstractmethod
    def insert_once(self, table: Table) -> Insert:
        """Return an INSERT that leaves an existing row alone; `rowcount` says which. One row."""

    def insert_once_in_plain(self, table: Table, number: Column[Any], octets: Column[Any]) -> str | None:
        """Return `insert_once` as text for two columns, with places for a number and for bytes in hexadecimal digits.

        None: nothing is gained by it here.
        """
        del table, number, octets
        return None

    @abstractmethod
    def insert_missing(
        self, table: Table, column: Column[Any], fixed: Mapping[str, object]
    ) -> Callable[[Connection, Sequence[Any]], set[Any]]:
        """Return a function that writes a row for each value unless it exists, and returns the values it wrote.

        :param fixed: what the other columns hold.
        """

    @abstractmethod
    def batch_once(self, table: Table) -> Batch:
        """Return the INSERT of many rows that leaves existing ones alone."""

    @abstractmethod
    def batch_versions(self, table: Table, version: Column[int]) -> Batch:
        """Return the INSERT of many rows that replaces a row only by its next version; the rest is left alone."""

    @abstractmethod
    def upsert(self, table: Table, values: Mapping[str, object]) -> Executable:
        """Return an INSERT of one row that replaces the row with its primary key."""

    @abstractmethod
    def is_any(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """Return "`column` is one of the values of the parameter `name`", a list. One text for any number of them."""

    @abstractmethod
    def matches(self, column: ColumnElement[Any], pieces: Sequence[str]) -> ColumnElement[bool]:
        """Return "`column` is these pieces of text in this order, with anything between two of them".

        Capital and small letters differ. The pieces are bound as a parameter, and no character in them means anything.
        """

    @abstractmethod
    def elements(self, name: str, of: type[TypeEngine[Any]]) -> FromClause:
        """Return the parameter `name` (made by `listed`) as rows with one column, `value`."""

    @abstractmethod
    def listed(self, values: Sequence[Any]) -> object:
        """Return what is bound for `elements`."""

    @abstractmethod
    def among(self, column: ColumnElement[Any], found: Select[Any], of: type[TypeEngine[Any]]) -> ColumnElement[bool]:
        """Return "`column` is one of the values that `found` finds", looked for once."""

    @abstractmethod
    def sequence_lags(self, table: Table, other: Table) -> str:
        """Return a query whose one row says whether `table` would draw a position that is not beyond all in both.

        NULL where this role may not see it; then the second column is the statement that lets it.
        """

    @abstractmethod
    def advance_sequence(self, table: Table, other: Table) -> str:
        """Return a statement that advances the positions of `table` past all in both, if they lag; repeatable."""

    def writers_turn(self, table: Table) -> Executable | None:
        """Return a statement that makes this the only writing transaction; None where rows are locked.

        To be executed before anything is read that decides what is written.
        """
        del table
        return None

    def end_stranded(self, tables: Sequence[Table], *, silent_for: timedelta) -> Executable | None:
        """Return a statement that ends stranded transactions of this role which wrote to `tables`; its rows: how many.

        Stranded: the server is in the middle of a statement and has waited so long for its client to go on, which no
        client that is alive lets it do. None where a lost client is always noticed.
        """
        del tables, silent_for
        return None

    @abstractmethod
    def begin_writing(self, connection: Connection) -> None:
        """Begin a transaction that writes, where the driver would begin one too late. Nothing elsewhere."""

    @abstractmethod
    def prepare_install(self, connection: Connection, schema: str | None) -> None:
        """Take the turn of installers and make the schema, in the caller's transaction."""

    def create_schema(self, schema: str | None) -> ExecutableDDLElement | None:
        """Return the statement that makes the tables' schema, where there is such a thing; for scripts."""
        return None if schema is None else CreateSchema(schema, if_not_exists=True)

    # --- migrations ---

    @contextmanager
    def turn_of_upgrades(self, connection: Connection) -> Generator[None]:
        """Let one upgrade at a time run on a database. Nothing where every step of one takes the writer's turn anyway.

        :param connection: without an open transaction, before and after.
        """
        del connection
        yield

    @abstractmethod
    def begin_step(self, connection: Connection, *, patience: timedelta) -> None:
        """Begin the transaction of a step that changes a table.

        What it has to wait for a lock, with the writers queued behind it, is limited to `patience`; then it fails with
        a `Conflict`, and may be tried again.
        """

    def index_is_valid(self, connection: Connection, name: str) -> bool:
        """Return whether an index that exists is usable: its building may have been cut off.

        :param name: quoted, with its schema.
        """
        del connection, name
        return True

    def check_is_validated(self, connection: Connection, table: Table, name: str) -> bool:
        """Return whether the rows that were there before a CHECK have been held against it."""
        del connection, table, name
        return True

    def table_as_created(self, connection: Connection, table: Table) -> str | None:
        """Return the CREATE TABLE statement of a table, where the database keeps it."""
        del connection, table
        return None

    # --- time ---

    @abstractmethod
    def now(self, clock: Clock) -> ColumnElement[datetime]:
        """Return the current time by the database's clock, not that of the transaction's begin."""

    @abstractmethod
    def after(self, clock: Clock, delay: timedelta) -> ColumnElement[datetime]:
        """Return the time `delay` from now; negative: ago."""

    def moments(self, clock: Clock) -> Moments:
        """Return this database's times.

        :param clock: of this process, for a database that has no usable one of its own.
        """
        return Moments(self, clock)


def aware(moment: datetime) -> datetime:
    """Return a time from a column with its timezone: SQLite keeps none, and ours are in UTC."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


class Moments:
    """SQL expressions for now and later, by the clock that every replica shares where there is one."""

    __slots__ = ("_clock", "kit")

    def __init__(self, kit: DatabaseKit, clock: Clock) -> None:
        self.kit = kit
        self._clock = clock

    def now(self) -> ColumnElement[datetime]:
        """The current time, not that of the transaction's begin."""
        return self.kit.now(self._clock)

    def after(self, delay: timedelta) -> ColumnElement[datetime]:
        """The time `delay` from now; negative: ago."""
        return self.kit.after(self._clock, delay)


_kits: dict[str, DatabaseKit] = {}


def register(kit: DatabaseKit) -> None:
    """Make a kind of database known; a later one of the same name replaces the earlier."""
    _kits[kit.name] = kit


def kit_of(bind: HasDialect | str) -> DatabaseKit:
    """Return the kit for an engine, connection or bind, or for the name of a dialect.

    :raises ConfigurationError: if there is none.
    """
    name = bind if isinstance(bind, str) else bind.dialect.name
    kit = _kits.get(name)
    if kit is None:
        known = " or ".join(sorted(each.title for each in _kits.values()))
        raise ConfigurationError(
            f"sagapost has no kit for the database {name!r}. Use {known}, or register one "
            "(sagapost.core.databases.register)."
        )
    return kit
