"""A setting as the command line knows it: its variable, how its value is written, and what may be shown of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, get_origin

from sagapost.core.settings import Leaf
from sagapost.ops.masking import SecretUrl
from sagapost.ops.settings.units import (
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    parse_type_map,
    parse_type_set,
)

__all__ = ["ENV_PREFIX", "Setting", "render"]

ENV_PREFIX = "SAGAPOST_"

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of one part."""

    section: str
    """The part that it belongs to."""
    name: str
    """The variable without our prefix, in lower case."""
    leaf: Leaf

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENV_PREFIX + self.name.upper()

    @property
    def what(self) -> str:
        """What it does."""
        return self.leaf.declared.what

    @property
    def unit(self) -> str:
        """What it is counted in, or its form."""
        return self.leaf.declared.unit

    @property
    def danger(self) -> str:
        """What goes wrong with a careless value."""
        return self.leaf.declared.danger

    @property
    def example(self) -> str:
        """A value as one writes it."""
        return self.leaf.declared.example

    @property
    def default(self) -> str:
        """Its default as one would write it; empty if there is none."""
        return render(self.leaf.default, unit=self.unit)

    @property
    def range(self) -> str:
        """What it may be."""
        declared = self.leaf.declared
        if self.leaf.choices:
            return " | ".join(self.leaf.choices)
        if declared.low is None and declared.high is None:
            return ""
        return f"{render(declared.low, unit=self.unit)} to {render(declared.high, unit=self.unit)}"

    @property
    def is_secret(self) -> bool:
        """Whether its value may hold a password: it is masked, and may be read from a file."""
        return self.leaf.kind is SecretUrl or self.unit.startswith("password")

    def parse(self, value: Any) -> Any:
        """Return a value as the library takes it; one that is no text counts as that already.

        :raises ValueError: with what is wrong, as the rest of a sentence that begins with the variable.
        """
        read = self._read(value.strip()) if isinstance(value, str) else value
        complaint = self.leaf.complaint(read)
        match complaint:
            case None:
                return read
            case "range", _:
                raise ValueError(f"is out of range; use {self.range}")
            case "word", _:
                raise ValueError(f"is not one of {self.range}")
            case _, text:
                raise ValueError(text)

    def _read(self, text: str) -> Any:
        kind = self.leaf.kind
        if self.leaf.choices:
            # In whatever case a word is written.
            return next((word for word in self.leaf.choices if word.lower() == text.lower()), text)
        if kind is bool:
            if text.lower() not in _BOOLEANS:
                raise ValueError("is neither true nor false")
            return _BOOLEANS[text.lower()]
        if kind is int:
            return parse_size(text) if self.unit == "bytes" else _whole(text)
        if kind is timedelta:
            return parse_duration(text)
        if kind is SecretUrl:
            return SecretUrl(text)
        if get_origin(kind) is frozenset:
            return parse_type_set(text)
        if kind is str:
            return text
        return parse_type_map(text)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("is not a whole number") from None


def render(value: object, *, unit: str = "") -> str:
    """Return a value as one would write it in the environment; secrets masked, an absent value empty."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int() if unit == "bytes":
            return format_size(value)
        case timedelta():
            return format_duration(value)
        case Mapping():
            return ",".join(f"{key}={target}" for key, target in value.items())
        case frozenset():
            return ",".join(sorted(str(item) for item in value))
        case _:
            return str(value)
