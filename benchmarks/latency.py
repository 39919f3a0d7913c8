"""How long after the commit a consumer has the event, at a steady 500 events per second.

The baseline is one raw hop in the same run: publish to the same broker and queue, with confirms, and consume. Arrivals
are scheduled ahead of time (open loop), so a stall delays everything behind it and shows up in the tail.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from uuid import UUID

import aiormq
import anyio
import asyncpg

from benchmarks import outbox_rows
from benchmarks.ceiling import EXCHANGE, BenchQueue
from benchmarks.harness import Bench, Figure
from benchmarks.open_loop import milliseconds, on_schedule, percentiles
from benchmarks.relay import Bed, open_bed, worker
from sagapost.core.ids import new_uuid
from tests.servers.postgresql import private_postgresql
from tests.servers.rabbitmq import private_rabbitmq

FIGURES = ("latency.p50", "latency.p99")

RATE = 500
WRITERS = 8

_INSERT = """
    WITH domain AS (INSERT INTO orders (note) VALUES ('x'))
    INSERT INTO outbox (event_id, topic, type, source, time, partitionkey, data)
    VALUES ($1, $2, $2, 'https://bench.example', clock_timestamp(), $3, $4)
"""


async def measure(bench: Bench) -> list[Figure]:
    """Run on private servers."""
    with private_postgresql(durable=True) as server, private_rabbitmq() as broker:
        async with open_bed(server, broker.amqp_url()) as bed:
            await bed.admin.execute("CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY, note text)")
            events = bench.pick(2_500, 15_000)
            through: list[list[float]] = []
            raw: list[list[float]] = []
            runs = 3
            with bench.progress("latency at 500/s", 2 * runs) as advance:
                for _ in range(runs):
                    through.append(await _through_relay(bed, events))
                    advance(1)
                    raw.append(await _raw_hop(bed, events))
                    advance(1)
    return percentiles("latency", through, raw)


async def _through_relay(bed: Bed, events: int) -> list[float]:
    """Commit -> relay -> consumer."""
    await outbox_rows.empty(bed.admin)
    payload = b"x" * outbox_rows.PAYLOAD_BYTES
    pool = await asyncpg.create_pool(bed.dsn, min_size=WRITERS, max_size=WRITERS)

    async def write(event_id: UUID, number: int) -> None:
        key = f"key-{number % outbox_rows.KEYS}"
        await pool.execute(_INSERT, event_id, outbox_rows.TOPIC, key, payload)

    try:
        async with (
            BenchQueue(bed.amqp, kind="classic", topic=outbox_rows.TOPIC),
            worker(bed.url, bed.amqp, 10**9, "classic") as lines,
        ):
            async for line in lines:
                if line.get("owned") == 32:
                    break
            return await _arrivals(bed, events, write)
    finally:
        await pool.close()


async def _raw_hop(bed: Bed, events: int) -> list[float]:
    """Publish -> consumer."""
    payload = b"x" * outbox_rows.PAYLOAD_BYTES
    async with (
        BenchQueue(bed.amqp, kind="classic", topic=outbox_rows.TOPIC),
        aiormq.Connection(bed.amqp) as connection,
    ):
        channel = await connection.channel(publisher_confirms=True)

        async def write(event_id: UUID, _number: int) -> None:
            await channel.basic_publish(
                payload,
                exchange=EXCHANGE,
                routing_key=outbox_rows.TOPIC,
                properties=aiormq.spec.Basic.Properties(message_id=str(event_id), delivery_mode=2),
            )

        return await _arrivals(bed, events, write, stamp_before=True)


async def _arrivals(
    bed: Bed, events: int, write: Callable[[UUID, int], Awaitable[None]], *, stamp_before: bool = False
) -> list[float]:
    """Write on schedule and consume; return the latencies in ms, the first tenth left out as warm-up."""
    written: dict[str, float] = {}
    seen: dict[str, float] = {}
    done = anyio.Event()

    async def on_message(message: aiormq.abc.DeliveredMessage) -> None:
        seen[message.header.properties.message_id or ""] = time.perf_counter()
        if len(seen) >= events:
            done.set()

    async def one(number: int) -> None:
        event_id = new_uuid()
        if stamp_before:
            written[str(event_id)] = time.perf_counter()
            await write(event_id, number)
        else:
            await write(event_id, number)
            written[str(event_id)] = time.perf_counter()

    async with aiormq.Connection(bed.amqp) as connection:
        channel = await connection.channel()
        await channel.basic_consume("bench", on_message, no_ack=True)
        await on_schedule(events, RATE, one)
        with anyio.fail_after(30):
            await done.wait()
    return milliseconds(written, seen)
