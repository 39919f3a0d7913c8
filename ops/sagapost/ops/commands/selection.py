"""`--where FIELD=VALUE`: which parked messages are meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, get_args

from sagapost.core.errors import ConfigurationError
from sagapost.inbox.declared.outcomes import ParkReason
from sagapost.inbox.kept.parking import State
from sagapost.inbox.operated.selection import Selection

__all__ = ["parse_selection"]

_CHOICES = {"state": get_args(State), "reason": get_args(ParkReason)}


def parse_selection(where: Sequence[str], *, everything: bool | None = None) -> Selection:
    """Return the selection for conditions such as ``state=dead``.

    :param everything: whether `--all` was given, for commands that change something: they need it, or a condition.
    :raises ConfigurationError: if a condition names no field or holds no value for it; says what there is.
    """
    if everything is not None and everything == bool(where):
        raise ConfigurationError(
            "Say which messages are meant: --where FIELD=VALUE (several are combined), or --all for everything that "
            "is parked. Example: --where state=dead"
        )
    chosen: dict[str, Any] = {}
    for condition in where:
        name, equals, value = (part.strip() for part in condition.partition("="))
        if not equals or not value:
            raise ConfigurationError(f"--where {condition!r} is not of the form FIELD=VALUE. Example: state=dead")
        if name in chosen:
            raise ConfigurationError(f"--where names {name!r} twice; a message has one.")
        chosen[name] = _value(name, value)
    return Selection(**chosen)


def _value(name: str, value: str) -> object:
    known = [field.name for field in fields(Selection)]
    if name not in known:
        raise ConfigurationError(f"--where {name}=...: there is no such field; there are {', '.join(known)}.")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ConfigurationError(f"--where {name}={value}: use one of {', '.join(_CHOICES[name])}.")
    if name == "id":
        if not value.isdecimal():
            raise ConfigurationError(f"--where id={value}: ids are whole numbers, as `sagapost parked list` shows.")
        return int(value)
    if name.startswith("parked_"):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ConfigurationError(
                f"--where {name}={value}: not a time in ISO 8601. Example: {name}=2026-11-23T09:30:00Z"
            ) from None
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return value
