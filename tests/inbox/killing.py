"""Run `tests.inbox.victim` in processes of its own, and look at what they leave behind."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sagapost.core import Event
from sagapost.core.broker import Confirmed, Outgoing
from tests.inbox.harness import OrderPlaced, an_event
from tests.inbox.victim import TOPIC, Plan, broker_of, service_of
from tests.processes.shared import run_module

__all__ = ["Victim"]


class Victim:
    """A service with messages waiting, and as many consumer processes as it takes."""

    def __init__(self, database_url: str, amqp_url: str | None, *, script: str, batch: int = 1) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="victim-"))
        self.plan = Plan(database_url, amqp_url, str(self._folder / "events.json"), 0, script, batch=batch)
        self.service = service_of(script)
        self.output = ""

    def _engine(self) -> AsyncEngine:
        return create_async_engine(self.plan.database_url)

    async def prepare(self, orders: Sequence[str], further: Sequence[Event] = (), *, copies: int = 1) -> None:
        """Create the tables and put the orders into the queue, each under the key before its last dash."""
        events = [an_event(OrderPlaced(order), key=order.rpartition("-")[0] or order) for order in orders]
        self.plan.expected = len(orders)
        events = events * copies + list(further)
        await anyio.Path(self.plan.events_file).write_bytes(msgspec.json.encode(events))
        engine = self._engine()
        await self.service.install(engine)
        await engine.dispose()
        broker = broker_of(self.plan)
        await broker.declare(self.service.inbox.queue)
        if self.plan.amqp_url is None:
            return
        async with broker.publisher() as publisher:
            # An id is in flight once at a time.
            for event in events:
                confirmation = await publisher.send([Outgoing(event, TOPIC)])
                assert await confirmation.wait() == [Confirmed()]

    async def run(self, die_at: str | None = None, *, in_group: bool = False) -> int:
        """Run one process to its end; return its status, negative for the signal that ended it."""
        plan = msgspec.structs.replace(self.plan, die_at=die_at, in_group=in_group)
        done = await run_module("tests.inbox.victim", msgspec.json.encode(plan).decode())
        self.output = done.stderr
        assert done.returncode <= 0, self.output
        return done.returncode

    async def _rows(self, statement: Any) -> Sequence[Any]:
        engine = self._engine()
        async with engine.connect() as connection:
            rows = (await connection.execute(statement)).all()
        await engine.dispose()
        return rows

    async def written(self) -> list[str]:
        """Return the orders that had an effect, in the order of the effects."""
        effects = self.service.effects
        return [row.order_id for row in await self._rows(select(effects).order_by(effects.c.id))]

    async def published(self) -> int:
        """Return how many events the handlers published."""
        return int((await self._rows(select(func.count()).select_from(self.service.outbox.tables.outbox)))[0][0])

    async def parked(self) -> Sequence[Any]:
        """Return the parked messages."""
        return await self._rows(select(self.service.tables.parked))

    async def attempts_on_record(self) -> int:
        """Return how many recorded attempts never ended."""
        return int((await self._rows(select(func.count()).select_from(self.service.tables.attempts)))[0][0])
