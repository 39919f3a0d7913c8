"""Numbered migrations: how tables of an older release become those of this one, under load, and forward only.

A part of the schema (`sagapost.core.schema.SchemaPart`) names the `Migration`s that lead to its version, each a few
small `MigrationStep`s. A step

* knows whether it is done, by looking at the database and not at a record, so an upgrade that was killed half-way is
  begun again and goes on where it was, and tables that another tool has migrated need nothing;
* holds no lock for long: columns that need no rewrite, constraints added unvalidated and validated afterwards, indexes
  built concurrently, rows changed in chunks. What has to wait for a lock gives up after a moment and comes again, so
  that the writers queued behind it go on;
* is plain DDL, which `sagapost db sql --from` prints, and which Alembic executes (`statements`).

An empty database gets the tables as they are declared, without any migration; a test holds that both ways lead to the
same tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from sqlalchemy import CheckConstraint, Column, Connection, Dialect, Index, MetaData, Table, inspect, text
from sqlalchemy.schema import AddConstraint, CreateColumn, CreateIndex, CreateTable

from sagapost.core.databases import kit_of

__all__ = [
    "AddCheck",
    "AddColumn",
    "AddIndex",
    "AddTable",
    "ChangePrimaryKey",
    "ChangeRows",
    "DropCheck",
    "DropColumn",
    "Execute",
    "Migration",
    "RebuildTable",
    "RelaxColumn",
    "MigrationStep",
    "ValidateCheck",
    "statements_of",
]


class MigrationStep(ABC):
    """One small change. Repeatable: carried out again, or after a part of it, it ends in the same tables."""

    autocommit: ClassVar[bool] = False
    """Whether it must run outside a transaction (an index that is built concurrently)."""
    optional: ClassVar[bool] = False
    """Whether the upgrade goes on where the rows themselves are against it."""
    repeated: ClassVar[bool] = False
    """Whether its statement is to be repeated, each time in a transaction of its own, until it changes no row."""

    rebuilding: ClassVar[bool | None] = False
    """Whether it is for databases that copy a table to change it (`RebuildTable`), or that alter it; None: both."""

    @property
    @abstractmethod
    def what(self) -> str:
        """What it does, for whoever watches the upgrade."""

    @abstractmethod
    def found(self, connection: Connection) -> bool:
        """Return whether the database looks as it does after the step."""

    @abstractmethod
    def written(self, dialect: Dialect) -> Sequence[str]:
        """Return the statements for a database that the step is for."""

    def done(self, connection: Connection) -> bool:
        """Return whether the database needs it no more."""
        return not self._is_for(connection.dialect) or self.found(connection)

    def statements(self, dialect: Dialect) -> Sequence[str]:
        """Return the statements for a database; none where it needs nothing of this kind."""
        return self.written(dialect) if self._is_for(dialect) else ()

    def _is_for(self, dialect: Dialect) -> bool:
        return self.rebuilding is None or self.rebuilding == kit_of(dialect.name).rebuilds_tables


@dataclass(frozen=True, slots=True)
class Migration:
    """What leads a part from the version before to `version`."""

    version: int
    steps: tuple[MigrationStep, ...]


def statements_of(
    migrations: Iterable[Migration], dialect: Dialect, *, after: int
) -> Iterator[tuple[MigrationStep, str]]:
    """Yield every statement of the migrations beyond version `after`, each with its step."""
    for migration in migrations:
        if migration.version > after:
            for step in migration.steps:
                for statement in step.statements(dialect):
                    yield step, statement


# --- steps ---


@dataclass(frozen=True, slots=True)
class AddTable(MigrationStep):
    """A new table, with its indexes."""

    table: Table
    rebuilding: ClassVar[bool | None] = None

    @property
    def what(self) -> str:
        """See `MigrationStep`."""
        return f"create the table {self.table.name}"

    def found(self, connection: Connection) -> bool:
        """See `MigrationStep`."""
        return inspect(connection).has_table(self.table.name, schema=self.table.schema)

    def written(self, dialect: Dialect) -> Sequence[str]:
        """See `MigrationStep`."""
        return [
            _compiled(CreateTable(self.table), dialect),
            *(_compiled(CreateIndex(index), dialect) for index in _indexes(self.table, dialect)),
        ]


@dataclass(frozen=True, slots=True)
class AddColumn(MigrationStep):
    """A new column. It is nullable or has a constant default: then no row is rewritten."""

    column: Column[object]

    @property
    def what(self) -> str:
        """See `MigrationStep`."""
        return f"add the column {self.column.table.name}.{self.column.name}"

    def found(self, connection: Connection) -> bool:
        """See `MigrationStep`."""
        return self.column.name in _columns(connection, _table(self.column))

    def written(self, dialect: Dialect) -> Sequence[str]:
        """See `MigrationStep`."""
        column = _compiled(CreateColumn(self.column), dialect)
        return [f"ALTER TABLE {_name(_table(self.column), dialect)} ADD COLUMN {column}"]


@dataclass(frozen=True, slots=True)
class RelaxColumn(MigrationStep):
    """A column takes NULL now, or fills itself in: nobody who writes as before is refused."""

    column: Column[object]

    @property
    def what(self) -> str:
        """See `MigrationStep`."""
        return f"let {self.column.table.name}.{self.column.name} be left out"

    def found(self, connection: Connection) -> bool:
        """See `MigrationStep`."""
        table = _table(self.column)
        columns = inspect(connection).get_columns(table.name, schema=table.schema)
        found = next((each for each in columns if each["name"] == self.column.name), None)
        return (
            found is not None
            and (found["nullable"] or not self.column.nullable)
            and (found["default"] is not None or self.column.server_default is None)
        )

    def written(self, dialect: Dialect) -> Sequence[str]:
        """See `MigrationStep`."""
        quote = dialect.identifier_preparer
        alter = f"ALTER TABLE {_name(_table(self.column), dialect)} ALTER COLUMN {quote.quote(self.column.name)}"
        default = dialect.ddl_compiler(dialect, CreateTable(_table(self.column))).get_column_default_string(
            self.column
        )
        return [
            *([f"{alter} DROP NOT NULL"] if self.column.nullable else []),
            *([f"{alter} SET DEFAULT {default}"] if default is not None else []),
        ]


@dataclass(frozen=True, slots=True)
class DropColumn(MigrationStep):
    """A column goes, and with it every index and constraint that it has a part in."""

    table: Table
    name: str

    @property
    def what(self) -> str:
        """See `MigrationStep`."""
        return f"drop the column {self.table.name}.{self.name}"

    def found(self, connection: Connection) -> bool:
        """See `MigrationStep`."""
        return self.name not in _columns(connection, self.table)

    def written(self, dialect: Dialect) -> Sequence[str]:
        """See `MigrationStep`."""
        name = dialect.identifier_preparer.quote(self.name)
        return [f"ALTER TABLE {_name(self.table, dialect)} DROP COLUMN IF EXISTS {name}"]


@dataclass(frozen=True, slots=True)
class ChangePrimaryKey(MigrationStep):
    """Other columns are the primary key; the table is locked while its index is built."""

    table: Table

    @property
    def what(self) -> str:
        """See `MigrationStep`."""
        return f"make ({', '.join(self._columns())}) the primary key of {self.table.name}"

    def _columns(self) -> list[str]:
        return [column.name for column in self.table.primary_key.columns]

    def found(self, connection: Connection) -> bool:
        """See `MigrationStep`."""
        found = inspect(connection).get_pk_constraint(self.table.name, schema=self.table.schema)
        return found["constrained_columns"] == self._columns()

    def written(self, dialect: Dialect) -> Sequence[str]:
        """See `MigrationStep`."""
        quote, name = dialect.identifier_preparer.quote, _name(self.table, dialect)
        key = quote(str(self.table.primary_key.name or f"{self.table.name}_pkey"))
        columns = ", ".join(quote(column) for column in self._columns())
        return [f"ALTER TABLE {name} DROP CONSTRAINT IF EXISTS {key}, ADD CONSTRAINT {key} PRIMARY KEY ({columns})"]


@dataclass(frozen=True, slots=True)
class AddIndex(MigrationStep):
    """A new index, built beside the writers where the database can do so."""

    index: Index
    autocommit: ClassVar[bool] = True

    @property
    def what(self) -> str:
        """See `MigrationStep`."""
        return f"build the index {self.index.name}"

    def found(self, connection: Connection) -> bool:
        """See `MigrationStep`. An index whose building was cut off is there and invalid; it is built again."""
        table = _table(self.index)
        if self.index not in _indexes(table, connection.dialect):
            return True
        names = {index["name"] for index in inspect(connection).get_indexes(table.name, schema=table.schema)}
        if self.index.name not in names:
            return False
        return kit_of(connection).index_is_valid(connection, self._name(connection.dialect))

    def written(self, dialect: Dialect) -> Sequence[str]:
        """See `MigrationStep`."""
        if self.index not in _indexes(_table(self.index), dialect):
            return []
        create = _compiled(CreateIndex(self.index), dialect)
        if not kit_of(dialect.name).builds_beside_writers:
            return [create]
        return [
            f"DROP INDEX CONCURRENTLY IF EXISTS {self._name(dialect)}",
            create.replace("INDEX", "INDEX CONCURRENTLY", 1),
        ]

    def _name(self, dialect: Dialect) -> str:
        quote = dialect.identifier_preparer
        name, schema = quote.quote(str(self.index.name)), _table(self.index).schema
        return f"{quote.quote_schema(schema)}.{name}" if schema else name


@dataclass(frozen=True, slots=True)
class AddCheck(MigrationStep):
    """A new CHECK for what is written from now on; `ValidateCheck` looks at what is there.

    Nothing on databases that cannot add one to a table: see `RebuildTable`.
    """

    check: CheckConstraint

    @property
    def what(self) -> str:
        """See `MigrationStep`."""
        return f"add the check {self.check.name}"

    def found(self, connection: Connection) -> bool:
        """See `MigrationStep`."""
        return _has_check(connection, self.check)

    def written(self, dialect: Dialect) -> Sequence[str]:
        """See `MigrationStep`."""
        later = " NOT VALID" if kit_of(dialect.name).builds_beside_writers else ""
        return [_compiled(AddConstraint(self.check, isolate_from_table=False), dialect) + later]


@dataclass(frozen=True, slots=True)
class ValidateCheck(MigrationStep):
    """Rows that were there before a CHECK are held against it, beside readers and writers.

    A row that breaks it does not stop the upgrade: the check stays unvalidated, and holds for what is written.
    """

    check: CheckConstraint
    optional: ClassVar[bool] = True
    rebuilding: ClassVar[bool | None] = None

    @property
    def what(self) -> str:
        """See `MigrationStep`."""
        return f"validate the check {self.check.name}"

    def found(self, connection: Connection) -> bool:
        """See `MigrationStep`."""
        return kit_of(connection).check_is_validated(connection, _table(self.check), str(self.check.name))

    def written(self, dialect: Dialect) -> Sequence[str]:
        """See `MigrationStep`."""
        if not kit_of(dialect.name).builds_beside_writers:
            return []
        name = dialect.identifier_preparer.quote(str(self.check.name))
        return [f"ALTER TABLE {_name(_table(self.check), dialect)} VALIDATE CONSTRAINT {name}"]


@dataclass(frozen=True, slots=True)
class DropCheck(MigrationStep):
    """A CHECK goes, by its name: its place may be taken by another of that name afterwards."""

    table: Table
    name: str
    when: str
    """A piece of its old condition, by which it is told from its successor of the same name."""

    @property
    def what(self) -> str:
        """See `MigrationStep`."""
        return f"drop the check {self.name}"

    def found(self, connection: Connection) -> bool:
        """See `MigrationStep`."""
        checks = inspect(connection).get_check_constraints(self.table.name, schema=self.table.schema)
        return not any(each["name"] == self.name and self.when in str(each["sqltext"]) for each in checks)

    def written(self, dialect: Dialect) -> Sequence[str]:
        """See `MigrationStep`."""
        name = dialect.identifier_preparer.quote(self.name)
        return [f"ALTER TABLE {_name(self.table, dialect)} DROP CONSTRAINT IF EXISTS {name}"]


@dataclass(frozen=True, slots=True)
class ChangeRows(MigrationStep):
    """Rows are changed in chunks, each in a transaction of its own, until none is left.

    :param pending: a condition in SQL that holds for the rows that are still to be changed.
    :param change: the SET clause.
    :param key: the primary key's columns, by which a chunk is chosen.
    """

    table: Table
    pending: str
    change: str
    key: tuple[str, ...]
    chunk: int = 5_000
    repeated: ClassVar[bool] = True
    rebuilding: ClassVar[bool | None] = None

    @property
    def what(self) -> str:
        """See `MigrationStep`."""
        return f"change rows of {self.table.name} ({self.change})"

    def found(self, connection: Connection) -> bool:
        """See `MigrationStep`."""
        name = _name(self.table, connection.dialect)
        rows = connection.execute(text(f"SELECT 1 FROM {name} WHERE {self.pending} LIMIT 1"))  # noqa: S608 - ours
        return rows.first() is None

    def written(self, dialect: Dialect) -> Sequence[str]:
        """See `MigrationStep`."""
        name, key = _name(self.table, dialect), ", ".join(self.key)
        return [
            f"UPDATE {name} SET {self.change} WHERE ({key}) IN "  # noqa: S608 - names and conditions of our own
            f"(SELECT {key} FROM {name} WHERE {self.pending} LIMIT {self.chunk})"
        ]


@dataclass(frozen=True, slots=True)
class RebuildTable(MigrationStep):
    """The table is copied into one of the present form: for databases whose ALTER TABLE can do little (SQLite).

    There it takes the place of every other step that changes this table, its indexes and its rows. A row that breaks
    a new check stops it: nothing is changed then.
    """

    table: Table
    added: frozenset[str] = frozenset()
    """Columns that the old form lacks; they need a default or are nullable."""
    converted: Mapping[str, str] = field(default_factory=dict[str, str])
    """Expressions in SQL for columns whose values change on the way."""
    rebuilding: ClassVar[bool | None] = True

    @property
    def what(self) -> str:
        """See `MigrationStep`."""
        return f"bring the table {self.table.name} into its present form"

    def found(self, connection: Connection) -> bool:
        """See `MigrationStep`."""
        found = kit_of(connection).table_as_created(connection, self.table)
        return found is not None and _bare(found) == _bare(_compiled(CreateTable(self.table), connection.dialect))

    def written(self, dialect: Dialect) -> Sequence[str]:
        """See `MigrationStep`."""
        quote = dialect.identifier_preparer.quote
        metadata = MetaData()
        for reference in self.table.foreign_keys:
            reference.column.table.to_metadata(metadata)
        new = self.table.to_metadata(metadata, name=f"{self.table.name}__new")
        old_name, new_name = quote(self.table.name), quote(new.name)
        # What the database reckons it reckons again.
        kept = [each.name for each in self.table.columns if each.name not in self.added and each.computed is None]
        into = ", ".join(quote(name) for name in kept)
        values = ", ".join(self.converted.get(name, quote(name)) for name in kept)
        return [
            f"DROP TABLE IF EXISTS {new_name}",
            _compiled(CreateTable(new), dialect),
            f"INSERT INTO {new_name} ({into}) SELECT {values} FROM {old_name}",  # noqa: S608 - names of our own
            *self._sequence(new.name),
            f"DROP TABLE {old_name}",
            f"ALTER TABLE {new_name} RENAME TO {old_name}",
            *(_compiled(CreateIndex(index), dialect) for index in _indexes(self.table, dialect)),
        ]

    def _sequence(self, new: str) -> list[str]:
        """Positions must not begin again, also where the table is empty just now."""
        if not self.table.dialect_options["sqlite"]["autoincrement"]:
            return []
        old, new = self.table.name.replace("'", "''"), new.replace("'", "''")
        return [
            f"DELETE FROM sqlite_sequence WHERE name = '{new}'",  # noqa: S608 - a name of our own
            f"INSERT INTO sqlite_sequence (name, seq) "  # noqa: S608
            f"SELECT '{new}', seq FROM sqlite_sequence WHERE name = '{old}'",
        ]


@dataclass(frozen=True, slots=True)
class Execute(MigrationStep):
    """Whatever has no step of its own; repeatable by itself.

    :param by_dialect: statements by the name of the database; none for those that are not named.
    :param is_done: looks whether it is needed.
    """

    purpose: str
    by_dialect: Mapping[str, tuple[str, ...]]
    is_done: Callable[[Connection], bool]
    rebuilding: ClassVar[bool | None] = None

    @property
    def what(self) -> str:
        """See `MigrationStep`."""
        return self.purpose

    def found(self, connection: Connection) -> bool:
        """See `MigrationStep`."""
        return not self.written(connection.dialect) or self.is_done(connection)

    def written(self, dialect: Dialect) -> Sequence[str]:
        """See `MigrationStep`."""
        return self.by_dialect.get(dialect.name, ())


# --- names ---


def _table(item: Column[object] | Index | CheckConstraint) -> Table:
    table = item.table
    if not isinstance(table, Table):
        raise TypeError(f"{item!r} belongs to no table")
    return table


def _name(table: Table, dialect: Dialect) -> str:
    return dialect.identifier_preparer.format_table(table)


def _indexes(table: Table, dialect: Dialect) -> list[Index]:
    """The table's indexes on this database, in a stable order."""
    wanted = (index for index in table.indexes if _meant_for(index, dialect))
    return sorted(wanted, key=lambda index: str(index.name))


def _meant_for(index: Index, dialect: Dialect) -> bool:
    named: str | Collection[str] | None = getattr(getattr(index, "_ddl_if", None), "dialect", None)
    if named is None:
        return True
    return kit_of(dialect.name).name in ({named} if isinstance(named, str) else set(named))


def _columns(connection: Connection, table: Table) -> set[str]:
    return {column["name"] for column in inspect(connection).get_columns(table.name, schema=table.schema)}


def _has_check(connection: Connection, check: CheckConstraint) -> bool:
    table = _table(check)
    found = inspect(connection).get_check_constraints(table.name, schema=table.schema)
    return any(each["name"] == check.name for each in found)


def _compiled(element: CreateTable | CreateIndex | CreateColumn | AddConstraint, dialect: Dialect) -> str:
    return str(element.compile(dialect=dialect)).strip()


def _bare(statement: str) -> str:
    return "".join(statement.replace('"', "").split())
