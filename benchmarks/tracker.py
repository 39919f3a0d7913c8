"""How fast the tracker folds, against how fast one relay drains an outbox in the same run; and how long a look takes.

The tracker folds four-event sagas of an order flow, 500-byte payloads with a business key, interleaved as 400 sagas
that run at once, in batches of 1,000; PostgreSQL with fsync and synchronous_commit on. Both are processes of their
own. The fold starts from decoded events; what the broker's client costs is in `tracker.consume`, from a filled queue.
A look is `Tracker.show` with business keys, of random sagas, in a table of a million (quick: 50,000).
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence

import anyio
import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks import outbox_rows
from benchmarks.ceiling import BenchQueue
from benchmarks.harness import Bench, Figure, interleave
from benchmarks.relay import Bed, open_bed, worker
from benchmarks.tracker_worker import order_flow
from sagapost.sagas.tracker import Tracker, TrackerSettings
from tests.servers.postgresql import PrivatePostgreSQL, private_postgresql
from tests.servers.rabbitmq import private_rabbitmq

FIGURES = ("tracker.fold_vs_drain", "tracker.consume", "tracker.show_ms")

LIMIT_MS = 20.0
"""What a look may take."""


async def measure(bench: Bench) -> list[Figure]:
    """Run what is wanted on private servers."""
    figures: list[Figure] = []
    with private_postgresql(durable=True) as server:
        if bench.wants("tracker.fold_vs_drain", "tracker.consume"):
            with private_rabbitmq() as broker:
                async with open_bed(server, broker.amqp_url()) as bed:
                    figures += await _fold(bench, server, bed)
        if bench.wants("tracker.show_ms"):
            figures.append(await _show(bench, server))
    return figures


async def _fold(bench: Bench, server: PrivatePostgreSQL, bed: Bed) -> list[Figure]:
    sagas, rows = bench.pick(3_000, 25_000), bench.pick(10_000, 100_000)
    number = 0

    async def run(kind: str) -> float:
        nonlocal number
        number += 1
        name = f"tracker{number}"
        server.create_database(name)
        command = [sys.executable, "-m", "benchmarks.tracker_worker", kind, server.url(name), bed.amqp, str(sagas)]
        done = await anyio.run_process(command, stderr=None)
        server.drop_database(name)
        return float(json.loads(done.stdout.splitlines()[-1])["rate"])

    async def drain() -> float:
        await outbox_rows.empty(bed.admin)
        await outbox_rows.fill(bed.admin, rows)
        async with (
            BenchQueue(bed.amqp, kind="classic", topic=outbox_rows.TOPIC),
            worker(bed.url, bed.amqp, rows, "classic") as lines,
        ):
            async for line in lines:
                if "seconds" in line:
                    return line["rows"] / line["seconds"]
        raise RuntimeError("the relay process ended without its figures")

    results = await interleave(
        bench,
        "fold",
        {"drain": drain, "fold": lambda: run("fold"), "consume": lambda: run("consume")},
        runs=bench.pick(1, 3),
    )
    return [
        Figure.of("tracker.fold_vs_drain", "events/s", results["fold"], results["drain"]),
        Figure.of("tracker.consume", "events/s", results["consume"], results["drain"]),
    ]


async def _show(bench: Bench, server: PrivatePostgreSQL) -> Figure:
    sagas = bench.pick(50_000, 1_000_000)
    server.create_database("looks")
    engine = create_async_engine(server.url("looks"))
    tracker = Tracker(engine, settings=TrackerSettings(keys=("order_id",), ends=("order-completed",)))
    await tracker.install()
    names = await _grow(bench, tracker, server.dsn("looks"), sagas)
    rng = random.Random(1)
    # The first look opens the connection.
    await tracker.show(names[0])
    times: list[float] = []
    for name in rng.choices(names, k=bench.pick(50, 300)):
        began = time.perf_counter()
        view = await tracker.show(f"{name}-{rng.randrange(sagas // len(names))}")
        times.append((time.perf_counter() - began) * 1000)
        if view is None or len(view.history) != 4:
            raise RuntimeError("a saga that was put there is not shown")
    await engine.dispose()
    server.drop_database("looks")
    return Figure.of("tracker.show_ms", "ms", times, [LIMIT_MS] * len(times))


async def _grow(bench: Bench, tracker: Tracker, dsn: str, sagas: int) -> Sequence[str]:
    """Fold a thousand sagas, and copy their rows under other names until there are as many as wanted."""
    seeds = 1_000
    flow = [
        msgspec.structs.replace(event, correlationid=f"seed-{event.correlationid}") for event in order_flow(seeds, 400)
    ]
    await tracker.fold(flow)
    names = sorted({event.correlationid for event in flow if event.correlationid is not None})
    connection = await asyncpg.connect(dsn)
    columns = "state, reason, started_at, last_at, ended_at, due_at, events, truncated, history, version"
    with bench.progress("growing", sagas // seeds) as advance:
        for start in range(0, sagas // seeds, 50):
            many = min(50, sagas // seeds - start)
            await connection.execute(
                f"INSERT INTO tracker_sagas (saga, {columns}) SELECT saga || '-' || n, {columns} FROM tracker_sagas, "
                "generate_series($1::int, $2::int) n WHERE saga = ANY($3)",
                start,
                start + many - 1,
                names,
            )
            await connection.execute(
                "INSERT INTO tracker_keys (value, saga, name) SELECT value || '-' || n, saga || '-' || n, name "
                "FROM tracker_keys, generate_series($1::int, $2::int) n WHERE saga = ANY($3)",
                start,
                start + many - 1,
                names,
            )
            advance(many)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()
    return names
