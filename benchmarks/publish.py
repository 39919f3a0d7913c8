"""How close `RabbitMQBroker` comes to a raw socket, and what a message and a delivery cost it in CPU.

Payload 500 bytes, the headers of an event in a saga, persistent, mandatory, confirms with a window of 2,000, batches
of 100. Publisher and ceiling each run in a process of their own on an empty durable queue of the same broker, in turn.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field

import anyio

from benchmarks.ceiling import BenchQueue, publish_ceiling
from benchmarks.harness import Bench, Figure, interleave
from tests.servers.rabbitmq import private_rabbitmq

FIGURES = (
    "publish.classic",
    "publish.quorum",
    "publish.cpu_us_per_message",
    "publish.consume_cpu_us_per_delivery",
    "publish.consume_cpu_us_per_single_ack",
)

_TOPIC = "bench.message-published.v1"
_PAYLOAD_BYTES = 500
_WINDOW = 2_000


@dataclass(slots=True)
class _Bed:
    """The broker of one invocation, and what the workers reported besides their rate."""

    amqp: str
    cpu: dict[str, list[float]] = field(default_factory=dict[str, list[float]])


async def measure(bench: Bench) -> list[Figure]:
    """Run what is wanted on a private broker."""
    with private_rabbitmq() as broker:
        bed = _Bed(broker.amqp_url())
        figures = [
            await _publish(bench, bed, kind)
            for kind in ("classic", "quorum")
            if bench.wants(f"publish.{kind}", "publish.cpu_us_per_message")
        ]
        if "publish" in bed.cpu:
            figures.append(Figure.of("publish.cpu_us_per_message", "us", bed.cpu["publish"]))
        for name, group in (("delivery", 50), ("single_ack", 1)):
            if bench.wants(f"publish.consume_cpu_us_per_{name}"):
                figures.append(await _consume(bench, bed, name, group))
        return figures


async def _publish(bench: Bench, bed: _Bed, kind: str) -> Figure:
    count = bench.pick(20_000, 100_000)

    async def ceiling() -> float:
        async with BenchQueue(bed.amqp, kind=kind, topic=_TOPIC):
            return await publish_ceiling(
                bed.amqp, topic=_TOPIC, count=count, payload_bytes=_PAYLOAD_BYTES, window=_WINDOW
            )

    async def adapter() -> float:
        async with BenchQueue(bed.amqp, kind=kind, topic=_TOPIC) as queue:
            rate = await _worker(bed, "publish", "publish", ["--topic", _TOPIC, "--count", str(count)])
            waiting = await queue.count()
            if waiting != count:
                raise RuntimeError(f"{count} messages were confirmed, {waiting} are in the queue")
            return rate

    results = await interleave(
        bench, f"publish, {kind}", {"ceiling": ceiling, "adapter": adapter}, runs=bench.pick(3, 7)
    )
    return Figure.of(f"publish.{kind}", "msg/s", results["adapter"], results["ceiling"])


async def _consume(bench: Bench, bed: _Bed, name: str, group: int) -> Figure:
    arguments = ["--topic", f"bench.{name}.v1", "--count", str(bench.pick(10_000, 50_000)), "--group", str(group)]
    runs = bench.pick(3, 5)
    with bench.progress(f"consume, {group} deliveries per ack", runs) as advance:
        for _ in range(runs):
            await _worker(bed, "consume", name, arguments)
            advance(1)
    return Figure.of(f"publish.consume_cpu_us_per_{name}", "us", bed.cpu[name])


async def _worker(bed: _Bed, side: str, keep_cpu_as: str, arguments: list[str]) -> float:
    """Run one side in a process of its own; return messages per second."""
    command = [sys.executable, "-m", "benchmarks.broker_worker", side, *arguments]
    command += ["--payload-bytes", str(_PAYLOAD_BYTES), "--window", str(_WINDOW)]
    process = await anyio.run_process(command, input=bed.amqp.encode(), stderr=None)
    result: dict[str, float] = json.loads(process.stdout)
    bed.cpu.setdefault(keep_cpu_as, []).append(result["cpu_seconds"] / result["count"] * 1e6)
    return result["count"] / result["seconds"]
