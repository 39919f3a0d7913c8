"""How fast events arrived, and how long after a fault they did so again."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field

__all__ = ["Arrivals", "Recovery"]


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a fault cost."""

    fault: str
    at: float
    """When it was over: a restarted server is up again, a connection is cut."""
    seconds: float | None
    """Until a second began at the wanted rate, without the time for which a server was away; None: never again."""


@dataclass(slots=True)
class Arrivals:
    """Times of arrival, in order; and times without a server, in which nothing could arrive."""

    times: array[float] = field(default_factory=lambda: array("d"))
    downtimes: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def add(self, at: float) -> None:
        """One event arrived."""
        self.times.append(at)

    def between(self, start: float, end: float) -> int:
        """How many arrived from `start` up to `end`."""
        return bisect_left(self.times, end) - bisect_left(self.times, start)

    def recovery(self, fault: str, *, at: float, rate: float, window: float = 1.0, step: float = 0.1) -> Recovery:
        """How long after `at` a window began in which events arrived at `rate` a second."""
        last = self.times[-1] if self.times else at
        start = at
        while start + window <= last + step:
            if self.between(start, start + window) >= rate * window:
                return Recovery(fault, at, start - at - self._down(at, start))
            start += step
        return Recovery(fault, at, None)

    def _down(self, start: float, end: float) -> float:
        """Seconds between two times for which a server was away."""
        return sum(max(0.0, min(end, up) - max(start, down)) for down, up in self.downtimes)
