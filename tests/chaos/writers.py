"""The writers of a run, each a process of its own, and the database they write to."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.core.schema import install_schema
from sagapost.outbox import OutboxTables
from tests.chaos.writer import SCHEMA, Assignment
from tests.processes.command import environment
from tests.processes.nursery import Child, Nursery

__all__ = ["Writers", "install_writers", "ledger", "running_writers"]

_LONGEST_SECONDS = 24 * 3600.0
"""The longest run there is ends before that by its own limit."""


class Writers:
    """Writers at work."""

    def __init__(self, processes: Sequence[Child], records: Sequence[Path], logs: Path) -> None:
        self._processes = processes
        self.records = records
        """Their accounts, whole when they have ended."""
        self._logs = logs

    async def ended(self) -> None:
        """Wait until each has committed its share.

        :raises AssertionError: if one failed.
        """
        for process in self._processes:
            code = await anyio.to_thread.run_sync(process.wait, _LONGEST_SECONDS)
            if code:
                raise AssertionError(f"a writer ended with {code}; its log is in {self._logs}")


async def install_writers(url: str) -> None:
    """Create what writers need: the outbox, the keys, the ledger."""
    tables = OutboxTables()
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(install_schema, tables.versions, [tables.part])
        for statement in SCHEMA:
            await connection.exec_driver_sql(statement)
    await engine.dispose()


async def ledger(dsn: str) -> set[int]:
    """Ask the database which events were committed."""
    connection = await asyncpg.connect(dsn)
    try:
        return {int(record[0]) for record in await connection.fetch("SELECT event FROM ledger")}
    finally:
        await connection.close()


@asynccontextmanager
async def running_writers(
    url: str,
    *,
    writers: int,
    events: int,
    rate: float,
    sessions: int,
    rng: random.Random,
    nursery: Nursery,
    logs: Path,
) -> AsyncGenerator[Writers, None]:
    """Start writers that commit `events` together, at `rate` a second together; ended with the block.

    :param sessions: transactions that each has open at a time.
    """
    processes: list[Child] = []
    records = [logs / f"writer-{number}" for number in range(writers)]
    try:
        for number, record in enumerate(records):
            assignment = Assignment(
                url=url,
                record=str(record),
                number=number + 1,
                events=events // writers + (number < events % writers),
                rate=rate / writers,
                sessions=sessions,
                seed=rng.randrange(2**32),
            )
            command = ("-m", "tests.chaos.writer", msgspec.json.encode(assignment).decode())
            with (logs / f"writer-{number}.log").open("ab") as log:
                processes.append(nursery.start(*command, environment=environment({}), folder=logs, output=log))
        yield Writers(processes, records, logs)
    finally:
        for process in processes:
            process.kill()
            process.wait()
