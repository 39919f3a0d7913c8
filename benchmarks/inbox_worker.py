"""One consumer as a process of its own, for `benchmarks.inbox`; prints its figures as one line of JSON at the end.

Kinds: `inbox`, ours; `handwritten`, what one writes without a library: aio-pika, one SQLAlchemy transaction per
message, no dedup; `raw`, the same two inserts per message in batches on one asyncpg connection, with no broker at all.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Literal

import aio_pika
import anyio
import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from benchmarks.inbox_service import QUEUE, OrderPlaced, OrderRow, inbox
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core import Observation, new_uuid
from sagapost.inbox import Consumer, ConsumerSettings
from sagapost.inbox.observations import Acknowledged, ConsumerReady

__all__ = ["Plan", "Report"]


class Plan(msgspec.Struct):
    """What the process measures."""

    kind: Literal["inbox", "handwritten", "raw"]
    url: str
    dsn: str
    amqp: str
    messages: int
    concurrency: int
    batch: int = 1


class Report(msgspec.Struct):
    """What it found."""

    seconds: float
    """From the first message to the last acknowledgement (`raw`: commit)."""
    cpu_seconds: float
    peak_mib: float


class Meter:
    """Times from the subscription to the last acknowledgement."""

    def __init__(self, messages: int) -> None:
        self._left = messages
        self.began = self.ended = (0.0, 0.0)
        self.done = anyio.Event()

    def start(self) -> None:
        """Start the clock."""
        self.began = (time.perf_counter(), time.process_time())

    def count(self, messages: int) -> None:
        """Count acknowledged messages."""
        self._left -= messages
        if self._left <= 0 and not self.done.is_set():
            self.ended = (time.perf_counter(), time.process_time())
            self.done.set()

    def notify(self, event: Observation, /) -> None:
        """Observe our consumer."""
        if isinstance(event, Acknowledged):
            self.count(event.messages)
        elif isinstance(event, ConsumerReady):
            self.start()


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

    meter.start()
    await queue.consume(handle)
    await meter.done.wait()
    await connection.close()
    await engine.dispose()


async def run_raw(plan: Plan, meter: Meter) -> None:
    """Insert as fast as one connection does."""
    connection = await asyncpg.connect(plan.dsn)
    keys = "INSERT INTO inbox_seen (consumer, key) VALUES (1, $1) ON CONFLICT DO NOTHING"
    rows = "INSERT INTO orders (id, customer, amount) VALUES ($1, $2, $3)"
    meter.start()
    for start in range(0, plan.messages, plan.batch):
        ids = [new_uuid() for _ in range(plan.batch)]
        async with connection.transaction():
            await connection.executemany(keys, [(id_.bytes,) for id_ in ids])
            await connection.executemany(rows, [(str(id_), "customer", start) for id_ in ids])
        meter.count(plan.batch)
    await connection.close()


async def main(plan: Plan) -> None:
    """Run the plan and print what came of it."""
    meter = Meter(plan.messages)
    run = {"inbox": run_inbox, "handwritten": run_handwritten, "raw": run_raw}[plan.kind]
    await run(plan, meter)
    report = Report(
        seconds=meter.ended[0] - meter.began[0],
        cpu_seconds=meter.ended[1] - meter.began[1],
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
    sys.stdout.write(json.dumps(msgspec.structs.asdict(report)) + "\n")


if __name__ == "__main__":
    anyio.run(main, msgspec.json.decode(sys.argv[1].encode(), type=Plan))
