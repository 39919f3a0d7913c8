"""A writer as a process of its own: commits, rolls back, undoes savepoints, commits late, and keeps the account.

`python -m tests.chaos.writer '{"url": ..., "record": ..., "number": 1, ...}'` writes events at a steady rate until it
has committed its share. Where it takes a key's row lock and counts its version up, the version says what came first;
keys without a lock are written by all at once.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from sagapost.outbox import Outbox, OutboxTables
from tests.history.records import Recorder

__all__ = ["SCHEMA", "TYPE", "Assignment"]

TYPE = "chaos.happened.v1"
SCHEMA = (
    "CREATE TABLE versions (key text PRIMARY KEY, version int NOT NULL)",
    "INSERT INTO versions SELECT 'key-' || n, 0 FROM generate_series(0, 199) n",
    "CREATE TABLE ledger (event bigint PRIMARY KEY)",
)
"""What belongs to the domain here: the keys with their row locks, and the truth about what was committed."""

_KEYS = 200
_FREE_KEYS = 20
_PER_WRITER = 10**9
_BROKEN = (DBAPIError, OSError)
"""What a restarting server does to a connection."""


class Assignment(msgspec.Struct, frozen=True):
    """What one writer is to do."""

    url: str
    record: str
    number: int
    events: int
    """To be committed."""
    rate: float
    """Events a second, by all sessions together."""
    sessions: int
    """Transactions open at a time."""
    seed: int


class Writer:
    """One writer."""

    def __init__(self, assignment: Assignment, engine: AsyncEngine, recorder: Recorder) -> None:
        self._assignment = assignment
        self._engine = engine
        self._recorder = recorder
        self._rng = random.Random(assignment.seed)
        self._outbox = Outbox(source="https://chaos.example", tables=OutboxTables())
        self._next = assignment.number * _PER_WRITER
        self._committed = 0

    async def run(self) -> None:
        """Write until the share is committed."""
        async with anyio.create_task_group() as sessions:
            for _ in range(self._assignment.sessions):
                sessions.start_soon(self._write_at_rate)

    async def _write_at_rate(self) -> None:
        rate = self._assignment.rate / self._assignment.sessions
        due = time.monotonic() + self._rng.uniform(0, 1)
        while self._committed < self._assignment.events:
            # What an outage kept from being written is not made up for.
            due = max(due, time.monotonic() - 1)
            await anyio.sleep(max(0.0, due - time.monotonic()))
            due += await self._transaction() / rate

    async def _transaction(self) -> int:
        """One transaction; returns how many events it wrote, whatever became of them."""
        written: list[int] = []
        undone: list[int] = []
        try:
            async with self._engine.connect() as connection:
                await connection.begin()
                committing = await self._write_and_decide(connection, written, undone)
                if not committing:
                    await connection.rollback()
                    undone += written
                    written.clear()
                else:
                    try:
                        await connection.commit()
                    except _BROKEN:
                        # The answer got lost: the ledger knows.
                        for event in written:
                            self._recorder.in_doubt(event)
                        self._committed += len(written)
                        written.clear()
        except _BROKEN:
            # Before the commit: nothing of it is there.
            undone += written
            written.clear()
            await anyio.sleep(0.2)
        at = time.monotonic()
        for event in written:
            self._recorder.committed(event, at=at)
        for event in undone:
            self._recorder.rolled_back(event)
        self._committed += len(written)
        return len(written) + len(undone) or 1

    async def _write_and_decide(self, connection: AsyncConnection, written: list[int], undone: list[int]) -> bool:
        rng = self._rng
        kind = rng.random()
        if kind < 0.1:
            # Late: everything else goes on while this one is open.
            await self._write_free(connection, rng.randint(1, 3), written)
            await anyio.sleep(rng.uniform(0.05, 0.5))
            return rng.random() < 0.8
        if kind < 0.2:
            await self._write_free(connection, rng.randint(1, 5), written)
            return True
        # In one order by all, or two writers would wait for each other.
        for key in sorted({self._key() for _ in range(rng.randint(1, 2))}):
            await self._write_locked(connection, key, rng.randint(1, 3), written)
        if kind < 0.3:
            async with connection.begin_nested() as savepoint:
                await self._write_locked(connection, f"key-{_KEYS - 1}", 1, undone)
                await savepoint.rollback()
        return rng.random() < 0.9

    def _key(self) -> str:
        """A key, one of a few hot ones every third time; the last one is for savepoints alone."""
        return f"key-{self._rng.randrange(3 if self._rng.random() < 0.3 else _KEYS - 1)}"

    async def _write_locked(self, connection: AsyncConnection, key: str, count: int, into: list[int]) -> None:
        for _ in range(count):
            counted = await connection.exec_driver_sql(
                "UPDATE versions SET version = version + 1 WHERE key = $1 RETURNING version", (key,)
            )
            await self._write(connection, key, [int(counted.scalar_one())], into)

    async def _write_free(self, connection: AsyncConnection, count: int, into: list[int]) -> None:
        key = f"free-{self._rng.randrange(_FREE_KEYS)}" if self._rng.random() < 0.8 else None
        await self._write(connection, key, [None] * count, into)

    async def _write(
        self, connection: AsyncConnection, key: str | None, versions: Sequence[int | None], into: list[int]
    ) -> None:
        events = list(range(self._next, self._next + len(versions)))
        self._next += len(versions)
        now = time.monotonic()
        for event, version in zip(events, versions, strict=True):
            self._recorder.wrote(event, key=key, version=version, inserted=now)
        into += events
        await self._outbox.publish_all(connection, [{"n": event} for event in events], key=key, type=TYPE)
        await connection.exec_driver_sql("INSERT INTO ledger SELECT unnest($1::bigint[])", (events,))


async def main(assignment: Assignment) -> None:
    """Write, and close the record."""
    engine = create_async_engine(
        assignment.url, pool_pre_ping=True, pool_size=assignment.sessions, max_overflow=0, pool_timeout=120
    )
    with Recorder(Path(assignment.record)) as recorder:
        await Writer(assignment, engine, recorder).run()
    await engine.dispose()


if __name__ == "__main__":
    anyio.run(main, msgspec.json.decode(sys.argv[1], type=Assignment))
