"""The observer that writes log lines: what an operator wants to know, at a rate a person can read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sagapost.core.observer import Observation
from sagapost.ops.log_lines import Line, line_for
from sagapost.outbox.relay.observations import RelayStopped, Settled

__all__ = ["LogObserver"]

_SUMMARY = 60.0
"""Seconds between the lines that say how much was done."""


class LogObserver:
    """Writes a line for each observer event that has one.

    Events that come per batch or per message are limited to one line a second each; the next line says how many were
    left out. Every minute, while there is work, one line says how much was done.
    """

    def __init__(self, logger: logging.Logger, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._monotonic = monotonic
        self._written: dict[type[Observation], float] = {}
        self._left_out: dict[type[Observation], int] = {}
        self._done = 0
        self._counted_since = monotonic()

    def notify(self, event: Observation, /) -> None:
        """Write the event's line, if it has one and its turn has come."""
        if isinstance(event, Settled):
            self._done += event.rows
            self._summarise(at_least=_SUMMARY)
        elif isinstance(event, RelayStopped):
            self._summarise(at_least=0.0)
        line = line_for(event)
        if line is not None and self._logger.isEnabledFor(line.level):
            self._write(type(event), line)

    def _write(self, kind: type[Observation], line: Line) -> None:
        extra = dict(line.extra)
        if line.every:
            now = self._monotonic()
            last = self._written.get(kind)
            if last is not None and now - last < line.every:
                self._left_out[kind] = self._left_out.get(kind, 0) + 1
                return
            self._written[kind] = now
            left_out = self._left_out.pop(kind, 0)
            if left_out:
                extra["left_out"] = left_out
        self._logger.log(line.level, line.text, extra=extra)

    def _summarise(self, *, at_least: float) -> None:
        elapsed = self._monotonic() - self._counted_since
        if elapsed < at_least:
            return
        if self._done:
            rate = self._done / elapsed if elapsed > 0 else float(self._done)
            self._logger.info(
                "%d events published", self._done, extra={"seconds": round(elapsed, 1), "rate": round(rate, 1)}
            )
        self._done = 0
        self._counted_since = self._monotonic()
