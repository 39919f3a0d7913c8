"""The writers of a run, each a process of its own, and the database they write to."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import anyio.to_thread
import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.core.schema import install_schema
from sagapost.outbox import OutboxTables
from tests.chaos.writer import SCHEMA, Assignment

__all__ = ["Writers", "install_writers", "ledger", "running_writers"]


class Writers:
    """Writers at work."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], records: Sequence[Path], logs: Path) -> None:
        self._processes = processes
        self.records = records
        """Their accounts, whole when they have ended."""
        self._logs = logs

    async def ended(self) -> None:
        """Wait until each has committed its share.

        :raises AssertionError: if one failed.
        """
        for process in self._processes:
            code = await anyio.to_thread.run_sync(process.wait)
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
    url: str, *, writers: int, events: int, rate: float, sessions: int, rng: random.Random, logs: Path
) -> AsyncGenerator[Writers, None]:
    """Start writers that commit `events` together, at `rate` a second together; ended with the block.

    :param sessions: transactions that each has open at a time.
    """
    processes: list[subprocess.Popen[bytes]] = []
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
            argv = [sys.executable, "-m", "tests.chaos.writer", msgspec.json.encode(assignment).decode()]
            with (logs / f"writer-{number}.log").open("ab") as log:
                processes.append(_spawn(argv, log))
        yield Writers(processes, records, logs)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _spawn(argv: list[str], log: BinaryIO) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
