"""How the tables of a database differ from those that this release makes. Reads the catalogue, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import CheckConstraint, Connection, Index, Inspector, Table, create_mock_engine, inspect
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import AddConstraint, CreateColumn, CreateIndex, ExecutableDDLElement
from sqlalchemy.types import NullType

from sagapost.core.databases import kit_of
from sagapost.core.findings import Diagnosis, Severity
from sagapost.core.schema import SchemaPart, Supplement, recorded_version

__all__ = ["drift"]

_UPGRADE = "sagapost db upgrade"


def drift(connection: Connection, versions: Table, part: SchemaPart, *, required: bool) -> Iterator[Diagnosis]:
    """Yield what is missing of a part, or other than this release makes it.

    Tables of another version are named by their version alone: an upgrade brings the rest.

    :param required: whether a part of which nothing is there is missing; else it is not used here.
    """
    found = recorded_version(connection, versions, part)
    inspector = inspect(connection)
    present = set(inspector.get_table_names(schema=versions.schema))
    missing = [table.name for table in part.tables if table.name not in present]
    if found is not None and found != part.version:
        yield _version(part, found)
        return
    if len(missing) == len(part.tables):
        if found is not None or required:
            yield _lost(part.name, "none of its tables is there")
        return
    for name in missing:
        yield _lost(name, f"the part {part.name} is installed, and this table of it is not there")
    there = [table for table in part.tables if table.name in present]
    columns, indexes, checks = _read(inspector, there)
    for table in there:
        yield from _columns(connection.dialect, table, columns[table.name])
        yield from _indexes(connection, table, indexes[table.name])
        yield from _checks(connection, table, checks[table.name])
    for supplement in part.supplements:
        yield from _supplement(connection, part, supplement)


def _supplement(connection: Connection, part: SchemaPart, supplement: Supplement) -> Iterator[Diagnosis]:
    try:
        with connection.begin_nested():
            present, remark = supplement.present(connection), supplement.remark(connection)
    except DBAPIError as error:
        sentence = kit_of(connection).sentence(error, where=part.name)
        yield Diagnosis(
            severity=Severity.ADVICE,
            code="supplement-unknown",
            subject=part.name,
            evidence=f"whether there is {supplement.what} cannot be seen by this role: {sentence}",
            remedy="look with the role that made the tables: sagapost db check",
        )
        return
    if not present:
        yield Diagnosis(
            severity=Severity.ERROR if supplement.needed else Severity.WARNING,
            code="supplement",
            subject=part.name,
            evidence=f"{supplement.what} is missing, or is not as this release makes it",
            remedy=_UPGRADE,
        )
    if remark is not None:
        yield Diagnosis(
            severity=Severity.ADVICE, code="remark", subject=part.name, evidence=remark, remedy="see the evidence"
        )


def _version(part: SchemaPart, found: int) -> Diagnosis:
    newer = found > part.version
    return Diagnosis(
        severity=Severity.ERROR,
        code="version",
        subject=part.name,
        evidence=f"the tables are of version {found}, this release needs {part.version}",
        remedy="upgrade the sagapost package of this process" if newer else _UPGRADE,
    )


def _lost(subject: str, evidence: str) -> Diagnosis:
    return Diagnosis(severity=Severity.ERROR, code="table", subject=subject, evidence=evidence, remedy=_UPGRADE)


Found = Mapping[str, Sequence[Mapping[str, Any]]]


def _read(inspector: Inspector, tables: Sequence[Table]) -> tuple[Found, Found, Found]:
    """Return columns, indexes and checks by table, in three questions however many tables there are."""
    schema, names = tables[0].schema, [table.name for table in tables]

    def by_name(found: Mapping[Any, Any]) -> Found:
        return {name: list(found.get((schema, name)) or ()) for name in names}

    return (
        by_name(inspector.get_multi_columns(schema=schema, filter_names=names)),
        by_name(inspector.get_multi_indexes(schema=schema, filter_names=names)),
        by_name(inspector.get_multi_check_constraints(schema=schema, filter_names=names)),
    )


def _columns(dialect: Dialect, table: Table, found: Sequence[Mapping[str, Any]]) -> Iterator[Diagnosis]:
    there = {column["name"]: column for column in found}
    name = dialect.identifier_preparer.format_table(table)
    for column in table.columns:
        actual = there.get(column.name)
        subject = f"{table.name}.{column.name}"
        if actual is None:
            definition = str(CreateColumn(column).compile(dialect=dialect)).strip()
            yield Diagnosis(
                severity=Severity.ERROR,
                code="column",
                subject=subject,
                evidence="the column is not there",
                remedy=f"ALTER TABLE {name} ADD COLUMN {definition}",
            )
            continue
        wanted, is_now = column.type.compile(dialect), actual["type"]
        if not isinstance(is_now, NullType) and is_now.compile(dialect) != wanted:
            yield Diagnosis(
                severity=Severity.WARNING,
                code="column-type",
                subject=subject,
                evidence=f"its type is {is_now.compile(dialect)}, this release makes it {wanted}",
                remedy=f"ALTER TABLE {name} ALTER COLUMN {column.name} TYPE {wanted}",
            )
        if bool(actual["nullable"]) and not column.nullable:
            yield Diagnosis(
                severity=Severity.WARNING,
                code="column-null",
                subject=subject,
                evidence="it takes NULL, which this release does not expect",
                remedy=f"ALTER TABLE {name} ALTER COLUMN {column.name} SET NOT NULL",
            )


class _Made:
    """What creating a table makes on a kind of database, conditions of the DDL included."""

    def __init__(self, dialect: Dialect) -> None:
        self.elements: list[ExecutableDDLElement] = []
        self.engine = create_mock_engine(f"{dialect.name}://", self._note)

    def _note(self, element: Any, *_: object, **__: object) -> None:
        self.elements.append(element)

    def indexes(self, table: Table) -> list[Index]:
        """Return the table's indexes there."""
        self.elements.clear()
        table.create(self.engine, checkfirst=False)
        return [each.element for each in self.elements if isinstance(each, CreateIndex)]


def _indexes(connection: Connection, table: Table, found: Sequence[Mapping[str, Any]]) -> Iterator[Diagnosis]:
    dialect = connection.dialect
    there = {index["name"] for index in found}
    for index in sorted(_Made(dialect).indexes(table), key=lambda each: str(each.name)):
        name = str(index.name)
        if name not in there:
            yield Diagnosis(
                severity=Severity.WARNING,
                code="index",
                subject=name,
                evidence=f"the index of {table.name} is not there: every look that it was made for reads the table",
                remedy=str(CreateIndex(index).compile(dialect=dialect)).strip(),
            )
            continue
        quoted = dialect.identifier_preparer.format_index(index)
        if table.schema is not None:
            quoted = f"{dialect.identifier_preparer.quote_schema(table.schema)}.{quoted}"
        if not kit_of(connection).index_is_valid(connection, quoted):
            yield Diagnosis(
                severity=Severity.WARNING,
                code="index-invalid",
                subject=name,
                evidence=f"building the index of {table.name} was cut off: it costs every writer, and serves nobody",
                remedy=f"REINDEX INDEX CONCURRENTLY {quoted}",
            )


def _checks(connection: Connection, table: Table, found: Sequence[Mapping[str, Any]]) -> Iterator[Diagnosis]:
    dialect = connection.dialect
    there = {check["name"] for check in found}
    name = dialect.identifier_preparer.format_table(table)
    wanted = [each for each in table.constraints if isinstance(each, CheckConstraint) and each.name is not None]
    for check in sorted(wanted, key=lambda each: str(each.name)):
        rule = str(check.name)
        if rule not in there:
            yield Diagnosis(
                severity=Severity.WARNING,
                code="check",
                subject=rule,
                evidence=f"the rule of {table.name} is not there: it takes rows that a relay or consumer cannot use",
                remedy=str(AddConstraint(check).compile(dialect=dialect)).strip(),
            )
        elif not kit_of(connection).check_is_validated(connection, table, rule):
            yield Diagnosis(
                severity=Severity.ADVICE,
                code="check-unvalidated",
                subject=rule,
                evidence=f"rows that were in {table.name} before the rule were never held against it",
                remedy=f"ALTER TABLE {name} VALIDATE CONSTRAINT {dialect.identifier_preparer.quote(rule)}",
            )
