"""The words for what the parts of a process report: one line for each kind of observer event.

A module for each part, imported when the part first reports something: a relay's process never imports the inbox.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Final, TypeAlias, cast

from sagapost.core.observer import Observation
from sagapost.ops.log_lines.line import Line

__all__ = ["Line", "line_for"]

_Words: TypeAlias = Callable[[Observation], Line | None]

_PARTS: Final[Mapping[str, str]] = {
    "sagapost.core.life": "life",
    "sagapost.outbox.relay.observations": "relay",
    "sagapost.inbox.declared.observations": "inbox",
    "sagapost.sagas.observations": "sagas",
    "sagapost.sagas.tracker.observations": "tracker",
}
"""By the module that an event's class is from: the module here that has words for it."""


def line_for(event: Observation) -> Line | None:
    """Return the line for an event; None for one that a log has no use for."""
    words = _words_for(type(event))
    return None if words is None else words(event)


def _words_for(kind: type[Observation]) -> _Words | None:
    part = next((part for base in kind.__mro__ if (part := _PARTS.get(base.__module__)) is not None), None)
    return None if part is None else _words_of(part)


@cache
def _words_of(part: str) -> _Words:
    return cast("_Words", import_module(f"{__name__}.{part}").line_for)
