"""Which tables a database holds, and of which version: one row per part of sagapost (outbox, inbox, sagas).

The tables themselves are SQLAlchemy `Table`s that a user may attach to their own MetaData and migrate with their own
tool; the version row is what a relay or an inbox checks when it starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, DateTime, Integer, MetaData, String, Table, delete, func, insert, inspect
from sqlalchemy import select as sql_select
from sqlalchemy.schema import ExecutableDDLElement

from sagapost.core.databases import kit_of
from sagapost.core.errors import SchemaError

__all__ = [
    "SchemaPart",
    "Supplement",
    "check_schema",
    "install_schema",
    "missing_supplements",
    "schema_table",
]

SCHEMA_TABLE = "sagapost_schema"


class Supplement(ExecutableDDLElement):
    """Something beside the tables that a part works better with: DDL that can be executed again and again."""

    what: str
    """What it makes, for people."""

    def present(self, connection: Connection) -> bool:
        """Tell whether there is nothing to create."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class SchemaPart:
    """One group of tables that is created, checked and upgraded together."""

    name: str
    version: int
    tables: tuple[Table, ...]
    supplements: tuple[Supplement, ...] = ()
    """Made together with the tables; missing where a generated migration made those."""


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


def check_schema(connection: Connection, versions: Table, part: SchemaPart, *, where: str) -> None:
    """Verify that `part` is installed in this version, and that its tables are really there.

    :raises SchemaError: otherwise; says what was found and what to run.
    """
    inspector = inspect(connection)
    present = set(inspector.get_table_names(schema=versions.schema))
    if versions.name not in present:
        raise SchemaError(found=None, expected=part.version, where=where)
    found: int | None = connection.execute(
        sql_select(versions.c.version).where(versions.c.part == part.name)
    ).scalar_one_or_none()
    if found != part.version or any(table.name not in present for table in part.tables):
        raise SchemaError(found=found if found != part.version else None, expected=part.version, where=where)


def missing_supplements(connection: Connection, part: SchemaPart) -> list[str]:
    """Return what the part would work better with and does not have; `install_schema` makes it."""
    return [supplement.what for supplement in part.supplements if not supplement.present(connection)]


def install_schema(connection: Connection, versions: Table, parts: Sequence[SchemaPart]) -> list[str]:
    """Create what is missing, in the caller's transaction; return the names of the parts that changed. Idempotent.

    Several processes may do so at once (replicas that start together): they take turns.

    :raises SchemaError: if the database holds a part in a newer version than this release knows.
    """
    kit_of(connection).prepare_install(connection, versions.schema)
    versions.create(connection, checkfirst=True)
    changed: list[str] = []
    for part in parts:
        found: int | None = connection.execute(
            sql_select(versions.c.version).where(versions.c.part == part.name)
        ).scalar_one_or_none()
        if found is not None and found > part.version:
            raise SchemaError(found=found, expected=part.version, where="the database")
        for table in part.tables:
            table.create(connection, checkfirst=True)
        lacking = [supplement for supplement in part.supplements if not supplement.present(connection)]
        for supplement in lacking:
            connection.execute(supplement)
        if found != part.version:
            connection.execute(delete(versions).where(versions.c.part == part.name))
            values: dict[str, Any] = {"part": part.name, "version": part.version}
            connection.execute(insert(versions).values(values))
        if found != part.version or lacking:
            changed.append(part.name)
    return changed
