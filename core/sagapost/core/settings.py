"""Settings that explain themselves: range, unit, default and danger stand beside each field, once.

    @dataclass(frozen=True, slots=True)
    class RelaySettings:
        page_rows: int = setting(1_000, "Rows per fetch, at most.", unit="rows", low=1, high=100_000, example="1000",
                                 danger="Low: a round trip to the database for few rows.")

        def __post_init__(self) -> None:
            check(self)

`check` refuses what is out of range in code; the command line reads environment variables by the same declarations,
names them in its errors, and writes their page (docs/configuration.md). An adapter declares its own the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from datetime import timedelta
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from sagapost.core.backoff import Backoff
from sagapost.core.errors import ConfigurationError

__all__ = [
    "Declaration",
    "Leaf",
    "check",
    "declare",
    "drain_limit",
    "duration",
    "leaves_of",
    "nested",
    "reconnect_waits",
    "setting",
    "value_at",
    "waits",
]

_DECLARED: Final = "sagapost.declaration"
_NESTED: Final = "sagapost.nested"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What is to be said about one setting; see `setting`."""

    what: str
    unit: str
    danger: str
    example: str
    low: Any = None
    high: Any = None
    at_least: str | None = None
    variable: str | None = None
    refuse: Callable[[Any], str | None] | None = None


@dataclass(frozen=True, slots=True)
class _Nested:
    prefix: str
    parts: Mapping[str, Declaration]


def declare(
    what: str,
    *,
    unit: str,
    danger: str,
    example: str,
    low: Any = None,
    high: Any = None,
    at_least: str | None = None,
    variable: str | None = None,
    refuse: Callable[[Any], str | None] | None = None,
) -> Declaration:
    """Return a declaration.

    :param what: one or two sentences, starting with a capital.
    :param unit: what the value is counted in, or its form; `bytes` may be written as ``32MiB``, a `URL` is a secret.
    :param danger: what goes wrong with a careless value.
    :param example: a value as one would write it in the environment.
    :param low: least value; high: greatest.
    :param at_least: field of the same class that it may not be below.
    :param variable: environment variable without ``SAGAPOST_``, in lower case; default: prefix and name of the field.
    :param refuse: what else is wrong with a value, as the rest of a sentence that begins with the variable; None:
        nothing is.
    """
    return Declaration(
        what=what,
        unit=unit,
        danger=danger,
        example=example,
        low=low,
        high=high,
        at_least=at_least,
        variable=variable,
        refuse=refuse,
    )


def setting(default: Any, what: str, **declared: Any) -> Any:
    """Declare a field of a settings dataclass; `declare` says what can be said. A default of a mutable type is a
    function that makes one.
    """
    metadata = {_DECLARED: declare(what, **declared)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def nested(make: Callable[[], Any], *, prefix: str = "", **parts: Declaration) -> Any:
    """Declare a field that is a dataclass itself.

    :param make: returns the default.
    :param prefix: of its variables, after that of the whole; empty where its fields speak for themselves.
    :param parts: what is declared here of its fields, for a class that is used in many places (`Backoff`); fields that
        the class declares need not be repeated.
    """
    return field(default_factory=make, metadata={_NESTED: _Nested(prefix, parts)})


# --- what several parts have ---


def duration(what: str, *, example: str, danger: str, high: timedelta) -> Declaration:
    """Return the declaration of a time from a millisecond on."""
    return declare(what, unit="duration", example=example, danger=danger, low=timedelta(milliseconds=1), high=high)


def waits(first: timedelta, longest: timedelta, *, base: Declaration, cap: Declaration, prefix: str = "") -> Any:
    """Declare a field of growing waits, a `Backoff`: the first and the longest of them can be set.

    :param first: the default of the first wait; `base` says what it is.
    :param longest: that of the longest; `cap` says what it is.
    :param prefix: as for `nested`.
    """
    cap = replace(cap, at_least="base")
    return nested(lambda: Backoff(base=first, cap=longest), prefix=prefix, base=base, cap=cap)


def reconnect_waits(fleet: str, *, variable: str) -> Any:
    """Declare how long a part waits before it tries to reach a server again.

    :param fleet: what there are many of, in the plural.
    :param variable: that of the first wait.
    """
    return waits(
        timedelta(milliseconds=200),
        timedelta(seconds=5),
        prefix="reconnect",
        base=duration(
            "Wait after the first failed attempt to reach the broker or the database; doubles with each further one.",
            example="200ms",
            danger=f"Short: a fleet of {fleet} hammers a server that is starting.",
            high=timedelta(minutes=10),
        ),
        cap=duration(
            f"Longest wait between attempts to reach the broker or the database. At least `{variable}`.",
            example="5s",
            danger="Long: work resumes that late after the outage ends.",
            high=timedelta(minutes=10),
        ),
    )


def drain_limit(what: str) -> Any:
    """Declare how long a part may take to finish after it was asked to stop.

    :param what: what it does then.
    """
    return setting(
        timedelta(seconds=20),
        f"After SIGTERM: {what}",
        example="20s",
        unit="duration",
        danger="Together with ten seconds of clean-up it must fit into the supervisor's grace period (Kubernetes: "
        "`terminationGracePeriodSeconds`, 30 s by default).",
        low=timedelta(milliseconds=1),
        high=timedelta(hours=1),
    )


# --- what is declared of a class ---


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting as it is found in a settings dataclass."""

    path: tuple[str, ...]
    """Field of the class, and on into its dataclasses."""
    name: str
    """As variables are called, without the prefix of the whole: `retry_base`."""
    kind: Any
    """Its type: bool, int, str, timedelta, a Literal, a mapping, a frozenset, or a class of its own; None apart."""
    optional: bool
    default: Any
    declared: Declaration

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that a value can be; none where it is no word."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    def complaint(self, value: Any) -> tuple[Literal["range", "word", "other"], str] | None:
        """Return what is wrong with a value of the right type; None if nothing is."""
        declared = self.declared
        if value is None:
            return None
        if self.choices and value not in self.choices:
            return "word", f"use one of {', '.join(self.choices)}"
        if (declared.low is not None and value < declared.low) or (
            declared.high is not None and value > declared.high
        ):
            return "range", f"use {_shown(declared.low)} to {_shown(declared.high)}"
        found = declared.refuse(value) if declared.refuse is not None else None
        return None if found is None else ("other", found)


_KNOWN: dict[type, tuple[Leaf, ...]] = {}


def leaves_of(kind: type) -> tuple[Leaf, ...]:
    """Return every setting that a dataclass declares, in its order."""
    found = _KNOWN.get(kind)
    if found is None:
        found = _KNOWN[kind] = tuple(_leaves(kind, kind, (), "", {}))
    return found


def _leaves(
    root: type, kind: type, path: tuple[str, ...], prefix: str, given: Mapping[str, Declaration]
) -> Iterator[Leaf]:
    hints = get_type_hints(kind)
    for each in fields(kind):  # pyright: ignore[reportArgumentType]
        place = (*path, each.name)
        declared: Declaration | None = given.get(each.name) or each.metadata.get(_DECLARED)
        inner: _Nested | None = each.metadata.get(_NESTED)
        if declared is not None:
            name = declared.variable or f"{prefix}{each.name}"
            found, optional = _type_of(hints[each.name])
            yield Leaf(place, name, found, optional, _default_at(root, place), declared)
        elif inner is not None:
            below = f"{prefix}{inner.prefix}_" if inner.prefix else prefix
            yield from _leaves(root, _type_of(hints[each.name])[0], place, below, inner.parts)


def _type_of(hint: Any) -> tuple[Any, bool]:
    """Return a type without its None, and whether it had one."""
    arguments = get_args(hint)
    if type(None) not in arguments:
        return hint, False
    (other,) = (each for each in arguments if each is not type(None))
    return other, True


def _default_at(root: type, path: tuple[str, ...]) -> Any:
    first = next(each for each in fields(root) if each.name == path[0])  # pyright: ignore[reportArgumentType]
    value = first.default if first.default_factory is MISSING else first.default_factory()
    return value_at(value, path[1:])


def value_at(settings: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a leaf's path."""
    for name in path:
        settings = getattr(settings, name)
    return settings


def check(settings: Any) -> None:
    """Check every value against its declaration; for a dataclass's `__post_init__`.

    Nested dataclasses check themselves.

    :raises ConfigurationError: names the field, the value and the range.
    """
    kind = type(settings)
    for leaf in leaves_of(kind):
        value = value_at(settings, leaf.path)
        where = f"{kind.__name__}.{'.'.join(leaf.path)}"
        complaint = leaf.complaint(value)
        if complaint is not None:
            kind_of, text = complaint
            shown = "" if kind_of == "other" else f"is {_shown(value)}; "
            raise ConfigurationError(f"{where} {shown}{text}.")
        if leaf.declared.at_least is not None and value is not None:
            other = (*leaf.path[:-1], leaf.declared.at_least)
            least = value_at(settings, other)
            if value < least:
                raise ConfigurationError(
                    f"{where} is {_shown(value)}; use at least {_shown(least)}, which is {'.'.join(other)}."
                )


def _shown(value: Any) -> str:
    match value:
        case bool() | str():
            return repr(value)
        case int():
            return f"{value:,}"
        case timedelta():
            return f"{value.total_seconds():,g} s"
        case _ if is_dataclass(value):
            return type(value).__name__
        case _:
            return str(value)
