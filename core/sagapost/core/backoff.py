"""Capped exponential backoff with full jitter."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from datetime import timedelta

__all__ = ["Backoff", "wait_for_another_version"]

_SOONEST, _LATEST = timedelta(seconds=1), timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before attempt `n + 1`.

    The n-th delay is drawn uniformly from ``[base * factor**(n-1) * (1 - jitter), base * factor**(n-1)]``, capped at
    `cap` before the draw. Jitter keeps a fleet that failed together from returning together.
    """

    base: timedelta = timedelta(seconds=1)
    cap: timedelta = timedelta(minutes=5)
    factor: float = 2.0
    jitter: float = 0.5
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.base <= timedelta(0) or self.cap < self.base:
            raise ValueError(f"Backoff needs 0 < base <= cap, got base={self.base}, cap={self.cap}")
        if not 1 <= self.factor < math.inf or not 0 <= self.jitter <= 1:
            raise ValueError(f"Backoff needs factor >= 1 and 0 <= jitter <= 1, got {self.factor} and {self.jitter}")

    def delay(self, attempt: int) -> timedelta:
        """Return the wait after failed attempt number `attempt` (1 for the first)."""
        base, cap = self.base.total_seconds(), self.cap.total_seconds()
        exponent = max(attempt, 1) - 1
        # Compared as logarithms: after an outage of days the power itself would overflow a float.
        capped = exponent * math.log(self.factor) >= math.log(cap / base)
        ceiling = cap if capped else min(base * self.factor**exponent, cap)
        return timedelta(seconds=ceiling * (1 - self.jitter * self.rng.random()))

    def seconds(self, attempt: int) -> float:
        """Return `delay(attempt)` in seconds."""
        return self.delay(attempt).total_seconds()


def wait_for_another_version(waited: timedelta, *, longest: timedelta) -> timedelta | None:
    """Return how long until the next look at what this version does not know; None: it has waited for long enough.

    As long as it has waited already, between a second and a minute, and not past the end of `longest`.
    """
    if waited >= longest:
        return None
    return min(max(waited, _SOONEST), _LATEST, longest - waited)
