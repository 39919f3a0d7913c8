"""What every benchmark shares: figures, interleaved runs, progress, the report.

A benchmark is a module of this package with two names: `FIGURES`, what it can print, and `measure(bench)`, an async
function that returns those of them that are wanted. Each figure is a ratio to a baseline of the same run, because
absolute numbers of a shared machine mean little.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["Bench", "Benchmark", "Figure", "NotHereError", "interleave", "machine", "report"]


class NotHereError(Exception):
    """A benchmark lacks something on this machine; says what, and what to do."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number beside what it is compared with."""

    name: str
    """Dotted, starting with the benchmark's name."""
    value: float
    """Median of the runs, in `unit`."""
    unit: str
    baseline: float | None
    """Median of the baseline's runs, in `unit`; None where the figure stands alone."""
    ratio: float | None
    """Median of the runs' own ratios value / baseline; None without a baseline."""
    runs: int

    @classmethod
    def of(cls, name: str, unit: str, values: Sequence[float], baselines: Sequence[float] | None = None) -> Figure:
        """Summarise runs; the n-th value is compared with the n-th baseline, which ran next to it.

        :raises ValueError: if there is no run, or as many baselines as values are not given.
        """
        if not values:
            raise ValueError(f"{name} has no runs")
        if baselines is None:
            return cls(name, statistics.median(values), unit, None, None, len(values))
        ratios = [value / baseline for value, baseline in zip(values, baselines, strict=True)]
        return cls(
            name,
            statistics.median(values),
            unit,
            statistics.median(baselines),
            statistics.median(ratios),
            len(values),
        )


@dataclass(slots=True)
class Bench:
    """One invocation: what is wanted, how thoroughly, and where progress goes."""

    quick: bool = False
    only: frozenset[str] = frozenset()
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def wants(self, *names: str) -> bool:
        """Return whether any of these figures is asked for."""
        return not self.only or not self.only.isdisjoint(names)

    def pick(self, quick: int, full: int) -> int:
        """Return the size for this invocation."""
        return quick if self.quick else full

    @contextmanager
    def progress(self, description: str, total: int) -> Generator[Callable[[int], None], None, None]:
        """Show a bar on a terminal (nothing elsewhere); yields a function that advances it."""
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        ) as progress:
            task = progress.add_task(description, total=total)
            yield lambda steps: progress.advance(task, steps)


class Benchmark(Protocol):
    """A module of this package."""

    FIGURES: tuple[str, ...]

    @staticmethod
    async def measure(bench: Bench) -> list[Figure]:
        """Run and return the wanted figures."""
        ...


async def interleave(
    bench: Bench, description: str, variants: Mapping[str, Callable[[], Awaitable[float]]], *, runs: int
) -> dict[str, list[float]]:
    """Run every variant `runs` times, in turn, so that a drifting machine drifts for all of them.

    The order rotates from run to run: what profits from its place profits once.
    """
    results: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    with bench.progress(description, runs * len(names)) as advance:
        for run in range(runs):
            shift = run % len(names)
            for name in names[shift:] + names[:shift]:
                results[name].append(await variants[name]())
                advance(1)
    return results


def machine() -> dict[str, Any]:
    """Describe where the numbers come from."""
    packages = ("sagapost", "sqlalchemy", "asyncpg", "aiormq", "msgspec", "uvloop")
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: version for name in packages if (version := _version(name)) is not None},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def report(figures: Sequence[Figure]) -> dict[str, Any]:
    """Return what `--json` writes."""
    return {"machine": machine(), "figures": [asdict(figure) for figure in figures]}


def table(figures: Sequence[Figure]) -> Table:
    """Return the figures for a person."""
    shown = Table("figure", box=None, pad_edge=False)
    for column in ("value", "baseline", "ratio", "runs"):
        shown.add_column(column, justify="right")
    for figure in figures:
        shown.add_row(
            figure.name,
            f"{_shown(figure.value)} {figure.unit}",
            "" if figure.baseline is None else f"{_shown(figure.baseline)} {figure.unit}",
            "" if figure.ratio is None else f"{figure.ratio:.3f}",
            str(figure.runs),
        )
    return shown


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
