"""A consumer in a process of its own, made to be killed: `python -m tests.inbox.victim <plan as JSON>`.

It handles what waits until as many messages as the plan expects have come to an end, and then ends with status 0;
or dies by SIGKILL at the observation the plan names, or where the handler says so.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta

import anyio
import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core import Event, Observation
from sagapost.core.broker import Broker, Outgoing
from sagapost.inbox import Consumer, Context, Retry
from sagapost.inbox.declared.observations import ConsumerReady, GroupStarted
from sagapost.inbox.declared.settings import GROUPS
from tests.inbox.harness import FAST, OrderPlaced, Service, StockReserved, quick_settings

__all__ = ["TOPIC", "Plan", "broker_of", "service_of"]

TOPIC = "orders.order-placed.v1"
"""Of every message, whatever its type."""


class Plan(msgspec.Struct):
    """What the process does."""

    database_url: str
    amqp_url: str | None
    """None: a broker within the process, which is given `events_file` anew at every start."""
    events_file: str
    expected: int
    """How many messages come to an end: an effect, or a dead letter."""
    script: str
    die_at: str | None = None
    """Name of an observation class."""
    in_group: bool = False
    """Die only within a group, or after its commit, and not at what comes first in it."""
    batch: int = 1


def die() -> None:
    """End at once, as by a power failure."""
    os.kill(os.getpid(), signal.SIGKILL)


class Trap:
    """Dies at the first observation of a kind, or at the second one since a group has begun."""

    def __init__(self, name: str | None, *, in_group: bool = False) -> None:
        self._name = name
        self._left = 2 if in_group else 0
        self.ready = False

    def notify(self, event: Observation, /) -> None:
        """Look whether this is it."""
        self.ready = self.ready or isinstance(event, ConsumerReady)
        if self._left and isinstance(event, GroupStarted):
            self._left = 1
            return
        if type(event).__name__ == self._name and self._left < 2:
            if not self._left or self._name in {"GroupCommitted", "Acknowledged"}:
                die()
            self._left = 0


def service_of(script: str) -> Service:
    """Return the service whose handler follows a script."""
    service = Service(ordered=True, unknown="ignore")
    insert = service.effects.insert()

    @service.inbox.on(OrderPlaced, emits=[StockReserved])
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        order = event.order_id
        await ctx.session.execute(insert.values(order_id=order, note=ctx.event.partitionkey or ""))
        await ctx.publish(StockReserved(order), key=order)
        if order == "kill" and (script == "killer" or ctx.attempt > 1):
            die()
        if order == "wait-0" and ctx.attempt == 1:
            raise Retry(timedelta(seconds=1), reason="the others are to find it parked")
        if order.startswith(("retry", "kill")) and ctx.attempt < 3:
            raise ConnectionError(order)

    return service


def broker_of(plan: Plan) -> Broker:
    """Return the broker of a plan."""
    return MemoryBroker() if plan.amqp_url is None else RabbitMQBroker(plan.amqp_url, exchange="victims")


async def _ended(engine: AsyncEngine, service: Service) -> int:
    parked = service.tables.parked
    async with engine.connect() as connection:
        effects = (await connection.execute(select(func.count()).select_from(service.effects))).scalar_one()
        dead = await connection.execute(select(func.count()).select_from(parked).where(parked.c.state == "dead"))
        return effects + dead.scalar_one()


async def main(plan: Plan) -> None:
    """Run the plan."""
    engine = create_async_engine(
        plan.database_url, **({} if plan.database_url.startswith("sqlite") else {"pool_size": 16})
    )
    service, broker = service_of(plan.script), broker_of(plan)
    if plan.amqp_url is None:
        events = msgspec.json.decode(await anyio.Path(plan.events_file).read_bytes(), type=list[Event])
        await broker.declare(service.inbox.queue)
        async with broker.publisher() as publisher:
            await (await publisher.send([Outgoing(event, TOPIC) for event in events])).wait()
    trap = Trap(plan.die_at, in_group=plan.in_group)
    consumer = Consumer(
        service.inbox,
        engine=engine,
        broker=broker,
        observer=trap,
        settings=quick_settings(
            retry=FAST,
            batch=plan.batch,
            concurrency=1 if plan.in_group else 3,
            prefetch=32 if plan.batch == GROUPS else 8 * plan.batch,
            # Together they are how long a round of a process that was killed stays claimed.
            handler_timeout=timedelta(seconds=2),
            database_timeout=timedelta(seconds=2),
        ),
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        quiet = 0
        with anyio.fail_after(40):
            # Quiet for a while: what came to its end in the database is acknowledged a moment later.
            while quiet < 6:
                await anyio.sleep(0.05)
                idle = trap.ready and consumer.statistics.in_hand == 0
                quiet = quiet + 1 if idle and await _ended(engine, service) >= plan.expected else 0
        consumer.stop()
    await engine.dispose()


if __name__ == "__main__":
    anyio.run(main, msgspec.json.decode(sys.argv[1].encode(), type=Plan))
