"""Sagas under fire: orders through four services, some of which go wrong, while processes are killed and links cut.

    writer -> Orders, Stock, Payment, Shipping, each: a database, `sagapost relay`, `sagapost consume`, behind proxies

Each service reaches its database and the broker through proxies of its own. In the end every order's effects, the
books of goods and money, the compensation ledgers and the tracker are compared with each other.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiormq
import anyio
from sqlalchemy.ext.asyncio import AsyncSession

from sagapost.sagas import start
from tests.chaos import sagas_service as service
from tests.chaos.sagas_service import Fate
from tests.chaos.sagas_stage import ACCOUNTS, ITEMS, Stage, running
from tests.chaos.sagas_verdict import WORKING, Books, Verdict, judge, look, tracked_states, unsettled
from tests.servers.postgresql import PrivatePostgreSQL
from tests.servers.rabbitmq import PrivateRabbitMQ

__all__ = ["SERVER", "Outcome", "Plan", "run"]

SERVER = {"max_connections": "500", "idle_in_transaction_session_timeout": "8s"}
"""Settings of the PostgreSQL server; room for the connections of the dead, which it keeps for a moment."""
_FAILURES = (Fate.REFUSED, Fate.REFUSED, Fate.BREAKS, Fate.LOST, Fate.LATE)
_SOON = timedelta(seconds=3)
"""Deadline of orders that need it. A late step is later than this."""
_CALM = 2.0
"""Seconds without anything to come, after which the sagas have ended: what a queue hands out shows up within."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done, and how much of it."""

    sagas: int = 10_000
    failing: float = 0.2
    """Share of sagas that go wrong at a random step."""
    rate: float = 50.0
    """Sagas begun in a second, at most."""
    unfinished: int = 600
    """Sagas at a time, at most."""
    consumers: int = 2
    """Replicas of each service; each has a compensator too."""
    batch: int = 10
    """Group commit of the consumers."""
    kill_every: float = 2.0
    """Seconds between SIGKILLs of a random relay or consumer."""
    cut_every: float = 7.0
    """Seconds between cuts of all connections of a random service, to its database or to the broker."""
    deadline: timedelta = timedelta(minutes=3)
    """Of orders that are to come through; one that is late all the same is cancelled, and undone."""
    patience: float = 90.0
    """Seconds without progress until the rest counts as stuck."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    verdict: Verdict
    states: Counter[str]
    fates: Counter[str]
    undone: Counter[str]
    """Effects that were undone, by service."""
    kills: Counter[str]
    cuts: Counter[str]
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether every promise held."""
        return self.verdict.clean

    def __str__(self) -> str:
        return "\n".join(
            (
                str(self.verdict),
                f"sagas {dict(self.states)}; fates {dict(self.fates)}; undone {dict(self.undone)}",
                f"SIGKILLs {dict(self.kills)}; cuts {dict(self.cuts)}; {self.seconds:.0f} s in all",
            )
        )


async def run(
    plan: Plan,
    postgresql: PrivatePostgreSQL,
    rabbitmq: PrivateRabbitMQ,
    *,
    rng: random.Random,
    logs: Path,
    say: Callable[[str], None],
) -> Outcome:
    """Run the plan on servers that nobody else uses; the outcome is for the caller to judge."""
    begun, placed = time.monotonic(), dict[int, service.OrderPlaced]()
    async with running(postgresql, rabbitmq, consumers=plan.consumers, batch=plan.batch, logs=logs) as stage:
        faults = _Faults(plan, stage, random.Random(rng.random()))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(faults.kill)
            tasks.start_soon(faults.cut)
            placed = await _place(plan, stage, rng, say)
            tasks.cancel_scope.cancel()
        say(f"{len(placed):,} sagas begun in {time.monotonic() - begun:.0f} s; no more faults")
        await _settled(plan, stage, rabbitmq, say)
        books = await look(stage.engines)
        verdict = await _verdict(stage, books, placed)
    return Outcome(
        verdict=verdict,
        states=Counter(order.state for order in books.orders.values()),
        fates=Counter(order.fate.name for order in placed.values()),
        undone=Counter({name: sum(len(of) > 1 for of in books.effects[name].values()) for name in WORKING}),
        kills=faults.kills,
        cuts=faults.cuts,
        seconds=time.monotonic() - begun,
    )


def _order(number: int, failing: float, rng: random.Random) -> service.OrderPlaced:
    fate, at = Fate.NONE, ""
    if rng.random() < failing:
        fate, at = rng.choice(_FAILURES), rng.choice(list(WORKING))
    elif rng.random() < 0.05:
        fate, at = Fate.HICCUP, rng.choice(list(WORKING))
    return service.OrderPlaced(
        order=number,
        item=rng.randrange(ITEMS),
        quantity=rng.randint(1, 5),
        account=rng.randrange(ACCOUNTS),
        cents=rng.randint(1, 9_999),
        fate=fate,
        at=at,
    )


async def _place(
    plan: Plan, stage: Stage, rng: random.Random, say: Callable[[str], None]
) -> dict[int, service.OrderPlaced]:
    """Begin the sagas, not faster than planned and not more at a time."""
    placed: dict[int, service.OrderPlaced] = {}
    began = time.monotonic()
    for number in range(1, plan.sagas + 1):
        wanted = _order(number, plan.failing, rng)
        await _begin(plan, stage, wanted)
        placed[number] = wanted
        await anyio.sleep(max(0.0, began + number / plan.rate - time.monotonic()))
        if number % 250 == 0:
            while (left := await unsettled(stage.engines)) > plan.unfinished:  # noqa: ASYNC110 - asks databases
                await anyio.sleep(0.5)
            if number % 1_000 == 0:
                say(f"{number:,} sagas begun, {left:,} things still to come")
    return placed


async def _begin(plan: Plan, stage: Stage, wanted: service.OrderPlaced) -> None:
    soon = wanted.fate in {Fate.LOST, Fate.LATE}
    outbox = service.SERVICES["orders"].outbox
    async with AsyncSession(stage.engines["orders"]) as session, session.begin():
        with start(keys={"order": wanted.order}) as saga:
            session.add(
                service.Order(
                    id=wanted.order,
                    saga=saga.correlationid,
                    item=wanted.item,
                    quantity=wanted.quantity,
                    account=wanted.account,
                    cents=wanted.cents,
                )
            )
            await outbox.publish(session, wanted, key=str(wanted.order))
            await outbox.publish(
                session,
                service.OrderOverdue(wanted.order),
                key=str(wanted.order),
                name=service.SERVICES["orders"].sagas.deadline_name(service.DEADLINE.name),
                deliver_at=datetime.now(UTC) + (_SOON if soon else plan.deadline),
            )


async def _settled(plan: Plan, stage: Stage, rabbitmq: PrivateRabbitMQ, say: Callable[[str], None]) -> None:
    """Wait until nothing is to come any more, while anything still moves."""
    least, moved = await unsettled(stage.engines), time.monotonic()
    calm_since: float | None = None
    while True:
        left = await unsettled(stage.engines) + await _queued(rabbitmq)
        now = time.monotonic()
        if left:
            calm_since = None
        elif calm_since is None:
            calm_since = now
        elif now - calm_since > _CALM:
            return
        if left < least:
            least, moved = left, now
        if left and now - moved > plan.patience:
            say(f"{left} things do not move any more")
            return
        await anyio.sleep(0.2)


async def _queued(rabbitmq: PrivateRabbitMQ) -> int:
    connection = await aiormq.connect(rabbitmq.amqp_url())
    try:
        channel = await connection.channel()
        counts = [
            (await channel.queue_declare(each.inbox.queue.name, passive=True)).message_count or 0
            for each in service.SERVICES.values()
        ]
    finally:
        await connection.close()
    return sum(counts)


async def _verdict(stage: Stage, books: Books, placed: dict[int, service.OrderPlaced]) -> Verdict:
    """Judge; the tracker gets a moment for what it has not folded yet."""
    verdict = judge(books, placed, await tracked_states(stage.tracker, books))
    with anyio.move_on_after(30):
        while verdict.tracker:
            await anyio.sleep(0.5)
            verdict = judge(books, placed, await tracked_states(stage.tracker, books))
    return verdict


class _Faults:
    """Kills and cuts."""

    def __init__(self, plan: Plan, stage: Stage, rng: random.Random) -> None:
        self._plan = plan
        self._services = stage.services
        self._rng = rng
        self.kills: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()

    async def kill(self) -> None:
        """SIGKILL somebody who is at work, again and again."""
        while True:
            await anyio.sleep(self._plan.kill_every)
            name = self._rng.choice(list(self._services))
            each = self._services[name]
            role, processes = self._rng.choice((("relay", each.relays), ("consumer", each.consumers)))
            at_work = processes.at_work()
            if at_work:
                processes.kill(self._rng.choice(at_work))
                self.kills[f"{role} of {name}"] += 1

    async def cut(self) -> None:
        """Reset all connections of a service, to its database or to the broker, again and again."""
        while True:
            await anyio.sleep(self._plan.cut_every)
            name = self._rng.choice(list(self._services))
            way = self._services[name].way
            what, proxy = self._rng.choice((("database", way.database), ("broker", way.broker)))
            await proxy.cut()
            self.cuts[f"{what} of {name}"] += 1
