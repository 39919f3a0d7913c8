"""What a coordinator leaves behind that dies between PREPARE and COMMIT; and what a killed relay leaves."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from benchmarks.processes import worker
from benchmarks.two_phase_commit_worker import Order, OrderPlaced, Plan, outbox, url
from sagapost.core import new_id
from tests.servers.postgresql import PrivatePostgreSQL

__all__ = ["after_a_coordinator", "after_a_relay"]

_DEAD_ROWS = 5_000
_BLOCKED_SECONDS = 2.0
_PATIENCE = 120.0


async def after_a_coordinator(server: PrivatePostgreSQL, plan: Plan, command: Sequence[str]) -> list[str]:
    """Kill a coordinator in doubt and look; returns lines for a person."""
    in_doubt = msgspec.structs.replace(plan, kind="in_doubt")
    async with worker(command, msgspec.to_builtins(in_doubt)) as coordinator:
        await coordinator.line()
        coordinator.kill()
        await coordinator.wait()
    lines = ["[bold]A coordinator is killed between PREPARE and COMMIT:[/bold]", *await _look(plan)]
    await anyio.to_thread.run_sync(server.restart)
    async with _connected(plan.stock) as stock:
        left = await stock.fetchval("SELECT count(*) FROM pg_prepared_xacts")
        lines.append(f"  after a restart of the server: {left} prepared transactions are still there")
        await stock.execute("ROLLBACK PREPARED 'in-doubt-stock'")
    async with _connected(plan.orders) as orders:
        await orders.execute("ROLLBACK PREPARED 'in-doubt-orders'")
    lines.append("  ended by: a person, or a coordinator that finds its log again, with ROLLBACK or COMMIT PREPARED")
    return lines


async def after_a_relay(_server: PrivatePostgreSQL, plan: Plan, command: Sequence[str]) -> list[str]:
    """Kill a relay with an event in the outbox and look; returns lines for a person."""
    relay = msgspec.structs.replace(plan, kind="orders")
    async with worker(command, msgspec.to_builtins(relay)) as first:
        await first.line()
        first.kill()
        await first.wait()
    engine = create_async_engine(url(plan.orders))
    async with AsyncSession(engine) as session, session.begin():
        placed = OrderPlaced(new_id(), "item-0")
        session.add(Order(id=placed.order_id, item=placed.item))
        await outbox.publish(session, placed, key=placed.order_id)
    await engine.dispose()
    lines = ["[bold]A relay is killed, and an order is committed while none runs:[/bold]", *await _look(plan)]
    consumer = msgspec.structs.replace(plan, kind="stock", steps=1)
    async with worker(command, msgspec.to_builtins(consumer)) as stock:
        await stock.line()
        began = time.monotonic()
        async with worker(command, msgspec.to_builtins(relay)):
            with anyio.fail_after(_PATIENCE):
                report = await stock.line()
    lines.append(f"  ended by: the next relay; the stock is taken {report['at'] - began:.1f} s after it is started")
    return lines


async def _look(plan: Plan) -> list[str]:
    """Return who is blocked, what is locked, and what VACUUM cannot remove, in the database of stock and of orders."""
    async with _connected(plan.stock) as stock, _connected(plan.orders) as orders:
        prepared = await stock.fetchval("SELECT count(*) FROM pg_prepared_xacts")
        waiting = await orders.fetchval("SELECT count(*) FROM outbox")
        locks = await stock.fetchval(
            # Relation and transaction locks that no session holds: those of prepared transactions have no pid.
            "SELECT count(*) FROM pg_locks WHERE pid IS NULL AND granted"
        )
        writer = await _write(stock)
        vacuum = [await _vacuum(database) for database in (orders, stock)]
    return [
        f"  prepared transactions: {prepared}; locks that no session holds: {locks}; events in the outbox: {waiting}",
        f"  another order of the same item: {writer}",
        f"  of {_DEAD_ROWS:,} rows deleted since then VACUUM cannot remove: "
        f"{vacuum[0]:,} in Orders, {vacuum[1]:,} in Stock",
    ]


async def _write(stock: Any) -> str:
    began = time.monotonic()
    await stock.execute(f"SET lock_timeout = '{_BLOCKED_SECONDS:g}s'")
    try:
        await stock.execute("UPDATE stock SET available = available - 1 WHERE item = 'item-0'")
    except asyncpg.LockNotAvailableError:
        return f"still blocked after {_BLOCKED_SECONDS:g} s, when it gave up"
    return f"done in {(time.monotonic() - began) * 1e3:.1f} ms"


async def _vacuum(connection: Any) -> int:
    """Delete rows of a table that the step has nothing to do with, and return how many VACUUM leaves as dead."""
    await connection.execute(f"CREATE TABLE unrelated AS SELECT n FROM generate_series(1, {_DEAD_ROWS}) n")
    await connection.execute("DELETE FROM unrelated")
    said: list[str] = []

    def hear(_connection: object, message: object) -> None:
        said.append(str(message))

    connection.add_log_listener(hear)
    await connection.execute("VACUUM (VERBOSE) unrelated")
    # Listeners are called from the event loop, after the statement.
    await anyio.lowlevel.checkpoint()
    found = re.search(r"(\d+) are dead but not yet removable", "\n".join(said))
    if found is None:
        raise RuntimeError(f"VACUUM does not say what it leaves: {said}")
    await connection.execute("DROP TABLE unrelated")
    return int(found[1])


@asynccontextmanager
async def _connected(dsn: str) -> AsyncGenerator[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()
