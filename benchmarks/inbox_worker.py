"""One consumer as a process of its own, for `benchmarks.inbox`; prints its figures as one line of JSON at the end.

Kinds: `inbox`, ours; `handwritten`, what one writes without a library: aio-pika, one SQLAlchemy transaction per
message, no dedup; `raw`, the same two inserts for each message, in batches of one transaction on one asyncpg
connection, with no broker at all; `raw_pipelined`, the same with the inserts of a batch sent together.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Literal, TypeAlias

import aio_pika
import anyio
import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from benchmarks.inbox_service import QUEUE, OrderPlaced, OrderRow, inbox
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core import Observation, new_uuid
from sagapost.inbox import Consumer, ConsumerSettings
from sagapost.inbox.declared.observations import Acknowledged

__all__ = ["Kind", "Plan", "Report"]

Kind: TypeAlias = Literal["inbox", "handwritten", "raw", "raw_pipelined"]


class Plan(msgspec.Struct):
    """What the process measures."""

    kind: Kind
    url: str
    dsn: str
    amqp: str
    messages: int
    concurrency: int
    batch: int = 1


class Report(msgspec.Struct):
    """What it found."""

    messages: int
    """All but the first tenth."""
    seconds: float
    """To the last acknowledgement (`raw`: commit) of these."""
    cpu_seconds: float
    peak_mib: float


class Meter:
    """Times from the first tenth of the messages, when statements are compiled and connections open, to the last."""

    def __init__(self, messages: int) -> None:
        self._left = messages
        self._warm = messages - messages // 10
        self.measured = 0
        self.began = self.ended = (0.0, 0.0)
        self.done = anyio.Event()

    def count(self, messages: int) -> None:
        """Count acknowledged messages."""
        self._left -= messages
        if not self.measured and self._left <= self._warm:
            self.measured = self._left
            self.began = (time.perf_counter(), time.process_time())
        if self._left <= 0 and not self.done.is_set():
            self.ended = (time.perf_counter(), time.process_time())
            self.done.set()

    def notify(self, event: Observation, /) -> None:
        """Observe our consumer."""
        if isinstance(event, Acknowledged):
            self.count(event.messages)


async def run_inbox(plan: Plan, meter: Meter) -> None:
    """Run ours."""
    engine = create_async_engine(plan.url, pool_size=plan.concurrency + 3)
    settings = ConsumerSettings(concurrency=plan.concurrency, batch=plan.batch)
    consumer = Consumer(inbox, engine=engine, broker=RabbitMQBroker(plan.amqp), settings=settings, observer=meter)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await meter.done.wait()
        consumer.stop()
    await engine.dispose()


async def run_handwritten(plan: Plan, meter: Meter) -> None:
    """Run the consumer one writes by hand."""
    engine = create_async_engine(plan.url, pool_size=plan.concurrency)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    decoder = msgspec.json.Decoder(OrderPlaced)
    limiter = anyio.Semaphore(plan.concurrency)
    connection = await aio_pika.connect(plan.amqp)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=2 * plan.concurrency)
    queue = await channel.get_queue(QUEUE.name)

    async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        async with limiter:
            event = decoder.decode(message.body)
            async with sessions.begin() as session:
                session.add(OrderRow(id=event.order_id, customer=event.customer, amount=event.amount))
            await message.ack()
            meter.count(1)

    await queue.consume(handle)
    await meter.done.wait()
    await connection.close()
    await engine.dispose()


_KEYS = "INSERT INTO inbox_seen (consumer, key) VALUES (1, $1) ON CONFLICT DO NOTHING"
_ROWS = "INSERT INTO orders (id, customer, amount) VALUES ($1, $2, $3)"


async def run_raw(plan: Plan, meter: Meter) -> None:
    """Insert message by message."""
    connection = await asyncpg.connect(plan.dsn)
    keys, rows = await connection.prepare(_KEYS), await connection.prepare(_ROWS)
    for start in range(0, plan.messages, plan.batch):
        async with connection.transaction():
            for _ in range(plan.batch):
                id_ = new_uuid()
                await keys.fetch(id_.bytes)
                await rows.fetch(str(id_), "customer", start)
        meter.count(plan.batch)
    await connection.close()


async def run_raw_pipelined(plan: Plan, meter: Meter) -> None:
    """Insert batch by batch, as fast as one connection does."""
    connection = await asyncpg.connect(plan.dsn)
    for start in range(0, plan.messages, plan.batch):
        ids = [new_uuid() for _ in range(plan.batch)]
        async with connection.transaction():
            await connection.executemany(_KEYS, [(id_.bytes,) for id_ in ids])
            await connection.executemany(_ROWS, [(str(id_), "customer", start) for id_ in ids])
        meter.count(plan.batch)
    await connection.close()


async def main(plan: Plan) -> None:
    """Run the plan and print what came of it."""
    meter = Meter(plan.messages)
    runs = {
        "inbox": run_inbox,
        "handwritten": run_handwritten,
        "raw": run_raw,
        "raw_pipelined": run_raw_pipelined,
    }
    await runs[plan.kind](plan, meter)
    report = Report(
        messages=meter.measured,
        seconds=meter.ended[0] - meter.began[0],
        cpu_seconds=meter.ended[1] - meter.began[1],
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
    sys.stdout.write(json.dumps(msgspec.structs.asdict(report)) + "\n")


if __name__ == "__main__":
    anyio.run(main, msgspec.json.decode(sys.argv[1].encode(), type=Plan))
