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

    __slots__ = ("_in_order", "_raw_many", "_raw_one", "core_many", "core_one", "name", "table")

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
        types = [_PARAMETER_TYPES.get(column, "text") for column in names]
        casts = ["::jsonb" if column == "extensions" else "" for column in names]
        columns = ", ".join(names)

        def kept(name: str, value: str) -> str:
            return recorded(value) if name == "time" and corrected else value

        parameters = ", ".join(
            kept(name, f"${n}::{type_}{cast}")
            for n, (name, type_, cast) in enumerate(zip(names, types, casts, strict=True), 1)
        )
        self._raw_one = f"INSERT {ONE_PHASE} INTO {self.name} ({columns}) VALUES ({parameters})"  # noqa: S608 names are ours
        arrays = ", ".join(f"${n}::{type_}[]" for n, type_ in enumerate(types, 1))
        selected = ", ".join(kept(name, f"r.{name}{cast}") for name, cast in zip(names, casts, strict=True))
        # One text for any number of rows, so that it is prepared once; ORDER BY draws positions in publishing order.
        self._raw_many = (
            f"INSERT {ONE_PHASE} INTO {self.name} ({columns}) SELECT {selected} "  # noqa: S608 names are ours
            f"FROM unnest({arrays}) WITH ORDINALITY AS r ({columns}, ordinal) ORDER BY ordinal"
        )

    def raw(self, values: Sequence[RowValues]) -> tuple[str, tuple[Any, ...]]:
        """Return the statement with `$n` parameters that writes all of `values`, and its parameters."""
        arguments = [self._arguments(row) for row in values]
        if len(arguments) == 1:
            return self._raw_one, arguments[0]
        return self._raw_many, tuple(list(column) for column in zip(*arguments, strict=True))

    def _arguments(self, row: RowValues) -> tuple[Any, ...]:
        if row["extensions"] is not None:
            row = {**row, "extensions": msgspec.json.encode(row["extensions"]).decode()}
        return self._in_order(row)


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
