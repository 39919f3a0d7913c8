"""How fast one relay drains an outbox, against the most the same broker takes from one publisher in the same run.

The ceiling publishes pre-encoded frames of the same size on a raw socket with a confirm window of 2,000 while its
PostgreSQL is idle; the relay reads, encodes, publishes, confirms and deletes, with fsync and synchronous_commit on.
Payload 500 bytes, 1,000 keys, durable queue, persistent, mandatory, order on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field

import anyio
import asyncpg
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from benchmarks import outbox_rows
from benchmarks.ceiling import BenchQueue, publish_ceiling
from benchmarks.harness import Bench, Figure, interleave
from tests.servers.postgresql import PrivatePostgreSQL, private_postgresql
from tests.servers.rabbitmq import private_rabbitmq

FIGURES = (
    "relay.drain.classic",
    "relay.drain.quorum",
    "relay.cpu_us_per_message",
    "relay.hot_key",
    "relay.open_transaction",
    "relay.backlog",
    "relay.peak_mib",
    "relay.scale_2",
    "relay.scale_4",
)


@dataclass(slots=True)
class Bed:
    """The servers of one invocation and what the workers reported."""

    url: str
    dsn: str
    amqp: str
    admin: asyncpg.Connection
    cpu: list[float] = field(default_factory=list[float])
    peak: list[float] = field(default_factory=list[float])


async def measure(bench: Bench) -> list[Figure]:
    """Run what is wanted on private servers."""
    with private_postgresql(durable=True) as server, private_rabbitmq() as broker:
        async with open_bed(server, broker.amqp_url()) as bed:
            figures: list[Figure] = []
            runs = bench.pick(1, 3)
            if bench.wants("relay.drain.classic", "relay.cpu_us_per_message"):
                figures += await _drain(bench, bed, "classic", bench.pick(2, 3))
            if bench.wants("relay.drain.quorum"):
                figures += await _drain(bench, bed, "quorum", bench.pick(2, 3))
            if bench.wants("relay.hot_key"):
                figures.append(await _hot_key(bench, bed, runs))
            if bench.wants("relay.open_transaction"):
                figures.append(await _open_transaction(bench, bed, runs))
            if bench.wants("relay.backlog", "relay.peak_mib"):
                figures += await _backlog(bench, bed, runs)
            for relays in (2, 4):
                if bench.wants(f"relay.scale_{relays}"):
                    figures.append(await _scale(bench, bed, relays, runs))
            return figures


@asynccontextmanager
async def open_bed(server: PrivatePostgreSQL, amqp: str) -> AsyncGenerator[Bed, None]:
    """Prepare a database on the server."""
    server.create_database("bench")
    url = server.url("bench")
    await outbox_rows.install(url)
    dsn = server.dsn("bench")
    admin = await asyncpg.connect(dsn)
    try:
        yield Bed(url, dsn, amqp, admin)
    finally:
        await admin.close()


async def _drain(bench: Bench, bed: Bed, kind: str, runs: int) -> list[Figure]:
    rows = bench.pick(10_000, 100_000)

    async def ceiling() -> float:
        async with BenchQueue(bed.amqp, kind=kind, topic=outbox_rows.TOPIC):
            return await publish_ceiling(
                bed.amqp, topic=outbox_rows.TOPIC, count=rows, payload_bytes=outbox_rows.PAYLOAD_BYTES, window=2_000
            )

    async def relay() -> float:
        return await _one_relay(bed, rows, kind=kind, keep_cpu=kind == "classic")

    results = await interleave(bench, f"drain, {kind}", {"ceiling": ceiling, "relay": relay}, runs=runs)
    figures = [Figure.of(f"relay.drain.{kind}", "msg/s", results["relay"], results["ceiling"])]
    if kind == "classic":
        figures.append(Figure.of("relay.cpu_us_per_message", "us", bed.cpu))
    return figures


async def _hot_key(bench: Bench, bed: Bed, runs: int) -> Figure:
    rows = bench.pick(10_000, 100_000)
    results = await interleave(
        bench,
        "one hot key",
        {
            "hot": lambda: _one_relay(bed, rows, keys=1),
            "spread": lambda: _one_relay(bed, rows),
        },
        runs=runs,
    )
    return Figure.of("relay.hot_key", "msg/s", results["hot"], results["spread"])


async def _open_transaction(bench: Bench, bed: Bed, runs: int) -> Figure:
    rows = bench.pick(20_000, 500_000)
    await bed.admin.execute("CREATE TABLE IF NOT EXISTS elsewhere (x int)")

    async def pinned() -> float:
        # A transaction that has written, and stays open from before the first row until the drain has ended.
        other = await asyncpg.connect(bed.dsn)
        try:
            transaction = other.transaction()
            await transaction.start()
            await other.execute("INSERT INTO elsewhere VALUES (1)")
            rate = await _one_relay(bed, rows)
            await transaction.rollback()
            return rate
        finally:
            await other.close()

    results = await interleave(
        bench, "open transaction", {"pinned": pinned, "free": lambda: _one_relay(bed, rows)}, runs=runs
    )
    return Figure.of("relay.open_transaction", "msg/s", results["pinned"], results["free"])


async def _backlog(bench: Bench, bed: Bed, runs: int) -> list[Figure]:
    """The rate over the first part of a large backlog, against as many rows that never wait in such number.

    Both fill the queue by the same number of messages: what a long queue costs the broker is not the relay's.
    """
    backlog, part = bench.pick(60_000, 2_000_000), bench.pick(10_000, 20_000)
    parts = bench.pick(2, 10)

    async def deep() -> float:
        return await _one_relay(bed, backlog, drain=parts * part, keep_peak=True)

    async def shallow() -> float:
        async with BenchQueue(bed.amqp, kind="classic", topic=outbox_rows.TOPIC):
            return parts * part / sum([part / await _one_relay(bed, part, fresh_queue=False) for _ in range(parts)])

    results = await interleave(bench, "backlog", {"deep": deep, "shallow": shallow}, runs=runs)
    return [
        Figure.of("relay.backlog", "msg/s", results["deep"], results["shallow"]),
        Figure.of("relay.peak_mib", "MiB", bed.peak),
    ]


async def _scale(bench: Bench, bed: Bed, relays: int, runs: int) -> Figure:
    rows = bench.pick(10_000, 100_000)
    results = await interleave(
        bench,
        f"{relays} relays",
        {"many": lambda: _several_relays(bed, rows, relays), "one": lambda: _several_relays(bed, rows, 1)},
        runs=runs,
    )
    return Figure.of(f"relay.scale_{relays}", "msg/s", results["many"], results["one"])


async def _one_relay(
    bed: Bed,
    rows: int,
    *,
    kind: str = "classic",
    keys: int = outbox_rows.KEYS,
    drain: int | None = None,
    keep_cpu: bool = False,
    keep_peak: bool = False,
    fresh_queue: bool = True,
) -> float:
    """Fill, drain with one relay process, return messages per second.

    :param fresh_queue: into a queue of its own; else into one that the caller keeps.
    """
    await outbox_rows.empty(bed.admin)
    await outbox_rows.fill(bed.admin, rows, keys=keys)
    async with (
        BenchQueue(bed.amqp, kind=kind, topic=outbox_rows.TOPIC) if fresh_queue else nullcontext(),
        worker(bed.url, bed.amqp, drain or rows, kind) as lines,
    ):
        async for line in lines:
            if "seconds" in line:
                if keep_cpu:
                    bed.cpu.append(line["cpu_seconds"] / line["rows"] * 1e6)
                if keep_peak:
                    bed.peak.append(line["peak_mib"])
                return line["rows"] / line["seconds"]
    raise RuntimeError("the relay process ended without its figures")


async def _several_relays(bed: Bed, rows: int, relays: int) -> float:
    """Let relays share the partitions first, then commit the rows at once and time until all are settled."""
    await outbox_rows.empty(bed.admin)
    settled = [0] * relays
    owned = [0] * relays
    changed = anyio.Event()
    elapsed = 0.0

    async def follow(index: int) -> None:
        nonlocal changed
        async with worker(bed.url, bed.amqp, rows, "classic") as lines:
            async for line in lines:
                if "settled" in line:
                    settled[index] = int(line["settled"])
                elif "owned" in line:
                    owned[index] = int(line["owned"])
                changed.set()

    async with BenchQueue(bed.amqp, kind="classic", topic=outbox_rows.TOPIC), anyio.create_task_group() as tasks:
        for index in range(relays):
            tasks.start_soon(follow, index)
        while sorted(owned) != [32 // relays] * relays:
            changed = anyio.Event()
            await changed.wait()
        await outbox_rows.fill(bed.admin, rows)
        started = anyio.current_time()
        while sum(settled) < rows:
            changed = anyio.Event()
            await changed.wait()
        elapsed = anyio.current_time() - started
        tasks.cancel_scope.cancel()
    return rows / elapsed


@asynccontextmanager
async def worker(
    database: str, amqp: str, rows: int, kind: str
) -> AsyncGenerator[AsyncGenerator[dict[str, float], None], None]:
    """Run `benchmarks.relay_worker`; yields its JSON lines."""
    command = [sys.executable, "-m", "benchmarks.relay_worker", "--database", database, "--broker", amqp]
    command += ["--rows", str(rows), "--queue-type", kind]
    async with await anyio.open_process(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield _lines(process)
        finally:
            if process.returncode is None:
                process.terminate()
                with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                    await process.wait()
            if process.returncode is None:
                process.kill()


async def _lines(process: Process) -> AsyncGenerator[dict[str, float], None]:
    assert process.stdout is not None  # opened as a pipe above
    rest = ""
    async for chunk in TextReceiveStream(process.stdout):
        *whole, rest = (rest + chunk).split("\n")
        for line in whole:
            yield json.loads(line)
