"""The one seam for telemetry: frozen events about what the relay and the inbox do.

Logs, metrics, traces and test signals are all observers. The hot path emits one event per *batch*, never per row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["NullObserver", "Observation", "Observer", "Observers"]

_log = logging.getLogger("sagapost")


@dataclass(frozen=True, slots=True)
class Observation:
    """Base of every observer event."""


class Observer(Protocol):
    """Receives what happens, in the task it happens in."""

    def notify(self, event: Observation, /) -> None:
        """Take note of `event`. Must be quick, must not block, must not await."""
        ...


class NullObserver:
    """Ignores everything."""

    def notify(self, event: Observation, /) -> None:
        """Do nothing."""


class Observers:
    """Fans out to several observers; one that raises is reported in the log and never disturbs the work.

    Whatever it raises: `notify` is a plain call, so a `CancelledError` out of it is not a cancellation of ours, and a
    `SystemExit` is no decision for an exporter. Only Ctrl-C, which Python may raise anywhere, goes through.
    """

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers: Sequence[Observer] = tuple(observers)

    def notify(self, event: Observation, /) -> None:
        """Pass `event` to each observer in turn."""
        for observer in self._observers:
            try:
                observer.notify(event)
            except KeyboardInterrupt:
                raise
            except BaseException:
                _log.exception("observer %r failed on %s; the work goes on", observer, type(event).__name__)
