"""A log line as the modules beside this one word it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["DEBUG", "ERROR", "INFO", "READABLE", "WARNING", "Line", "lost"]

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR
READABLE: Final = 1.0
"""Seconds between two lines of a kind that comes often."""


@dataclass(frozen=True, slots=True)
class Line:
    """What to write."""

    level: int
    text: str
    extra: Mapping[str, object] = field(default_factory=dict[str, object])
    every: float = 0.0
    """Least seconds between two such lines; 0: write each."""


def lost(where: Mapping[str, object], reason: str, attempt: int, retry_in: float) -> Line:
    """Return the line for a server that went away."""
    extra = {**where, "attempt": attempt, "retry_in": round(retry_in, 3)}
    if not attempt:
        # Reported on the way out, where nothing is tried again.
        return Line(WARNING, reason, extra)
    return Line(WARNING, f"{reason} Attempt {attempt}; next in {retry_in:.1f} s.", extra)
