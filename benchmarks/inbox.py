"""How fast an inbox consumes, against what one writes by hand, and against itself in other modes.

Payload 500 bytes, durable quorum queue, a private PostgreSQL with fsync and synchronous_commit on; the handler adds
one ORM row. Each consumer is a process of its own; the queue is filled before its clock starts.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import asyncpg
import msgspec

from benchmarks.harness import Bench, Figure, interleave
from benchmarks.inbox_service import events, fill, install
from benchmarks.inbox_worker import Kind, Plan, Report
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.inbox.declared.settings import GROUPS
from tests.servers.postgresql import PrivatePostgreSQL, private_postgresql
from tests.servers.rabbitmq import private_rabbitmq

FIGURES = (
    "inbox.default",
    "inbox.cpu_us_per_message",
    "inbox.groups",
    "inbox.groups_cpu_us_per_message",
    "inbox.one_bad_in_fifty",
    "inbox.group_commit",
    "inbox.vs_raw",
    "inbox.vs_raw_pipelined",
    "inbox.duplicates",
    "inbox.dedup_10m",
    "inbox.dedup_10m_foreign",
    "inbox.peak_mib",
)

CONCURRENCY = 16
BATCH = 50
BATCHES_AT_ONCE = 2


@dataclass(slots=True)
class Bed:
    """The servers of one invocation, and one database on them."""

    server: PrivatePostgreSQL
    database: str
    amqp: str
    cpu: list[float] = field(default_factory=list[float])
    cpu_of_groups: list[float] = field(default_factory=list[float])

    @property
    def broker(self) -> RabbitMQBroker:
        """The broker."""
        return RabbitMQBroker(self.amqp)

    async def run(self, kind: Kind, messages: int, *, concurrency: int = CONCURRENCY, batch: int = 1) -> Report:
        """Run one worker over what waits in the queue."""
        plan = Plan(
            kind,
            self.server.url(self.database),
            self.server.dsn(self.database),
            self.amqp,
            messages,
            concurrency,
            batch,
        )
        command = [sys.executable, "-m", "benchmarks.inbox_worker", msgspec.json.encode(plan).decode()]
        done = await anyio.run_process(command, stderr=None)
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=Report)

    async def rate(
        self,
        kind: Kind,
        messages: int,
        *,
        concurrency: int = CONCURRENCY,
        batch: int = 1,
        foreign: bool = False,
        bad_in: int = 0,
    ) -> float:
        """Fill the queue with fresh messages, consume them, return messages per second.

        :param bad_in: one in so many is refused by its handler; 0: none is.
        """
        if not kind.startswith("raw"):
            await fill(self.broker, events(messages, foreign=foreign, bad_in=bad_in))
        report = await self.run(kind, messages, concurrency=concurrency, batch=batch)
        if kind == "inbox" and batch == 1:
            self.cpu.append(report.cpu_seconds / report.messages * 1e6)
        if kind == "inbox" and batch == GROUPS and not bad_in:
            self.cpu_of_groups.append(report.cpu_seconds / report.messages * 1e6)
        return report.messages / report.seconds


async def measure(bench: Bench) -> list[Figure]:
    """Run what is wanted on private servers."""
    figures: list[Figure] = []
    with private_postgresql(durable=True) as server, private_rabbitmq() as node:
        async with bed_on(server, node.amqp_url(), "bench") as bed:
            if bench.wants(
                "inbox.default", "inbox.cpu_us_per_message", "inbox.groups", "inbox.groups_cpu_us_per_message"
            ):
                figures += await _default(bench, bed)
            if bench.wants("inbox.one_bad_in_fifty"):
                figures.append(await _one_bad_in_fifty(bench, bed))
            if bench.wants("inbox.group_commit", "inbox.vs_raw", "inbox.vs_raw_pipelined"):
                figures += await _group_commit(bench, bed)
            if bench.wants("inbox.duplicates"):
                figures.append(await _duplicates(bench, bed))
            if bench.wants("inbox.peak_mib"):
                figures.append(await _peak(bench, bed))
        for name, foreign in (("inbox.dedup_10m", False), ("inbox.dedup_10m_foreign", True)):
            if bench.wants(name):
                figures.append(await _many_keys(bench, server, node.amqp_url(), name, foreign=foreign))
    return figures


def _runs(bench: Bench) -> int:
    return bench.pick(1, 3)


@asynccontextmanager
async def bed_on(server: PrivatePostgreSQL, amqp: str, database: str) -> AsyncGenerator[Bed]:
    """Prepare a database on the server."""
    server.create_database(database)
    await install(server.url(database))
    yield Bed(server, database, amqp)
    server.drop_database(database)


async def _default(bench: Bench, bed: Bed) -> list[Figure]:
    messages = bench.pick(1_000, 20_000)
    results = await interleave(
        bench,
        "default",
        {
            "handwritten": lambda: bed.rate("handwritten", messages),
            "inbox": lambda: bed.rate("inbox", messages),
            "groups": lambda: bed.rate("inbox", messages, batch=GROUPS),
        },
        runs=_runs(bench),
    )
    return [
        Figure.of("inbox.groups", "msg/s", results["groups"], results["handwritten"]),
        Figure.of("inbox.groups_cpu_us_per_message", "us", bed.cpu_of_groups),
        Figure.of("inbox.default", "msg/s", results["inbox"], results["handwritten"]),
        Figure.of("inbox.cpu_us_per_message", "us", bed.cpu),
    ]


async def _one_bad_in_fifty(bench: Bench, bed: Bed) -> Figure:
    """Handlers that refuse one message in fifty, against those that refuse none, in groups with savepoints."""
    messages = bench.pick(1_500, 20_000)
    results = await interleave(
        bench,
        "one bad in fifty",
        {
            "none": lambda: bed.rate("inbox", messages, batch=GROUPS),
            "some": lambda: bed.rate("inbox", messages, batch=GROUPS, bad_in=50),
        },
        runs=_runs(bench),
    )
    return Figure.of("inbox.one_bad_in_fifty", "msg/s", results["some"], results["none"])


async def _group_commit(bench: Bench, bed: Bed) -> list[Figure]:
    messages, many = bench.pick(1_000, 15_000), bench.pick(5_000, 100_000)
    results = await interleave(
        bench,
        "group commit",
        {
            "each": lambda: bed.rate("inbox", messages),
            "grouped": lambda: bed.rate("inbox", many, concurrency=BATCHES_AT_ONCE, batch=BATCH),
            "raw": lambda: bed.rate("raw", many, batch=BATCH),
            "pipelined": lambda: bed.rate("raw_pipelined", many, batch=BATCH),
        },
        runs=_runs(bench),
    )
    return [
        Figure.of("inbox.group_commit", "msg/s", results["grouped"], results["each"]),
        Figure.of("inbox.vs_raw", "msg/s", results["grouped"], results["raw"]),
        Figure.of("inbox.vs_raw_pipelined", "msg/s", results["grouped"], results["pipelined"]),
    ]


async def _duplicates(bench: Bench, bed: Bed) -> Figure:
    """Handle messages, then deliver the very same ones again."""
    messages = bench.pick(1_000, 20_000)
    handled: list[float] = []
    suppressed: list[float] = []
    with bench.progress("duplicates", _runs(bench)) as advance:
        for _ in range(_runs(bench)):
            batch = events(messages)
            for rates in (handled, suppressed):
                await fill(bed.broker, batch)
                report = await bed.run("inbox", messages)
                rates.append(report.messages / report.seconds)
            advance(1)
    return Figure.of("inbox.duplicates", "msg/s", suppressed, handled)


async def _peak(bench: Bench, bed: Bed) -> Figure:
    """The most memory a consumer takes while a million messages wait; a part of them is handled."""
    waiting, part = bench.pick(50_000, 1_000_000), bench.pick(4_000, 20_000)
    for _ in range(0, waiting, 50_000):
        await fill(bed.broker, events(50_000))
    peaks: list[float] = []
    for _ in range(_runs(bench)):
        for batch, concurrency in ((1, CONCURRENCY), (BATCH, BATCHES_AT_ONCE)):
            report = await bed.run("inbox", part // 2, concurrency=concurrency, batch=batch)
            peaks.append(report.peak_mib)
    return Figure.of("inbox.peak_mib", "MiB", [max(peaks)])


async def _many_keys(bench: Bench, server: PrivatePostgreSQL, amqp: str, name: str, *, foreign: bool) -> Figure:
    """The rate of group commits, where the index counts most, with many remembered keys and with few."""
    messages = bench.pick(5_000, 100_000)
    async with bed_on(server, amqp, "few") as few, bed_on(server, amqp, "many") as many:
        await remember(server.dsn("few"), 10_000, foreign=foreign)
        await remember(server.dsn("many"), bench.pick(200_000, 10_000_000), foreign=foreign)

        def rate(bed: Bed) -> Callable[[], Awaitable[float]]:
            return lambda: bed.rate("inbox", messages, concurrency=BATCHES_AT_ONCE, batch=BATCH, foreign=foreign)

        results = await interleave(bench, name, {"few": rate(few), "many": rate(many)}, runs=_runs(bench))
    return Figure.of(name, "msg/s", results["many"], results["few"])


async def remember(dsn: str, rows: int, *, foreign: bool) -> None:
    """Put dedup keys of the last seven days into the table, as the inbox makes them of such ids."""
    random = "uuid_send(gen_random_uuid())"
    key = random if foreign else (
        "decode(lpad(to_hex((extract(epoch from seen_at) * 1000)::bigint), 12, '0'), 'hex') "
        f"|| substring({random} from 7)"
    )  # fmt: skip
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("INSERT INTO inbox_consumers (name) VALUES ('warehouse') ON CONFLICT DO NOTHING")
        step = 500_000
        for start in range(0, rows, step):
            await connection.execute(
                f"""
                INSERT INTO inbox_seen (consumer, key, seen_at)
                SELECT 1, {key}, seen_at FROM (
                    SELECT now() - interval '7 days' * (1 - n::float / $2) AS seen_at
                    FROM generate_series($1::bigint, $3::bigint - 1) AS n
                ) AS moments
                """,
                start,
                rows,
                min(start + step, rows),
                timeout=600,
            )
        await connection.execute("VACUUM ANALYZE inbox_seen", timeout=600)
        await connection.execute("CHECKPOINT", timeout=600)
    finally:
        await connection.close()
