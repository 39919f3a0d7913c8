"""Place orders, watch the events flow, count what was lost: `python -m examples.streamtech.demo [--servers]`."""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from examples.streamtech import embedded
from examples.streamtech.workload import Audit

FOLDER = Path("demo-data")
RESEND = 20

_console = Console()


def main() -> int:
    """Entry point; 0 if nothing was lost or doubled."""
    options = _options()
    seed = options.seed if options.seed is not None else random.randrange(2**32)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    logging.basicConfig(level=logging.WARNING, filename=FOLDER / "demo.log")
    where = (
        "private PostgreSQL and RabbitMQ servers, each service in processes of its own"
        if options.servers
        else "SQLite files and an in-memory broker in this process (SERVERS=1 for real servers and processes)"
    )
    _console.print(f"StreamTech: {options.orders} orders on {where}. Seed {seed}.")
    if options.servers:
        _console.print("The relay of orders is killed half-way and started again.")
    _console.print(f"{RESEND} events are sent a second time at the end; every tenth transaction fails on purpose.")
    started = time.perf_counter()
    try:
        with _progress(options.orders) as advance:
            audit, duplicates = anyio.run(_run, options.servers, options.orders, random.Random(seed), advance)
    except KeyboardInterrupt:
        _console.print("Stopped; everything that was started has been ended.")
        return 130
    _show(audit, duplicates, time.perf_counter() - started)
    _look_further(servers=options.servers)
    return 1 if audit.lost or audit.doubled else 0


async def _run(
    servers: bool, orders: int, rng: random.Random, advance: Callable[[str, int], None]
) -> tuple[Audit, int]:
    if not servers:
        return await embedded.run(FOLDER, orders, rng, RESEND, advance)
    # Imported here: the launcher of private servers is not needed, and not installed, for the embedded demo.
    from examples.streamtech import processes

    return await processes.run(FOLDER, orders, rng, RESEND, advance)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.streamtech.demo", description=__doc__)
    parser.add_argument("--servers", action="store_true", default=os.environ.get("SERVERS", "") not in {"", "0"})
    parser.add_argument("--orders", type=int, default=int(os.environ.get("ORDERS") or 200))
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    if options.orders < RESEND:
        parser.error(f"--orders: at least {RESEND}, so that {RESEND} events can be sent twice")
    return options


@contextmanager
def _progress(orders: int) -> Generator[Callable[[str, int], None], None, None]:
    """Bars on a terminal, a line for each quarter elsewhere."""
    columns = TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn()
    done = {"orders placed": 0, "orders answered": 0}
    with Progress(*columns, console=_console, disable=not _console.is_terminal) as progress:
        tasks = {name: progress.add_task(name, total=orders) for name in done}

        def advance(name: str, steps: int) -> None:
            before = done[name]
            done[name] += steps
            progress.advance(tasks[name], steps)
            if not _console.is_terminal and before * 4 // orders != done[name] * 4 // orders:
                _console.print(f"  {name}: {done[name]} of {orders}")

        yield advance


def _show(audit: Audit, duplicates: int, seconds: float) -> None:
    table = Table(title=f"after {seconds:.1f} s", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("orders placed", str(audit.orders))
    table.add_row("  confirmed", str(audit.confirmed))
    table.add_row("  rejected: out of stock", str(audit.rejected))
    table.add_row("events published", str(audit.published))
    table.add_row("events handled", str(audit.handled))
    table.add_row("duplicates suppressed", str(duplicates))
    table.add_row("doubled effects (must be 0)", str(audit.doubled))
    table.add_row("lost (must be 0)", str(audit.lost), style="bold green" if not audit.lost else "bold red")
    _console.print(table)


def _look_further(*, servers: bool) -> None:
    _console.print("Look further:")
    if servers:
        _console.print(f"  less {FOLDER}/orders-relay.log           what the relay did, one JSON object a line")
        _console.print(f"  less {FOLDER}/warehouse-consume.log      what the consumer did")
    else:
        _console.print(f"  sqlite3 {FOLDER}/warehouse.db 'SELECT * FROM reservations LIMIT 5'")
        _console.print(f"  sqlite3 {FOLDER}/orders.db 'SELECT status, count(*) FROM orders GROUP BY 1'")
    _console.print("  examples/streamtech/orders.py and warehouse.py   the two services, some 80 lines each")
    _console.print("  make test                                        every promise, tested on real servers")


if __name__ == "__main__":
    sys.exit(main())
