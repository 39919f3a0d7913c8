"""The same business step as two-phase commit over two PostgreSQL databases, and as outbox and inbox over RabbitMQ.

The step: insert an order in one database; take one of 100 items and insert a reservation in another. Both databases
are on one private server with fsync and synchronous_commit on.

Two-phase commit is two processes of asyncpg with eight clients each, which ask both databases at the same time and
write no log of their decisions, as a real coordinator must: it is as fast as it can be. Outbox and inbox are three
processes: one writes orders, 16 at a time, and runs the relay; one consumes, and counts as done when the message of
the last order is acknowledged. `throughput` and `lock_hold` are with a transaction for each message, as by default;
`throughput_grouped` with group commit. A lock is held from the UPDATE of the item until its transaction has ended.

All of this is on one machine, where asking another database costs nothing; services are apart. In the figures named
`apart` whatever goes from one service to the other takes a millisecond: the coordinator's statements to the database
of stock, and both services' frames to the broker.

It also prints what a coordinator leaves behind that dies between PREPARE and COMMIT, and what a killed relay leaves.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import anyio
import msgspec

from benchmarks.harness import Bench, Figure, interleave
from benchmarks.processes import Worker, worker
from benchmarks.two_phase_commit_aftermath import after_a_coordinator, after_a_relay
from benchmarks.two_phase_commit_worker import Plan, inbox, install
from sagapost.adapters.rabbitmq import RabbitMQBroker
from tests.faults.proxy import FaultProxy
from tests.servers.postgresql import PrivatePostgreSQL, private_postgresql
from tests.servers.rabbitmq import PrivateRabbitMQ, private_rabbitmq

FIGURES = (
    "two_phase_commit.throughput",
    "two_phase_commit.throughput_grouped",
    "two_phase_commit.lock_hold",
    "two_phase_commit.lock_hold_p99",
    "two_phase_commit.throughput_apart",
    "two_phase_commit.lock_hold_apart",
)

COORDINATORS = 2
CLIENTS = 8
BATCH = 50
DISTANCE = 0.001
"""Seconds from one service to another."""
COMMAND = (sys.executable, "-m", "benchmarks.two_phase_commit_worker")
_PATIENCE = 240.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one run found."""

    rate: float
    held: list[float]
    """Milliseconds."""

    def percentile(self, percent: int) -> float:
        """Return how long locks were held."""
        return statistics.quantiles(self.held, n=100)[percent - 1]


async def measure(bench: Bench) -> list[Figure]:
    """Run on private servers."""
    steps = bench.pick(1_500, 10_000)
    runs: dict[str, list[Run]] = {"2pc": [], "here": [], "grouped": [], "2pc apart": [], "here apart": []}
    with (
        private_postgresql(durable=True, settings={"max_prepared_transactions": "64"}) as server,
        private_rabbitmq() as node,
    ):
        bed = Bed(server, node)
        await RabbitMQBroker(bed.amqp).declare(inbox.queue)

        async def keep(name: str, run: Callable[[], Awaitable[Run]]) -> float:
            runs[name].append(await run())
            return runs[name][-1].rate

        variants = {
            "2pc": partial(keep, "2pc", partial(bed.two_phase, steps)),
            "here": partial(keep, "here", partial(bed.here, steps, batch=1)),
        }
        if bench.wants("two_phase_commit.throughput_grouped"):
            variants["grouped"] = partial(keep, "grouped", partial(bed.here, steps, batch=BATCH))
        if bench.wants("two_phase_commit.throughput_apart", "two_phase_commit.lock_hold_apart"):
            variants["2pc apart"] = partial(keep, "2pc apart", partial(bed.two_phase, steps, distance=DISTANCE))
            variants["here apart"] = partial(keep, "here apart", partial(bed.here, steps, batch=1, distance=DISTANCE))
        await interleave(bench, "an order and its stock", variants, runs=bench.pick(1, 3))
        for aftermath in (after_a_coordinator, after_a_relay):
            async with bed.databases() as plan:
                for line in await aftermath(server, plan, COMMAND):
                    bench.console.print(line, highlight=False)
    figures = [
        _throughput("throughput", runs["here"], runs["2pc"]),
        _lock_hold("lock_hold", 50, runs["here"], runs["2pc"]),
        _lock_hold("lock_hold_p99", 99, runs["here"], runs["2pc"]),
    ]
    if runs["grouped"]:
        figures.insert(1, _throughput("throughput_grouped", runs["grouped"], runs["2pc"]))
    if runs["here apart"]:
        figures.append(_throughput("throughput_apart", runs["here apart"], runs["2pc apart"]))
        figures.append(_lock_hold("lock_hold_apart", 50, runs["here apart"], runs["2pc apart"]))
    return figures


def _throughput(name: str, here: Sequence[Run], two_phase: Sequence[Run]) -> Figure:
    rates, baselines = [run.rate for run in here], [run.rate for run in two_phase]
    return Figure.of(f"two_phase_commit.{name}", "steps/s", rates, baselines)


def _lock_hold(name: str, percent: int, here: Sequence[Run], two_phase: Sequence[Run]) -> Figure:
    held, baselines = ([run.percentile(percent) for run in runs] for runs in (here, two_phase))
    return Figure.of(f"two_phase_commit.{name}", "ms", held, baselines)


class Bed:
    """The servers, and two fresh databases for each run."""

    def __init__(self, server: PrivatePostgreSQL, node: PrivateRabbitMQ) -> None:
        self.amqp = node.amqp_url()
        self._server = server
        self._node = node
        self._runs = 0

    @asynccontextmanager
    async def databases(self) -> AsyncGenerator[Plan]:
        """Create them; the plan names them."""
        self._runs += 1
        orders, stock = f"orders{self._runs}", f"stock{self._runs}"
        for name in (orders, stock):
            self._server.create_database(name)
        plan = Plan("orders", self._server.dsn(orders), self._server.dsn(stock), self.amqp)
        await install(plan.orders, plan.stock)
        yield plan
        for name in (orders, stock):
            self._server.drop_database(name)

    async def two_phase(self, steps: int, *, distance: float = 0.0) -> Run:
        """Commit in both databases, or in none; `distance`: seconds to the second one."""
        async with self.databases() as plan, AsyncExitStack() as stack:
            if distance:
                proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", self._server.port))
                proxy.delay(distance)
                plan.stock = plan.stock.replace(f":{self._server.port}/", f":{proxy.port}/")
            workers: list[Worker] = []
            for number in range(COORDINATORS):
                own = msgspec.structs.replace(
                    plan, kind="coordinator", steps=steps // COORDINATORS, concurrency=CLIENTS, name=str(number)
                )
                workers.append(await stack.enter_async_context(worker(COMMAND, msgspec.to_builtins(own))))
            with anyio.fail_after(_PATIENCE):
                for each in workers:
                    await each.line()
                for each in workers:
                    await each.go()
                reports = [await each.line() for each in workers]
        seconds = max(report["ended"] for report in reports) - min(report["began"] for report in reports)
        return Run(steps / seconds, [milliseconds for report in reports for milliseconds in report["held"]])

    async def here(self, steps: int, *, batch: int, distance: float = 0.0) -> Run:
        """Commit in one database, and what follows from it in the other; `distance`: seconds to the broker."""
        async with self.databases() as plan, AsyncExitStack() as stack:
            if distance:
                proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", self._node.port))
                proxy.delay(distance)
                plan.amqp = plan.amqp.replace(f":{self._node.port}/", f":{proxy.port}/")
            plan = msgspec.structs.replace(plan, steps=steps, concurrency=COORDINATORS * CLIENTS, batch=batch)
            reading = msgspec.structs.replace(plan, kind="stock", concurrency=plan.concurrency if batch == 1 else 2)
            stock = await stack.enter_async_context(worker(COMMAND, msgspec.to_builtins(reading)))
            orders = await stack.enter_async_context(worker(COMMAND, msgspec.to_builtins(plan)))
            with anyio.fail_after(_PATIENCE):
                await stock.line()
                await orders.line()
                await orders.go()
                began = (await orders.line())["at"]
                report = await stock.line()
        return Run(steps / (report["at"] - began), report["held"])
