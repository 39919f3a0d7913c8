"""`--where`: a small language that says which rows an operator means, parsed once and bound to columns.

One condition is a field, an operator and a value: ``type=order.*``, ``attempts>3``, ``error~timeout``, ``key!=``,
``before=2026-11-23T09:30Z``. Several are combined: all must hold. A value never becomes part of a statement: it is
bound as a parameter, and a field is one of those that are declared.

| operator | on | holds if |
|---|---|---|
| ``=``, ``!=`` | all | it is, or is not, that; in text ``*`` stands for any characters and ``\\*`` for itself |
| ``=`` or ``!=`` with no value | text | there is none, or there is one |
| ``~``, ``!~`` | text | it contains that, or does not; capital and small letters are the same |
| ``<``, ``<=``, ``>``, ``>=`` | numbers and times | as it says |
| ``before=``, ``after=`` | | earlier than that time; then or later |
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, assert_never
from uuid import UUID

from sqlalchemy import ColumnElement, FromClause, Text, func, literal, not_, or_

from sagapost.core.databases.kit import DatabaseKit
from sagapost.core.errors import ConfigurationError

__all__ = ["MOST", "Condition", "Field", "Fields", "Form", "Selection", "plain_text"]

Form: TypeAlias = Literal["text", "number", "time", "before", "after", "uuid", "choice", "flag"]
"""What a field holds, and with it which operators and values there are."""
Operator: TypeAlias = Literal["=", "!=", "~", "!~", "<", "<=", ">", ">="]

MOST = 2**63 - 1
"""The largest number a column holds."""
_LONGEST = 1_000
"""Characters of a value: no attribute that is worth looking for is longer, and no database takes any pattern."""

_CONDITION = re.compile(r"\s*(\w+)\s*(!=|!~|<=|>=|=|~|<|>)(.*)", re.DOTALL)
_OPERATORS: dict[Form, Collection[str]] = {
    "text": ("=", "!=", "~", "!~"),
    "number": ("=", "!=", "<", "<=", ">", ">="),
    "time": ("<", "<=", ">", ">="),
    "before": ("=",),
    "after": ("=",),
    "uuid": ("=", "!="),
    "choice": ("=", "!="),
    "flag": ("=",),
}


def plain_text(value: str, *, what: str) -> str:
    """Return text as every database keeps it.

    :raises ConfigurationError: if it holds NUL, or bytes that are no UTF-8 (what a shell passes on from a file name).
    """
    if "\x00" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigurationError(
            f"{what} holds a NUL character or bytes that are no UTF-8, which no database keeps: {value!r}."
        )
    return value


@dataclass(frozen=True, slots=True)
class Field:
    """What can be asked about a row."""

    name: str
    column: str
    """Name of the column."""
    form: Form = "text"
    choices: tuple[str, ...] = ()
    """Of a `choice`: every value there is."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition, understood."""

    field: Field
    operator: Operator
    value: object
    """None: there is none. A tuple of texts: what must be found in this order, with anything in between. Otherwise a
    value of the column's type."""

    def clause(self, column: ColumnElement[Any], kit: DatabaseKit) -> ColumnElement[bool]:
        """Return it as SQL; everything that was typed is a bound parameter."""
        value = self.value
        match self.operator:
            case "=":
                return self._equals(column, kit)
            case "!=":
                return (
                    or_(column.is_(None), not_(self._equals(column, kit)))
                    if value is not None
                    else column.is_not(None)
                )
            case "~":
                return _contains(column, str(value))
            case "!~":
                return or_(column.is_(None), not_(_contains(column, str(value))))
            case "<":
                return column < value
            case "<=":
                return column <= value
            case ">":
                return column > value
            case ">=":
                return column >= value
            case _ as never:
                assert_never(never)

    def _equals(self, column: ColumnElement[Any], kit: DatabaseKit) -> ColumnElement[bool]:
        if self.value is None:
            return column.is_(None)
        if isinstance(self.value, tuple):
            pieces: Sequence[str] = self.value
            return kit.matches(column, pieces)
        return column == self.value


def _contains(column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    escaped = re.sub(r"([\\%_])", r"\\\1", value)
    return func.lower(column).like(func.lower(literal(f"%{escaped}%", Text)), escape="\\")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows are meant: those with these numbers, those that every condition holds for, or all of them."""

    number: str
    """The column of the numbers."""
    numbers: tuple[int, ...] = ()
    """As listed; none: any."""
    conditions: tuple[Condition, ...] = ()

    def clauses(self, rows: FromClause, kit: DatabaseKit) -> list[ColumnElement[bool]]:
        """Return it as SQL over a table with the columns that its fields name."""
        clauses = [condition.clause(rows.c[condition.field.column], kit) for condition in self.conditions]
        if self.numbers:
            clauses.append(rows.c[self.number].in_(self.numbers))
        return clauses


class Fields:
    """Everything that can be asked about one kind of row.

    :param number: the column of the numbers by which rows are named.
    """

    def __init__(self, *fields: Field, number: str = "id") -> None:
        self._fields = {field.name: field for field in fields}
        self._number = number

    @property
    def names(self) -> list[str]:
        """The names, in the order of their declaration."""
        return list(self._fields)

    def select(self, *where: str, numbers: Iterable[int] = ()) -> Selection:
        """Return the selection for conditions as an operator types them; without any, everything is meant.

        :raises ConfigurationError: if a condition cannot be understood; says what there is instead.
        """
        conditions = tuple(self._parse(condition) for condition in where)
        equal = [condition.field.name for condition in conditions if condition.operator == "="]
        for name in equal:
            if equal.count(name) > 1:
                raise ConfigurationError(f"--where says twice what {name!r} is; it is one thing.")
        chosen = tuple(dict.fromkeys(numbers))
        for number in chosen:
            if not 0 <= number <= MOST:
                raise ConfigurationError(f"{number} is no number that is listed: those are from 0 to {MOST}.")
        return Selection(self._number, chosen, conditions)

    def equal(self, **values: object) -> Selection:
        """Return the selection of rows whose fields hold exactly these values, taken as they are."""
        return Selection(
            self._number, conditions=tuple(Condition(self._fields[name], "=", value) for name, value in values.items())
        )

    # --- inside ---

    def _parse(self, condition: str) -> Condition:
        plain_text(condition, what=f"--where {condition!r}")
        found = _CONDITION.fullmatch(condition)
        if found is None:
            raise ConfigurationError(
                f"--where {condition!r} is no condition: write FIELD=VALUE, or another of = != ~ !~ < <= > >=. "
                f"Fields: {', '.join(self.names)}."
            )
        name, operator, typed = found[1], found[2], found[3].strip()
        field = self._fields.get(name)
        if field is None:
            near = difflib.get_close_matches(name, self.names, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigurationError(
                f"--where {condition!r}: there is no field {name!r}.{hint} Fields: {', '.join(self.names)}."
            )
        if len(typed) > _LONGEST:
            raise ConfigurationError(
                f"--where {name}{operator}...: the value has {len(typed)} characters; at most {_LONGEST}."
            )
        if operator not in _OPERATORS[field.form]:
            fitting = " ".join(_OPERATORS[field.form])
            raise ConfigurationError(f"--where {condition!r}: {name} is compared with {fitting}, not with {operator}.")
        return _understood(field, operator, typed)


def _understood(field: Field, operator: str, typed: str) -> Condition:
    """Return a condition whose operator fits the field.

    :raises ConfigurationError: if the value does not.
    """
    said = f"--where {field.name}{operator}{typed}"
    given: Any = operator
    match field.form:
        case "text":
            return Condition(field, given, _text(typed, pattern=operator in {"=", "!="}))
        case "number":
            if re.fullmatch(r"-?[0-9]{1,19}", typed) is None or abs(int(typed)) > MOST:
                raise ConfigurationError(f"{said}: {field.name} is a whole number.")
            return Condition(field, given, int(typed))
        case "time":
            return Condition(field, given, _moment(said, typed))
        case "before":
            return Condition(field, "<", _moment(said, typed))
        case "after":
            return Condition(field, ">=", _moment(said, typed))
        case "uuid":
            try:
                return Condition(field, given, UUID(typed))
            except ValueError:
                raise ConfigurationError(f"{said}: not an id such as 0192f0c1-2a3b-7c4d-8e5f-0123456789ab.") from None
        case "choice":
            if typed not in field.choices:
                raise ConfigurationError(f"{said}: use one of {', '.join(field.choices)}.")
            return Condition(field, given, typed)
        case "flag":
            if typed not in {"yes", "no"}:
                raise ConfigurationError(f"{said}: use yes or no.")
            return Condition(field, given, int(typed == "yes"))
        case _ as never:
            assert_never(never)


def _text(typed: str, *, pattern: bool) -> object:
    if not typed:
        return None if pattern else ""
    if not pattern:
        return typed
    pieces = [piece.replace("\\*", "*") for piece in re.split(r"(?<!\\)\*", typed)]
    return pieces[0] if len(pieces) == 1 else tuple(pieces)


def _moment(said: str, typed: str) -> datetime:
    """Return a time; one without a zone is taken as UTC, like all times that are shown."""
    try:
        moment = datetime.fromisoformat(typed)
        # In UTC: SQLite keeps the digits of a time and drops its zone.
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigurationError(f"{said}: not a time in ISO 8601. Example: 2026-11-23T09:30:00Z") from None
