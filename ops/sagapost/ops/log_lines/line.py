"""A log line as the modules beside this one word it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["DEBUG", "ERROR", "INFO", "READABLE", "WARNING", "Line"]

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
