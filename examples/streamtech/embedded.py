"""The demo without any server: SQLite files, an in-memory broker, and every part in one process."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import anyio
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from examples.streamtech import orders, warehouse
from examples.streamtech.workload import (
    WITNESS,
    Audit,
    Placed,
    audit,
    create_tables,
    fill_shelves,
    place_orders,
    send_again,
    until_answered,
)
from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.sqlite import SQLiteOutboxStore
from sagapost.core.observer import Observation
from sagapost.core.schema import install_schema
from sagapost.inbox import Consumer, Inbox
from sagapost.inbox import observations as inbox_observations
from sagapost.outbox.relay import Relay
from sagapost.outbox.tables import OutboxTables


class Tally:
    """Counts what the consumers report."""

    def __init__(self) -> None:
        self.duplicates = 0
        self._changed = anyio.Event()

    def notify(self, event: Observation, /) -> None:
        """Take note."""
        if isinstance(event, inbox_observations.Duplicate):
            self.duplicates += 1
            self._changed.set()

    async def reached(self, duplicates: int) -> None:
        """Wait until this many duplicates were suppressed."""
        while self.duplicates < duplicates:
            self._changed = anyio.Event()
            await self._changed.wait()


async def run(
    folder: Path, count: int, rng: random.Random, resend: int, advance: Callable[[str, int], None]
) -> tuple[Audit, int]:
    """Run both services until every order is answered; return the audit and the number of duplicates suppressed."""
    broker = MemoryBroker()
    tally = Tally()
    orders_engine = await _open(folder / "orders.db", orders.Base, orders.inbox, orders.outbox.tables)
    warehouse_engine = await _open(folder / "warehouse.db", warehouse.Base, warehouse.inbox, warehouse.outbox.tables)
    await fill_shelves(warehouse_engine)
    consumers = [
        Consumer(orders.inbox, engine=orders_engine, broker=broker, observer=tally),
        Consumer(warehouse.inbox, engine=warehouse_engine, broker=broker, observer=tally),
    ]
    relays = [
        Relay(SQLiteOutboxStore(str(engine.url), tables=tables), broker)
        for engine, tables in (
            (orders_engine, orders.outbox.tables),
            (warehouse_engine, warehouse.outbox.tables),
        )
    ]
    await broker.declare(orders.inbox.queue, warehouse.inbox.queue, WITNESS)
    kept: set[UUID] = set()
    undone: set[UUID] = set()
    try:
        services: tuple[Relay | Consumer, ...] = (*relays, *consumers)
        async with anyio.create_task_group() as tasks:
            for service in services:
                tasks.start_soon(service.run)
            async for order_id, committed in place_orders(orders_engine, count, rng):
                (kept if committed else undone).add(order_id)
                if committed:
                    advance("orders placed", 1)
            await until_answered(orders_engine, count, advance)
            await send_again(broker, resend)
            await tally.reached(resend)
            for service in services:
                service.stop()
        found = await audit(orders_engine, warehouse_engine, Placed(frozenset(kept), frozenset(undone)))
        return found, tally.duplicates
    finally:
        await orders_engine.dispose()
        await warehouse_engine.dispose()


async def _open(path: Path, base: type[DeclarativeBase], inbox: Inbox, outbox: OutboxTables) -> AsyncEngine:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.begin() as connection:
        await connection.run_sync(install_schema, outbox.versions, [outbox.part, inbox.tables.part])
    await create_tables(engine, base)
    return engine
