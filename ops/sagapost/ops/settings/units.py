"""How durations, sizes and mappings are written in an environment variable, and read back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

__all__ = [
    "format_size",
    "format_duration",
    "parse_duration",
    "parse_size",
    "parse_type_map",
    "parse_type_set",
]

_SECONDS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_BYTES: Final[Mapping[str, int]] = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_TERM = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.IGNORECASE)
_DURATION = re.compile(rf"(?:{_TERM.pattern})+", re.IGNORECASE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_LONGEST = timedelta(days=36_500)


def parse_duration(value: object) -> object:
    """Read ``500ms``, ``30s``, ``5m``, ``2h``, ``7d``, or a sequence of them such as ``1h30m``.

    :raises ValueError: if it is text of another form. A bare number is refused: 30 what?
    """
    if not isinstance(value, str):
        return value
    text = "".join(value.split())
    if re.fullmatch(r"\d+(\.\d+)?", text):
        raise ValueError(f"has no unit; write {text}s for seconds, {text}ms for milliseconds")
    if _DURATION.fullmatch(text) is None:
        raise ValueError("is not a duration; write a number with one of the units ms, s, m, h, d")
    seconds = sum(float(number) * _SECONDS[unit.lower()] for number, unit in _TERM.findall(text))
    if seconds > _LONGEST.total_seconds():
        raise ValueError("is longer than a hundred years")
    return timedelta(seconds=seconds)


def format_duration(value: timedelta) -> str:
    """Return the shortest text that `parse_duration` reads as `value` (to the millisecond)."""
    milliseconds = round(value.total_seconds() * 1000)
    if milliseconds == 0:
        return "0s"
    parts: list[str] = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, milliseconds = divmod(milliseconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def parse_size(value: object) -> object:
    """Read a number of bytes, or a number with one of the units kB, MB, GB (decimal), KiB, MiB, GiB (binary).

    :raises ValueError: if it is text of another form, or not a whole number of bytes.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or match[2].lower() not in _BYTES:
        raise ValueError("is not a size; write a number of bytes, or a number with kB, MB, GB, KiB, MiB or GiB")
    size = float(match[1]) * _BYTES[match[2].lower()]
    if size != int(size):
        raise ValueError("is not a whole number of bytes")
    return int(size)


def format_size(value: int) -> str:
    """Return the shortest text that `parse_size` reads as `value`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return str(value)


def parse_type_map(value: object) -> object:
    """Read ``type=value,type=value``; a value may be empty, as RabbitMQ's default exchange has an empty name.

    :raises ValueError: if an entry has no ``=`` or no type, or its type came before.
    """
    if not isinstance(value, str):
        return value
    found: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in value.split(","))):
        type_, equals, target = (part.strip() for part in entry.partition("="))
        if not (type_ and equals):
            raise ValueError(f"has the entry {entry!r}, which is not of the form type=value")
        if type_ in found:
            raise ValueError(f"names the event type {type_!r} twice")
        found[type_] = target
    return found


def parse_type_set(value: object) -> object:
    """Read ``type,type``."""
    if not isinstance(value, str):
        return value
    return frozenset(filter(None, (part.strip() for part in value.split(","))))
