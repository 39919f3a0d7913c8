"""Latency at a steady rate: arrivals scheduled ahead of time, whatever became of the ones before, and percentiles.

An open loop: a stall delays everything behind it and shows up in the tail, where a client that waits for each answer
before the next question would hide it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio

from benchmarks.harness import Figure

__all__ = ["milliseconds", "on_schedule", "percentiles"]

_LEAD_SECONDS = 0.5


async def on_schedule(count: int, rate: float, work: Callable[[int], Awaitable[None]]) -> None:
    """Call `work(number)` at random moments, `rate` times a second; return once every call has returned."""
    rng = random.Random(4711)
    at = time.perf_counter() + _LEAD_SECONDS

    async def one(moment: float, number: int) -> None:
        await anyio.sleep(max(0.0, moment - time.perf_counter()))
        await work(number)

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            at += rng.expovariate(rate)
            tasks.start_soon(one, at, number)


def milliseconds(begun: Mapping[str, float], ended: Mapping[str, float]) -> list[float]:
    """Return how long each took, by the order of their beginnings, the first tenth left out as warm-up."""
    order = sorted(ended, key=lambda name: begun[name])
    return [(ended[name] - begun[name]) * 1e3 for name in order[len(order) // 10 :]]


def percentiles(name: str, runs: Sequence[Sequence[float]], baselines: Sequence[Sequence[float]]) -> list[Figure]:
    """Return `name`.p50 and `name`.p99: the percentile of each run beside that of its baseline, in milliseconds."""

    def each(samples: Sequence[Sequence[float]], percent: int) -> list[float]:
        return [statistics.quantiles(run, n=100)[percent - 1] for run in samples]

    return [
        Figure.of(f"{name}.p{percent}", "ms", each(runs, percent), each(baselines, percent)) for percent in (50, 99)
    ]
