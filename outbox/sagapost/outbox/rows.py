"""From an `Event` to the values of its row, the same for every kind of handle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any, TypeAlias
from uuid import UUID

import msgspec
from sqlalchemy import DateTime, Insert, Table, bindparam, insert, literal_column

from sagapost.core.databases.postgresql import quoting
from sagapost.core.envelope import ATTRIBUTES, Attribute, Event, Form
from sagapost.core.generated import generated
from sagapost.outbox.doorbell import ONE_PHASE
from sagapost.outbox.recorded import Recorded, recorded
from sagapost.outbox.tables import ENVELOPE_COLUMNS

__all__ = ["PUBLISHED", "RowValues", "Rows", "Target", "row_values"]

PUBLISHED = "published"
"""The publisher's time in the values of a row; the column `time` is made of it."""

RowValues: TypeAlias = dict[str, Any]
"""Column name -> value, with `PUBLISHED` for `time`."""

_PARAMETER_TYPES = {
    "event_id": "uuid",
    "deliver_at": "timestamptz",
    **{each.name: "timestamptz" for each in ATTRIBUTES if each.form is Form.TIME},
    **{each.name: "bytea" for each in ATTRIBUTES if each.form is Form.DATA},
}
"""What is not text. `extensions` travels as text and is cast in the statement, whatever JSON codec is in force."""


class Target:
    """A table that events are written to, with its INSERT in every form a handle needs; built once per `Outbox`."""

    __slots__ = ("_formatted", "_in_order", "_raw", "core_many", "core_one", "name", "table")

    def __init__(self, table: Table, *further: str, corrected: bool = True) -> None:
        """Build the statements.

        :param corrected: whether the database corrects the publisher's time (`Recorded`).
        """
        self.table = table
        names = (*ENVELOPE_COLUMNS, *further)
        self._in_order: Callable[[RowValues], tuple[Any, ...]] = itemgetter(
            *(PUBLISHED if name == "time" else name for name in names)
        )
        published = bindparam(PUBLISHED, type_=DateTime(timezone=True))
        time = Recorded(published) if corrected else published
        # inline(): nobody asks for the generated position, so nothing is returned.
        one = insert(table).values(time=time).prefix_with(ONE_PHASE, dialect="postgresql")
        self.core_one: Insert = one.inline()
        # SQLAlchemy writes one INSERT with many VALUES only where something is returned; else the statement is sent
        # once per row. A column would need the right to SELECT, which a service that only publishes need not have.
        self.core_many: Insert = one.returning(literal_column("1"))

        self.name = quoting.format_table(table)
        self._raw = _statements(self.name, names, "${}", corrected=corrected)
        # A per cent sign in a name is doubled by `quoting`, as drivers with `%s` want it.
        self._formatted = _statements(self.name, names, "%s", corrected=corrected)

    def raw(self, values: Sequence[RowValues]) -> tuple[str, tuple[Any, ...]]:
        """Return the statement with `$n` parameters that writes all of `values`, and its parameters."""
        return self._filled(self._raw, [self._arguments(row) for row in values])

    def formatted(self, values: Sequence[RowValues], *, one_phase: bool) -> tuple[str, tuple[Any, ...]]:
        """Return the same with `%s` for each parameter.

        :param one_phase: whether nobody will prepare the transaction.
        """
        # Text, since psycopg2 knows no UUID by itself.
        texts = [{**row, "event_id": str(row["event_id"])} for row in values]
        statement, arguments = self._filled(self._formatted, [self._arguments(row) for row in texts])
        return statement if one_phase else statement.replace(f" {ONE_PHASE}", "", 1), arguments

    @staticmethod
    def _filled(statements: tuple[str, str], rows: list[tuple[Any, ...]]) -> tuple[str, tuple[Any, ...]]:
        one, many = statements
        if len(rows) == 1:
            return one, rows[0]
        return many, tuple(list(column) for column in zip(*rows, strict=True))

    def _arguments(self, row: RowValues) -> tuple[Any, ...]:
        if row["extensions"] is not None:
            row = {**row, "extensions": msgspec.json.encode(row["extensions"]).decode()}
        return self._in_order(row)


def _statements(table: str, names: Sequence[str], mark: str, *, corrected: bool) -> tuple[str, str]:
    """Return the INSERT of one row and that of any number of rows.

    :param table: its name in SQL.
    :param mark: of a parameter; braces stand for its number. Each occurs once, in order.
    """
    types = [_PARAMETER_TYPES.get(column, "text") for column in names]
    casts = ["::jsonb" if column == "extensions" else "" for column in names]
    marks = [mark.format(n) for n in range(1, len(names) + 1)]
    columns = ", ".join(names)

    def kept(name: str, value: str) -> str:
        return recorded(value) if name == "time" and corrected else value

    parameters = ", ".join(
        kept(name, f"{each}::{type_}{cast}")
        for each, name, type_, cast in zip(marks, names, types, casts, strict=True)
    )
    arrays = ", ".join(f"{each}::{type_}[]" for each, type_ in zip(marks, types, strict=True))
    selected = ", ".join(kept(name, f"r.{name}{cast}") for name, cast in zip(names, casts, strict=True))
    into = f"INSERT {ONE_PHASE} INTO {table} ({columns})"
    return (
        f"{into} VALUES ({parameters})",
        # One text for any number of rows, so that it is prepared once; ORDER BY draws positions in publishing order.
        f"{into} SELECT {selected} "  # noqa: S608 names are ours
        f"FROM unnest({arrays}) WITH ORDINALITY AS r ({columns}, ordinal) ORDER BY ordinal",
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one table, to be written in this order."""

    target: Target
    values: list[RowValues]


def _value(attribute: Attribute) -> str:
    if attribute.name == "id":
        return '"event_id": UUID(event.id)'
    if attribute.name == "time":
        return f'"{PUBLISHED}": event.time'
    if attribute.form is Form.EXTENSIONS:
        return f'"{attribute.name}": dict(event.{attribute.name}) if event.{attribute.name} else None'
    return f'"{attribute.name}": event.{attribute.name}'


row_values: Callable[[Event, str], RowValues] = generated(
    "row_values",
    f"def row_values(event, topic):\n    return {{'topic': topic, {', '.join(map(_value, ATTRIBUTES))}}}\n",
    {"UUID": UUID},
)
"""Return the row of an event with its topic; the event's identity is the row's."""


def scheduled_values(event: Event, topic: str, *, deliver_at: datetime, name: str | None) -> RowValues:
    """Return the row of an event that becomes due later.

    :param deliver_at: in UTC, since SQLite keeps the digits of a time and drops its zone.
    """
    return {**row_values(event, topic), "deliver_at": deliver_at, "name": name}
