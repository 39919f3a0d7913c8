"""Which tables a database holds, and of which version: one row per part of sagapost (outbox, inbox, sagas).

The tables themselves are SQLAlchemy `Table`s that a user may attach to their own MetaData and migrate with their own
tool; the version row is what a relay or an inbox checks when it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    func,
    insert,
    inspect,
)
from sqlalchemy import select as sql_select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import ExecutableDDLElement

from sagapost.core.databases import Other, kit_of
from sagapost.core.errors import SchemaError, UpgradeBlockedError
from sagapost.core.migrations import DropColumn, Migration, MigrationStep

__all__ = [
    "SchemaPart",
    "Supplement",
    "UpgradeProgress",
    "check_schema",
    "check_supplements",
    "install_schema",
    "missing_supplements",
    "place",
    "recorded_version",
    "schema_table",
    "supplement_remarks",
    "tables_beside",
    "upgrade_schema",
    "with_needed",
]

SCHEMA_TABLE = "sagapost_schema"
_PLACES = "sagapost.tables"

_T_co = TypeVar("_T_co", covariant=True)


class Supplement(ExecutableDDLElement):
    """Something beside the tables that a part works better with: DDL that can be executed again and again."""

    what: str
    """What it makes, for people."""
    needed = False
    """Whether events go wrong without it, and not only slower."""

    def present(self, connection: Connection) -> bool:
        """Return whether there is nothing to create."""
        raise NotImplementedError

    def remark(self, connection: Connection) -> str | None:
        """Return what an operator should know of how this server lets it work; None: nothing."""
        del connection
        return None


@dataclass(frozen=True, slots=True)
class SchemaPart:
    """One group of tables that is created, checked and upgraded together."""

    name: str
    version: int
    tables: tuple[Table, ...]
    supplements: tuple[Supplement, ...] = ()
    """Made together with the tables; missing where a generated migration made those."""
    migrations: tuple[Migration, ...] = ()
    """What leads from version 1 to `version`, in order."""
    needs: tuple[SchemaPart, ...] = ()
    """What is installed with it, before it."""


def with_needed(parts: Sequence[SchemaPart]) -> list[SchemaPart]:
    """Return the parts with those that they need, each once, in the order in which they are installed."""
    found: dict[str, SchemaPart] = {}
    for part in parts:
        for each in (*part.needs, part):
            found.setdefault(each.name, each)
    return list(found.values())


def schema_table(metadata: MetaData, *, schema: str | None, prefix: str) -> Table:
    """Return the version table in `metadata`, adding it on the first call."""
    key = f"{prefix}{SCHEMA_TABLE}"
    existing = metadata.tables.get(f"{schema}.{key}" if schema else key)
    if existing is not None:
        return existing
    return Table(
        key,
        metadata,
        Column("part", String(32), primary_key=True),
        Column("version", Integer, nullable=False),
        Column("installed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
        schema=schema,
    )


class PlacedTables(Protocol):
    """Tables of one part: where they are."""

    metadata: MetaData
    schema: str | None
    prefix: str


class _PlacedTablesClass(Protocol[_T_co]):
    def __call__(self, metadata: MetaData | None, *, schema: str | None, prefix: str) -> _T_co: ...


def place(tables: PlacedTables) -> None:
    """Let `tables_beside` find tables that were just made."""
    tables.metadata.info[_PLACES, type(tables), tables.schema, tables.prefix] = tables


def tables_beside(kind: _PlacedTablesClass[_T_co], others: PlacedTables) -> _T_co:
    """Return the tables of that class in the MetaData, schema and prefix of others, making them if they are not there.

    So they are created and migrated together: `create_all` and Alembic see either all tables of a service or none.
    """
    found: _T_co | None = others.metadata.info.get((_PLACES, kind, others.schema, others.prefix))
    return found if found is not None else kind(others.metadata, schema=others.schema, prefix=others.prefix)


def check_schema(connection: Connection, versions: Table, part: SchemaPart, *, where: str) -> None:
    """Verify that `part` is installed in this version, and that its tables are really there.

    Tables without a version on record were made by another tool (a generated migration): their columns decide.

    :raises SchemaError: otherwise; says what was found and what to run.
    """
    found = recorded_version(connection, versions, part)
    if found is None and _has_this_form(connection, part):
        return
    if found != part.version:
        raise SchemaError(found=found, expected=part.version, where=where)
    present = set(inspect(connection).get_table_names(schema=versions.schema))
    if any(table.name not in present for table in part.tables):
        raise SchemaError(found=None, expected=part.version, where=where)


def recorded_version(connection: Connection, versions: Table, part: SchemaPart) -> int | None:
    """Return the version on record; None if there is none."""
    if not inspect(connection).has_table(versions.name, schema=versions.schema):
        return None
    found: int | None = connection.execute(
        sql_select(versions.c.version).where(versions.c.part == part.name)
    ).scalar_one_or_none()
    return found


def _existing(connection: Connection, part: SchemaPart) -> list[Table]:
    """Return which tables of the part are there, in whatever form."""
    inspector = inspect(connection)
    return [table for table in part.tables if inspector.has_table(table.name, schema=table.schema)]


def _has_this_form(connection: Connection, part: SchemaPart) -> bool:
    """Return whether every table of the part is there with every column of this release, and none it has dropped."""
    if len(_existing(connection, part)) < len(part.tables):
        return False
    steps = (step for migration in part.migrations for step in migration.steps)
    if any(isinstance(step, DropColumn) and not step.found(connection) for step in steps):
        return False
    inspector = inspect(connection)
    return all(
        {column.name for column in table.columns}
        <= {column["name"] for column in inspector.get_columns(table.name, schema=table.schema)}
        for table in part.tables
    )


def check_supplements(connection: Connection, part: SchemaPart, *, where: str) -> None:
    """Verify that nothing is missing without which events go wrong.

    :raises SchemaError: otherwise.
    """
    for supplement in part.supplements:
        if supplement.needed and not supplement.present(connection):
            raise SchemaError(found=part.version, expected=part.version, where=where, lacks=supplement.what)


def missing_supplements(connection: Connection, part: SchemaPart) -> list[str]:
    """Return what the part would work better with and does not have; `upgrade_schema` makes it."""
    kit = kit_of(connection)
    unchecked = (
        f"the check {check.name} on the rows that were in {table.name} before it: some break it, and it"
        for table in part.tables
        for check in sorted(_checks(table), key=lambda each: str(each.name))
        if not kit.check_is_validated(connection, table, str(check.name))
    )
    return [*(supplement.what for supplement in part.supplements if not supplement.present(connection)), *unchecked]


def supplement_remarks(connection: Connection, part: SchemaPart) -> list[str]:
    """Return what an operator should know of what stands beside the tables and cannot be mended by an upgrade."""
    return [said for each in part.supplements if (said := each.remark(connection)) is not None]


def _checks(table: Table) -> list[CheckConstraint]:
    return [each for each in table.constraints if isinstance(each, CheckConstraint) and each.name is not None]


def install_schema(connection: Connection, versions: Table, parts: Sequence[SchemaPart]) -> list[str]:
    """Create what is missing, in the caller's transaction; return the names of the parts that changed. Idempotent.

    Several processes may do so at once (replicas that start together): they take turns. Tables of an older version
    are left to `upgrade_schema`, which changes them in several transactions.

    :raises SchemaError: if the database holds a part in another version than this release's.
    """
    kit_of(connection).prepare_install(connection, versions.schema)
    versions.create(connection, checkfirst=True)
    changed: list[str] = []
    for part in with_needed(parts):
        found = recorded_version(connection, versions, part)
        if found is None and _existing(connection, part) and not _has_this_form(connection, part):
            found = part.version - 1
        if found is not None and found != part.version:
            raise SchemaError(found=found, expected=part.version, where="The database")
        if _complete(connection, versions, part, found):
            changed.append(part.name)
    return changed


def _complete(connection: Connection, versions: Table, part: SchemaPart, found: int | None) -> bool:
    """Create what the part lacks, and record its version; return whether anything changed."""
    lacking: list[Table | Supplement] = []
    for table in part.tables:
        if not inspect(connection).has_table(table.name, schema=table.schema):
            table.create(connection)
            lacking.append(table)
    for supplement in part.supplements:
        if not supplement.present(connection):
            connection.execute(supplement)
            lacking.append(supplement)
    if found != part.version:
        _record(connection, versions, part.name, part.version)
    return found != part.version or bool(lacking)


def _record(connection: Connection, versions: Table, part: str, version: int) -> None:
    connection.execute(delete(versions).where(versions.c.part == part))
    values: dict[str, Any] = {"part": part, "version": version}
    connection.execute(insert(versions).values(values))


# --- upgrading ---

_PATIENCE = timedelta(seconds=1)
"""How long a step waits for a lock with the writers queued behind it, before it lets them go on and comes again."""


@dataclass(frozen=True, slots=True)
class UpgradeProgress:
    """What an upgrade is about to do."""

    part: str
    version: int
    """Where the migration leads."""
    what: str
    step: int
    steps: int
    """Of this part in all."""
    attempt: int
    """Above 1: others held the table; it is tried again."""


def upgrade_schema(
    connection: Connection,
    versions: Table,
    parts: Sequence[SchemaPart],
    *,
    report: Callable[[UpgradeProgress], None] = lambda _: None,
    attempts: int = 120,
) -> list[str]:
    """Create what is missing and migrate what is older; return the names of the parts that changed. Idempotent.

    Safe under load: each step is a transaction of its own that holds no lock for long. Killed half-way it is begun
    again and goes on where it was. Several at once take turns.

    :param connection: without an open transaction; none is open afterwards. On PostgreSQL not through a pooler that
        hands out transactions: the turn is a lock of the session.
    :param report: told about each step before it is taken.
    :param attempts: how often a step that finds its table locked is tried; about a second each.
    :raises SchemaError: if the database holds a part in a newer version than this release's.
    :raises UpgradeBlockedError: if a table stays locked by others for so long; run it again later.
    """
    kit = kit_of(connection)
    changed: list[str] = []
    with kit.turn_of_upgrades(connection):
        for part in with_needed(parts):
            with connection.begin():
                kit.begin_step(connection, patience=_PATIENCE * 10)
                kit.prepare_install(connection, versions.schema)
                versions.create(connection, checkfirst=True)
                found, existing = recorded_version(connection, versions, part), _existing(connection, part)
            if found is not None and found > part.version:
                raise SchemaError(found=found, expected=part.version, where="The database")
            migrated = bool(existing) and found != part.version
            if migrated:
                # Without a record every migration is looked through: a step that is done is passed over.
                _migrate(connection, versions, part, found or 0, report, attempts)
            with connection.begin():
                kit.begin_step(connection, patience=_PATIENCE * 10)
                recorded = recorded_version(connection, versions, part)
                if _complete(connection, versions, part, recorded) or migrated:
                    changed.append(part.name)
                if not _has_this_form(connection, part):
                    raise SchemaError(found=found, expected=part.version, where="The database")
    return changed


def _migrate(
    connection: Connection,
    versions: Table,
    part: SchemaPart,
    found: int,
    report: Callable[[UpgradeProgress], None],
    attempts: int,
) -> None:
    total = sum(len(migration.steps) for migration in part.migrations if migration.version > found)
    number = 0
    for migration in part.migrations:
        if migration.version <= found:
            continue
        for step in migration.steps:
            number += 1
            for attempt in range(1, attempts + 1):
                if _is_done(connection, step):
                    break
                report(UpgradeProgress(part.name, migration.version, step.what, number, total, attempt))
                if _take(connection, step):
                    break
            else:
                raise UpgradeBlockedError(part=part.name, what=step.what, attempts=attempts)
        with connection.begin():
            kit_of(connection).begin_step(connection, patience=_PATIENCE * 10)
            _record(connection, versions, part.name, migration.version)


def _is_done(connection: Connection, step: MigrationStep) -> bool:
    with connection.begin():
        return step.done(connection)


def _take(connection: Connection, step: MigrationStep) -> bool:
    """Carry a step out; return False if others held its table for too long."""
    kit = kit_of(connection)
    statements = step.statements(connection.dialect)
    try:
        if step.autocommit and kit.builds_beside_writers:
            usual = connection.get_isolation_level()
            connection.rollback()
            connection.execution_options(isolation_level="AUTOCOMMIT")
            try:
                for statement in statements:
                    connection.exec_driver_sql(statement)
            finally:
                connection.rollback()
                connection.execution_options(isolation_level=usual)
            return True
        more = True
        while more:
            with connection.begin():
                kit.begin_step(connection, patience=_PATIENCE)
                changes = [connection.exec_driver_sql(statement).rowcount for statement in statements]
            more = step.repeated and any(count > 0 for count in changes)
    except DBAPIError as error:
        if kit.is_conflict(error):
            return False
        if not (step.optional and isinstance(kit.classify(error), Other)):
            raise
    return True
