"""`RabbitMQBroker` as a process of its own, for `benchmarks.publish`: publishes or consumes, and prints what it cost.

Prints one line of JSON: {"seconds", "cpu_seconds", "count"}. The broker's URL comes on standard input.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque

import anyio

from benchmarks.ceiling import CHUNK, EXCHANGE, sample_event
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Confirmation, Confirmed, Outgoing, Queue
from sagapost.core.envelope import Event


async def publish(broker: RabbitMQBroker, options: argparse.Namespace) -> dict[str, float]:
    """Publish with a window of confirms, as the relay does."""
    # Ids have to be unique among what is in flight only.
    messages = [
        Outgoing(sample_event(options.topic, options.payload_bytes, key=n % 1000), options.topic)
        for n in range(options.window * 2)
    ]
    batches = [messages[n : n + CHUNK] for n in range(0, len(messages), CHUNK)]
    in_flight: deque[Confirmation] = deque()
    async with broker.publisher() as publisher:
        wall, cpu = time.perf_counter(), time.process_time()
        for n in range(options.count // CHUNK):
            if len(in_flight) * CHUNK >= options.window:
                await _check(in_flight.popleft())
            in_flight.append(await publisher.send(batches[n % len(batches)]))
        while in_flight:
            await _check(in_flight.popleft())
        return _summary(wall, cpu, options.count)


async def _check(confirmation: Confirmation) -> None:
    for result in await confirmation.wait():
        if not isinstance(result, Confirmed):
            raise TypeError(f"a message was not confirmed: {result}")


async def consume(broker: RabbitMQBroker, options: argparse.Namespace) -> dict[str, float]:
    """Read every envelope and ack in groups."""
    queue = Queue("bench-consumer", frozenset({options.topic}))
    await broker.declare(queue)
    await publish(broker, options)
    seen = 0
    group = []
    async with broker.subscribe(queue, prefetch=options.window) as subscription:
        wall, cpu = time.perf_counter(), time.process_time()
        async for delivery in subscription:
            if not isinstance(delivery.content, Event):
                raise TypeError("a message could not be read")
            seen += 1
            group.append(delivery)
            if len(group) == options.group or seen == options.count:
                await subscription.ack(*group)
                group.clear()
            if seen == options.count:
                break
        return _summary(wall, cpu, options.count)


def _summary(wall: float, cpu: float, count: int) -> dict[str, float]:
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu, "count": count}


def main() -> None:
    """Run one side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("publish", "consume"))
    parser.add_argument("--topic", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--payload-bytes", type=int, default=500)
    parser.add_argument("--window", type=int, default=2000)
    parser.add_argument("--queue-type", choices=("classic", "quorum"), default="classic")
    parser.add_argument("--group", type=int, default=50, help="deliveries per ack call")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    options = parser.parse_args()
    broker = RabbitMQBroker(sys.stdin.read(), exchange=EXCHANGE, queue_type=options.queue_type)
    side = publish if options.side == "publish" else consume
    backend: dict[str, object] = {"use_uvloop": options.loop == "uvloop"}
    result = anyio.run(side, broker, options, backend_options=backend)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
