"""Sagas a second of a four-step order flow, against the same flow as DBOS workflows in the same run.

Four services, each with a database of its own on one private PostgreSQL (fsync and synchronous_commit on): an order is
placed, its item reserved, paid and sent, each step a transaction in its service's database that writes the same rows
on both sides. Counted from the first order to the end of the last.

Here: a process for each service with its relay and its consumer, RabbitMQ with durable quorum queues, an undo intent
in the ledger with every step that has one, group commit of up to 50 messages (`sagas.one_by_one`: a transaction for
each message). DBOS: two processes, one for each core, each with 16 workflows at a time in its thread pool, a
datasource transaction for each step (READ COMMITTED, as here), a pool of that many connections to each database, its
own state in a fifth database; no queue, no tracing, no compensations. That was the fastest of what we tried: one
process or two, 8, 16 or 32 at a time, threads or asyncio.

DBOS is not among the project's dependencies: `pip install dbos` into an environment of its own, and name its Python in
SAGAPOST_BENCH_PYTHON; without that, this one's is used.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import msgspec

from benchmarks.harness import Bench, Figure, NotHereError, interleave
from benchmarks.processes import Worker, worker
from benchmarks.sagas_service import ITEMS, SERVICES, Plan, install
from sagapost.adapters.rabbitmq import RabbitMQBroker
from tests.servers.postgresql import PrivatePostgreSQL, private_postgresql
from tests.servers.rabbitmq import private_rabbitmq

FIGURES = ("sagas.vs_dbos", "sagas.one_by_one")

BATCH = 50
CONCURRENCY = 16
DBOS_PROCESSES = 2
_PATIENCE = 240.0


async def measure(bench: Bench) -> list[Figure]:
    """Run on private servers."""
    python = _dbos_python()
    many, few, workflows = bench.pick(1_500, 8_000), bench.pick(600, 4_000), bench.pick(200, 800)
    with (
        private_postgresql(durable=True, settings={"max_connections": "400"}) as server,
        private_rabbitmq() as node,
    ):
        bed = _Bed(server, node.amqp_url())
        for service in SERVICES.values():
            if service.inbox.handlers:
                await RabbitMQBroker(bed.amqp).declare(service.inbox.queue)
        results = await interleave(
            bench,
            "four-step sagas",
            {
                "dbos": lambda: bed.dbos(python, workflows),
                "grouped": lambda: bed.here(many, batch=BATCH),
                "one by one": lambda: bed.here(few, batch=1),
            },
            runs=bench.pick(1, 3),
        )
    return [
        Figure.of("sagas.vs_dbos", "sagas/s", results["grouped"], results["dbos"]),
        Figure.of("sagas.one_by_one", "sagas/s", results["one by one"], results["dbos"]),
    ]


def _dbos_python() -> str:
    """Return an interpreter that has DBOS.

    :raises NotHereError: if there is none.
    """
    python = os.environ.get("SAGAPOST_BENCH_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import dbos"], capture_output=True, check=False).returncode:
        raise NotHereError(
            f"{python} has no DBOS to compare with. Install it into an environment of its own "
            "(python -m venv ENV; ENV/bin/pip install dbos) and set SAGAPOST_BENCH_PYTHON=ENV/bin/python."
        )
    return python


class _Bed:
    """The servers, and fresh databases for each run."""

    def __init__(self, server: PrivatePostgreSQL, amqp: str) -> None:
        self.amqp = amqp
        self._server = server
        self._runs = 0

    @asynccontextmanager
    async def _databases(self, *more: str) -> AsyncGenerator[dict[str, str]]:
        self._runs += 1
        names = {name: f"{name}{self._runs}" for name in (*SERVICES, *more)}
        for name in names.values():
            self._server.create_database(name)
        for service in SERVICES:
            await install(self._server.url(names[service]), service)
        yield names
        for name in names.values():
            self._server.drop_database(name)

    async def here(self, sagas: int, *, batch: int) -> float:
        """Return sagas per second of ours."""
        async with self._databases() as names, AsyncExitStack() as stack:
            processes: dict[str, Worker] = {}
            # Orders last: it places the first order as soon as it is there.
            for name in ("shipping", "payment", "stock", "orders"):
                plan = Plan(
                    name,
                    self._server.url(names[name]),
                    self._server.dsn(names[name]),
                    self.amqp,
                    sagas,
                    CONCURRENCY,
                    batch,
                )
                command = [sys.executable, "-m", "benchmarks.sagas_service"]
                processes[name] = await stack.enter_async_context(worker(command, msgspec.to_builtins(plan)))
            with anyio.fail_after(_PATIENCE):
                for process in processes.values():
                    await process.line()
                await processes["shipping"].line()
                await processes["orders"].go()
                began = (await processes["orders"].line())["at"]
                ended = (await processes["shipping"].line())["at"]
        return sagas / float(ended - began)

    async def dbos(self, python: str, sagas: int) -> float:
        """Return workflows per second of DBOS."""
        async with self._databases("system") as names, AsyncExitStack() as stack:
            workers: list[Worker] = []
            for number in range(DBOS_PROCESSES):
                plan = {
                    "concurrency": CONCURRENCY,
                    "executor": f"executor-{number}",
                    "sagas": sagas // DBOS_PROCESSES,
                    "items": ITEMS,
                    **{key: self._server.dsn(name) for key, name in names.items()},
                }
                command = [python, "-m", "benchmarks.sagas_dbos_worker"]
                workers.append(await stack.enter_async_context(worker(command, plan)))
                with anyio.fail_after(_PATIENCE):
                    # One after the other: the first makes DBOS's tables.
                    await workers[-1].line()
            with anyio.fail_after(_PATIENCE):
                for each in workers:
                    await each.go()
                reports = [await each.line() for each in workers]
        seconds = max(report["ended"] for report in reports) - min(report["began"] for report in reports)
        return (sagas // DBOS_PROCESSES) * DBOS_PROCESSES / float(seconds)
