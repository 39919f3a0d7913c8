"""`python -m benchmarks NAME... [--quick] [--only FIGURE] [--json FILE]`: run benchmarks and print their ratios."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import anyio
from rich.console import Console

from benchmarks.harness import Bench, Benchmark, Figure, NotHereError, report, table

NAMES = (
    "relay",
    "latency",
    "write",
    "publish",
    "inbox",
    "roundtrip",
    "tracker",
    "sagas",
    "two_phase_commit",
    "startup",
)
"""Every benchmark. Other modules of this package are parts they share."""


def load(names: Sequence[str]) -> dict[str, Benchmark]:
    """Import the benchmarks asked for, and no others: each has needs of its own."""
    chosen = NAMES if "all" in names else dict.fromkeys(names)
    return {name: cast("Benchmark", importlib.import_module(f"benchmarks.{name}")) for name in chosen}


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Benchmark]]:
    """Read the command line; exits with status 2 on a name that does not exist."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = [*NAMES, "all"]
    parser.add_argument("names", nargs="+", metavar="|".join(choices), choices=choices)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer runs: under 50 s each")
    parser.add_argument("--only", action="append", default=[], metavar="FIGURE", help="this figure only; repeatable")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON to FILE, or - for standard output")
    options = parser.parse_args(arguments)
    modules = load(options.names)
    figures = [figure for module in modules.values() for figure in module.FIGURES]
    for figure in options.only:
        if figure not in figures:
            parser.error(f"no figure {figure!r} here; there are: {', '.join(figures)}")
    return options, modules


async def run(modules: dict[str, Benchmark], bench: Bench) -> list[Figure]:
    """Run the benchmarks one after the other; one that cannot be run here is skipped, and says why."""
    figures: list[Figure] = []
    for name, module in modules.items():
        if bench.wants(*module.FIGURES):
            try:
                figures += [figure for figure in await module.measure(bench) if bench.wants(figure.name)]
            except NotHereError as error:
                bench.console.print(f"{name}: skipped. {error}", highlight=False)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    options, modules = parse(arguments)
    figures = anyio.run(run, modules, Bench(quick=options.quick, only=frozenset(options.only)))
    # With JSON on standard output the table moves aside.
    Console(stderr=options.json == "-").print(table(figures))
    if options.json is not None:
        text = json.dumps(report(figures), indent=2) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            Path(options.json).write_text(text, encoding="utf-8")
    if not figures:
        sys.exit(1)


if __name__ == "__main__":
    main()
