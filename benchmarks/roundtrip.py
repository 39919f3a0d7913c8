"""How long a question takes to another service and back: commit in Shop, its relay, Stock's inbox commits and answers,
Stock's relay, Shop's inbox commits.

The baseline is a message that makes four hops through the same broker in the same run: published with confirms and
consumed four times, with no database at all. Durable quorum queues, persistent messages of 500 bytes, databases with
fsync and synchronous_commit on; every relay and Stock's consumer are processes of their own. Arrivals are scheduled
ahead of time (open loop), so a stall delays everything behind it and shows up in the tail.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import aiormq
import anyio
import msgspec
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from benchmarks import outbox_rows
from benchmarks.ceiling import EXCHANGE, BenchQueue
from benchmarks.harness import Bench, Figure
from benchmarks.open_loop import milliseconds, on_schedule, percentiles
from benchmarks.relay import worker
from benchmarks.roundtrip_service import Asked, Servers, ShopRow, answered_by, install, shop, shop_outbox, stock
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core import Observation, new_id
from sagapost.inbox import Consumer
from sagapost.inbox.declared.observations import Handled
from tests.servers.postgresql import PrivatePostgreSQL, private_postgresql
from tests.servers.rabbitmq import private_rabbitmq

FIGURES = ("roundtrip.p50", "roundtrip.p99")

RATE = 50
"""Questions a second."""
HOPS = 4
RUNS = 3


async def measure(bench: Bench) -> list[Figure]:
    """Run on private servers."""
    questions = bench.pick(200, 3_000)
    through: list[list[float]] = []
    raw: list[list[float]] = []
    with private_postgresql(durable=True) as server, private_rabbitmq() as node:
        amqp = node.amqp_url()
        for name, inbox in (("shop", shop), ("stock", stock)):
            server.create_database(name)
            await install(server.url(name), inbox)
            await RabbitMQBroker(amqp).declare(inbox.queue)
        with bench.progress(f"round trips at {RATE}/s", 2 * RUNS) as advance:
            for _ in range(RUNS):
                through.append(await _through_services(server, amqp, questions))
                advance(1)
                raw.append(await _raw_hops(amqp, questions))
                advance(1)
    return percentiles("roundtrip", through, raw)


class _Answers:
    """Notes when Shop has committed an answer."""

    def __init__(self, questions: int) -> None:
        self._left = questions
        self.committed: dict[str, float] = {}
        """By the id of the answer's event."""
        self.first = anyio.Event()
        self.done = anyio.Event()

    def notify(self, event: Observation, /) -> None:
        """Take note."""
        if isinstance(event, Handled):
            self.committed[event.event_id] = time.perf_counter()
            self.first.set()
            self._left -= 1
            if self._left == 0:
                self.done.set()


async def _through_services(server: PrivatePostgreSQL, amqp: str, questions: int) -> list[float]:
    """Commit in Shop -> ... -> commit in Shop, in milliseconds."""
    answers = _Answers(questions + 1)
    asked: dict[str, float] = {}
    engine = create_async_engine(server.url("shop"), pool_size=24)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def ask(_number: int) -> None:
        question = new_id()
        async with sessions.begin() as session:
            session.add(ShopRow(id=question))
            await shop_outbox.publish(session, Asked(question), key=question)
        asked[question] = time.perf_counter()

    consumer = Consumer(shop, engine=engine, broker=RabbitMQBroker(amqp), observer=answers)
    async with (
        _relay(server, amqp, "shop"),
        _relay(server, amqp, "stock"),
        _stock(server, amqp),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(consumer.run)
        with anyio.fail_after(60 + questions / RATE):
            # Once around before the clock starts: every process is up then.
            await ask(0)
            await answers.first.wait()
            await on_schedule(questions, RATE, ask)
            await answers.done.wait()
        consumer.stop()
    await engine.dispose()
    back = {answered_by.pop(event_id): at for event_id, at in answers.committed.items()}
    return milliseconds(asked, back)


async def _raw_hops(amqp: str, questions: int) -> list[float]:
    """Publish -> consume, four times over, in milliseconds."""
    asked: dict[str, float] = {}
    back: dict[str, float] = {}
    done = anyio.Event()
    async with AsyncExitStack() as stack:
        for hop in range(HOPS):
            queue = BenchQueue(amqp, kind="quorum", topic=f"hop.{hop}", name=f"hop-{hop}")
            await stack.enter_async_context(queue)
        # A connection for each end, as services have.
        ends = [await stack.enter_async_context(aiormq.Connection(amqp)) for _ in range(2)]
        senders = [await end.channel(publisher_confirms=True) for end in ends]
        receivers = [await end.channel() for end in ends]

        async def send(hop: int, question: str, body: bytes) -> None:
            properties = aiormq.spec.Basic.Properties(message_id=question, delivery_mode=2)
            await senders[hop % 2].basic_publish(
                body, exchange=EXCHANGE, routing_key=f"hop.{hop}", properties=properties, mandatory=True
            )

        async def on_message(hop: int, message: aiormq.abc.DeliveredMessage) -> None:
            question = message.header.properties.message_id or ""
            if hop + 1 < HOPS:
                await send(hop + 1, question, message.body)
            await message.channel.basic_ack(message.delivery_tag or 0)
            if hop + 1 == HOPS:
                back[question] = time.perf_counter()
                if len(back) == questions:
                    done.set()

        async def ask(_number: int) -> None:
            question = new_id()
            asked[question] = time.perf_counter()
            await send(0, question, b"x" * outbox_rows.PAYLOAD_BYTES)

        for hop in range(HOPS):
            await receivers[(hop + 1) % 2].basic_consume(f"hop-{hop}", partial(on_message, hop))
        await on_schedule(questions, RATE, ask)
        with anyio.fail_after(60):
            await done.wait()
    return milliseconds(asked, back)


@asynccontextmanager
async def _relay(server: PrivatePostgreSQL, amqp: str, database: str) -> AsyncGenerator[None]:
    """Run the relay of one service; entered once it owns every partition."""
    async with worker(server.url(database), amqp, 10**9, "quorum") as lines:
        async for line in lines:
            if line.get("owned") == 32:
                break
        yield


@asynccontextmanager
async def _stock(server: PrivatePostgreSQL, amqp: str) -> AsyncGenerator[None]:
    """Run Stock's consumer."""
    servers = Servers(database=server.url("stock"), broker=amqp)
    command = [sys.executable, "-m", "benchmarks.roundtrip_service"]
    async with await anyio.open_process(command, stdin=subprocess.PIPE, stdout=None, stderr=None) as process:
        assert process.stdin is not None  # opened as a pipe
        await process.stdin.send(msgspec.json.encode(servers) + b"\n")
        try:
            yield
        finally:
            process.terminate()
            with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                await process.wait()
            if process.returncode is None:
                process.kill()
