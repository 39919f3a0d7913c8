"""Place orders, watch the events flow, count what was lost: `python -m examples.streamtech.demo [--servers]`.

With `--scenario NAME` (`make demo SCENARIO=...`) one order on its way through all services, until something happens.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from examples.streamtech.audit import Audit
from examples.streamtech.embedded import SOON, embedded
from examples.streamtech.many_orders import RESENT, play
from examples.streamtech.scenarios import SCENARIOS, Outcome, Scenario, show
from examples.streamtech.scenarios import run as run_scenario

if TYPE_CHECKING:
    from examples.streamtech.processes import Site

_R = TypeVar("_R")
_OURS = ("*.db", "*.db-wal", "*.db-shm", "*.log")


class Report:
    """Bars on a terminal; elsewhere a line for each quarter."""

    def __init__(self, console: Console, progress: Progress, orders: int) -> None:
        self._console = console
        self._progress = progress
        self._orders = orders
        self._done = {"orders placed": 0, "orders answered": 0}
        self._bars = {name: progress.add_task(name, total=orders) for name in self._done}

    def say(self, text: str) -> None:
        """Show a line."""
        self._console.print(f"  {text}", soft_wrap=True, highlight=False)

    def advance(self, what: str, steps: int) -> None:
        """Move a bar."""
        before = self._done[what]
        self._done[what] += steps
        self._progress.advance(self._bars[what], steps)
        if not self._console.is_terminal and before * 4 // self._orders != self._done[what] * 4 // self._orders:
            self.say(f"{what}: {self._done[what]} of {self._orders}")


def main() -> int:
    """Run the demo; 0 if nothing was lost or doubled, 1 if something was, 2 if it could not run, 130 on Ctrl-C."""
    options = _options()
    console = Console()
    if options.scenario == "list":
        show.catalogue(console)
        return 0
    _clear(options.folder)
    logging.basicConfig(level=logging.INFO, filename=options.folder / "demo.log")
    if options.scenario:
        return _tell(console, options, SCENARIOS[options.scenario])
    _introduce(console, options)
    started = time.perf_counter()
    try:
        run = _run_processes if options.servers else _run_embedded
        audit = run(console, options)
    except KeyboardInterrupt:
        console.print("Stopped. Everything that was started has been ended.")
        return 130
    if audit is None:
        return 2
    _show(console, audit, time.perf_counter() - started)
    _look_further(console, options)
    return 1 if audit.complaints else 0


def _tell(console: Console, options: argparse.Namespace, scenario: Scenario) -> int:
    show.introduction(console, scenario, servers=options.servers)

    def say(text: str) -> None:
        console.print(f"  {text}", soft_wrap=True, highlight=False)

    async def in_process() -> Outcome:
        async with embedded(options.folder, scenario.services, look_every=SOON) as deployment:
            return await run_scenario(scenario, deployment, say)

    async def on_servers(site: Site) -> Outcome:
        from examples.streamtech.processes import processes

        async with processes(site, scenario.services) as deployment:
            return await run_scenario(scenario, deployment, say)

    try:
        outcome = _on_servers(console, options, on_servers) if options.servers else anyio.run(in_process)
    except KeyboardInterrupt:
        console.print("Stopped. Everything that was started has been ended.")
        return 130
    if outcome is None:
        return 2
    show.outcome(console, outcome)
    return 1 if outcome.complaints else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.streamtech.demo", description=__doc__)
    parser.add_argument(
        "--scenario",
        choices=["list", *SCENARIOS],
        metavar="NAME",
        default=os.environ.get("SCENARIO") or None,
        help="tell the story of one order; `list` says which there are; also SCENARIO=",
    )
    parser.add_argument(
        "--servers",
        action="store_true",
        default=os.environ.get("SERVERS", "") not in {"", "0"},
        help="PostgreSQL, RabbitMQ, and processes; also SERVERS=1",
    )
    parser.add_argument("--orders", type=int, default=os.environ.get("ORDERS") or "200", help="also ORDERS=")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="repeats the same orders")
    parser.add_argument("--folder", type=Path, default=Path("demo-data"), help="for databases and logs")
    options = parser.parse_args()
    if options.scenario not in {None, "list", *SCENARIOS}:
        parser.error(f"--scenario: there is no {options.scenario!r}, but {', '.join(SCENARIOS)}")
    if options.orders < RESENT:
        parser.error(f"--orders: at least {RESENT}, since so many events are sent twice")
    return options


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _OURS:
        for path in folder.glob(pattern):
            path.unlink()


def _introduce(console: Console, options: argparse.Namespace) -> None:
    where = (
        "PostgreSQL and RabbitMQ servers of their own, each part a process"
        if options.servers
        else "SQLite files and an in-memory broker, all in this process (SERVERS=1: real servers, processes)"
    )
    lines = [
        f"StreamTech: {options.orders} orders through two services, on {where}.",
        f"Seed {options.seed}. On purpose, the stock is too small for all orders, about every tenth transaction is "
        f"rolled back after publishing, and {RESENT} events are sent twice.",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _run_embedded(console: Console, options: argparse.Namespace) -> Audit:
    async def run() -> Audit:
        with _reporting(console, options.orders) as report:
            async with embedded(options.folder) as deployment:
                return await play(deployment, options.orders, random.Random(options.seed), report)

    return anyio.run(run)


def _run_processes(console: Console, options: argparse.Namespace) -> Audit | None:
    async def run(site: Site) -> Audit:
        from examples.streamtech.processes import processes

        with _reporting(console, options.orders) as report:
            async with processes(site) as deployment:
                return await play(deployment, options.orders, random.Random(options.seed), report)

    return _on_servers(console, options, run)


def _on_servers(console: Console, options: argparse.Namespace, run: Callable[[Site], Awaitable[_R]]) -> _R | None:
    """Start servers and run something on them; None, with the reason printed, if that cannot be done."""
    # Imported here: the launcher of private servers is not installed for the embedded demo, and not needed.
    from examples.streamtech.processes import DemoError, servers

    try:
        console.print("  starting the servers", highlight=False)
        with servers(options.folder) as site:
            console.print("  starting `sagapost relay` and `sagapost consume` for each service", highlight=False)
            return anyio.run(run, site)
    except* DemoError as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        console.print(str(error), soft_wrap=True, highlight=False, markup=False)
    return None


@contextmanager
def _reporting(console: Console, orders: int) -> Generator[Report]:
    columns = TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Report(console, progress, orders)


def _show(console: Console, audit: Audit, seconds: float) -> None:
    table = Table(title=f"after {seconds:.1f} s", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    must_be_zero = {
        "of rolled-back orders, events or rows": audit.ghosts,
        "effects doubled": audit.doubled,
        "lost": len(audit.lost),
    }
    table.add_row("orders placed", str(audit.orders))
    table.add_row("  confirmed", str(audit.confirmed))
    table.add_row("  cancelled, out of stock", str(audit.cancelled))
    table.add_row("rolled back on purpose", str(audit.undone))
    table.add_row("events published", str(audit.published))
    table.add_row("events handled", str(audit.handled))
    table.add_row("duplicates suppressed", str(audit.suppressed))
    if audit.waiting:
        table.add_row("not at their end (outbox, parked, queues)", str(audit.waiting))
    for name, count in must_be_zero.items():
        table.add_row(f"{name} (must be 0)", str(count), style="bold red" if count else "bold green")
    console.print(table)
    for complaint in audit.complaints:
        console.print(complaint, style="bold red", soft_wrap=True)


def _look_further(console: Console, options: argparse.Namespace) -> None:
    folder = options.folder
    if options.servers:
        commands = {
            f"less {folder}/orders-relay.log": "what the relay did; it was killed half-way",
            f"less {folder}/warehouse-consume.log": "what the consumer did",
        }
    else:
        url = f"SAGAPOST_DATABASE_URL=sqlite+aiosqlite:///{folder}/warehouse.db"
        commands = {
            f"sqlite3 {folder}/orders.db 'SELECT status, count(*) FROM orders GROUP BY 1'": "the orders",
            f"{url} {_shown(Path(sys.executable).with_name('sagapost'))} status": "outbox and inbox of the warehouse",
            "make demo SERVERS=1": "the same on PostgreSQL and RabbitMQ, with a relay that is killed",
        }
    commands |= {
        "make demo SCENARIO=list": "one order, and what can happen to it",
        "less examples/streamtech/payment.py": "a service, in a hundred lines",
        "make test": "every promise, tested on real servers",
    }
    console.print("\nLook further:")
    width = max(map(len, commands))
    for command, text in commands.items():
        console.print(f"  {command:{width}}   # {text}", soft_wrap=True, highlight=False, markup=False)


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


if __name__ == "__main__":
    sys.exit(main())
