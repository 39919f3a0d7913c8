"""Writers, relays and a consumer, while relays are killed, connections cut or stranded, and servers restarted.

    writer x4 -> PostgreSQL <- proxy <- `sagapost relay` x3 -> proxy -> RabbitMQ -> consumer

Every process but the consumer's is its own. Relays reach both servers through proxies; writers and the consumer go
straight there, so that only the relays' recovery is measured. In the end the account of what was committed is compared
with what arrived.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import anyio
import anyio.to_thread
import asyncpg
import msgspec

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Queue
from sagapost.core.envelope import Event
from sagapost.core.errors import BrokerError
from tests.chaos.rates import Arrivals, Recovery
from tests.chaos.relay_processes import RelayProcesses
from tests.chaos.writer import TYPE
from tests.chaos.writers import install_writers, ledger, running_writers
from tests.faults.proxy import FaultProxy
from tests.history.history import Cause, History, Report
from tests.history.records import replay
from tests.processes.nursery import Nursery
from tests.servers.postgresql import PrivatePostgreSQL
from tests.servers.rabbitmq import PrivateRabbitMQ

__all__ = ["FAULTS", "GRACEFUL", "QUICK", "Outcome", "Plan", "run"]

FAULTS = (
    "cut PostgreSQL",
    "cut RabbitMQ",
    "strand PostgreSQL",
    "strand RabbitMQ",
    "restart RabbitMQ",
    "restart PostgreSQL",
)
GRACEFUL = "graceful restart of each relay in turn"
_QUEUE = Queue("chaos", frozenset({TYPE}))
_DATABASE = "chaos"
_RECOVERED = 0.9
_START_SECONDS = 120.0
"""For all relays to start, on a machine that does much else."""
_RESTART = 6.0
"""Seconds that a server takes to come back, about."""
_REPLACEMENT = 3.0
"""Seconds that a relay takes to end and its successor to start, about."""
_SETTLING = 3.0
"""Seconds after the first arrival, until what waited for the relays to start is behind us."""
QUICK = {
    # Times an operator sets who wants a quick recovery; each bounds one way of being stuck.
    "SAGAPOST_START_RETRY_CAP": "1s",
    "SAGAPOST_RELAY_LEASE_TTL": "2s",
    "SAGAPOST_RELAY_RECONNECT_CAP": "1s",
    "SAGAPOST_DATABASE_CALL_TIMEOUT": "3s",
    "SAGAPOST_DATABASE_CONNECT_TIMEOUT": "3s",
    "SAGAPOST_BROKER_CONNECT_TIMEOUT": "3s",
    "SAGAPOST_BROKER_CONFIRM_TIMEOUT": "4s",
    "SAGAPOST_BROKER_HEARTBEAT": "2s",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done, and how much of it."""

    events: int = 200_000
    writers: int = 4
    most: float = 450.0
    """Events a second that the writers are asked for, at most. Two cores have to be left something for relays that
    start: a machine at its limit undisturbed has no way back to nearly that while one starts every second."""
    sessions: int = 8
    """Transactions that each writer has open at a time."""
    relays: int = 3
    kill_every: float | None = 1.0
    """Seconds between SIGKILLs of a random relay; None: nobody is killed."""
    let_start: bool = False
    """Kill only while *all* relays are at work, so that a busy machine still sees some progress between two kills."""
    faults: tuple[str, ...] = FAULTS
    rounds: int | None = None
    """How often each fault is done, at most; None: for as long as there is enough to write."""
    settings: Mapping[str, str] = field(default_factory=lambda: QUICK)
    """Of the relays; what is not here has its default."""
    calm: float = 8.0
    """Seconds without faults at the beginning, which give the undisturbed rate, and at least so many at the end."""
    between: float = 12.0
    """Seconds from one fault to the next. Nobody is killed in this time after a connection was stranded: the relays
    have to notice by themselves."""
    patience: float = 60.0
    """Seconds without any arrival until the rest counts as lost."""

    @property
    def rate(self) -> float:
        """Events a second, so that the writers are busy for as long as things are broken."""
        return min(self.events / (_SETTLING + 2 * self.calm + self.round_seconds), self.most)

    @property
    def round_seconds(self) -> float:
        """Seconds that all faults take, one after the other."""
        restarts = sum(fault.startswith("restart") for fault in self.faults)
        replaced = self.relays if GRACEFUL in self.faults else 0
        return len(self.faults) * self.between + restarts * _RESTART + replaced * (self.between + _REPLACEMENT)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    report: Report
    rate: float
    """Undisturbed, events a second."""
    recoveries: tuple[Recovery, ...]
    kills: int
    left: int
    """Rows still in the outbox."""
    dead: int
    """Dead letters; every refusal here is the fault of a fault."""
    ended: tuple[int, ...]
    """Exit codes other than 0, of relays that gave up by themselves or were stopped with SIGTERM."""
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether every promise held."""
        return self.report.clean and not (self.left or self.dead or self.ended)

    @property
    def slowest(self) -> float:
        """Seconds of the slowest recovery; infinite if one never came."""
        return max((float("inf") if r.seconds is None else r.seconds for r in self.recoveries), default=0.0)

    def __str__(self) -> str:
        lines = [str(self.report), f"left in the outbox {self.left}, dead letters {self.dead}, exits {self.ended}"]
        lines.append(f"{self.kills} relays killed in {self.seconds:.0f} s; undisturbed {self.rate:,.0f} events/s")
        for fault in dict.fromkeys(recovery.fault for recovery in self.recoveries):
            took = [recovery.seconds for recovery in self.recoveries if recovery.fault == fault]
            worst = "not within the run" if None in took else f"{max(filter(None, took), default=0.0):.1f} s at most"
            lines.append(f"back to {_RECOVERED:.0%} after {fault} ({len(took)}x): {worst}")
        return "\n".join(lines)


@dataclass
class _Run:
    """The state of one run."""

    plan: Plan
    rng: random.Random
    say: Callable[[str], None]
    history: History = field(default_factory=History)
    arrivals: Arrivals = field(default_factory=Arrivals)
    faults: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    kills: int = 0
    spared_until: float = 0.0
    ended: list[int] = field(default_factory=list[int])
    """Exit codes of relays that were not killed."""


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
    started = time.monotonic()
    state, rate = _Run(plan, rng, say), 0.0
    await _prepare(postgresql, rabbitmq)
    async with FaultProxy("127.0.0.1", postgresql.port) as database, FaultProxy("127.0.0.1", rabbitmq.port) as broker:
        with Nursery(postgresql.home.parent) as nursery:
            settings = {
                "SAGAPOST_DATABASE_URL": _through(database, postgresql.url(_DATABASE)),
                "SAGAPOST_BROKER_URL": _through(broker, rabbitmq.amqp_url()),
                **plan.settings,
            }
            relays = RelayProcesses(settings, nursery=nursery, home=postgresql.home.parent, logs=logs)
            for _ in range(plan.relays):
                relays.start()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_consume, state, rabbitmq)
                async with running_writers(
                    postgresql.url(_DATABASE),
                    writers=plan.writers,
                    events=plan.events,
                    rate=plan.rate,
                    sessions=plan.sessions,
                    rng=rng,
                    nursery=nursery,
                    logs=logs,
                ) as writers:
                    await _all_at_work(postgresql, plan.relays)
                    calm_from = await _calm(state)
                    rate = state.arrivals.between(calm_from, calm_from + plan.calm) / plan.calm
                    say(f"undisturbed: {rate:,.0f} events/s")
                    async with anyio.create_task_group() as faults:
                        if plan.kill_every is not None:
                            faults.start_soon(_kill, state, relays, postgresql, plan.kill_every)
                        await _break(state, rate, relays, database, broker, postgresql, rabbitmq)
                        faults.cancel_scope.cancel()
                    await writers.ended()
                for record in writers.records:
                    replay(record, state.history)
                await _wait_for_the_rest(state, postgresql)
                state.ended += relays.dead()
                state.ended += [await relays.stop() for _ in range(len(relays.running))]
                tasks.cancel_scope.cancel()
    left, dead = await _count(postgresql, "outbox"), await _count(postgresql, "outbox_dead")
    for fault, at in state.faults:
        state.history.fault(_cause(fault), at=at)
    return Outcome(
        report=state.history.judge(),
        rate=rate,
        recoveries=tuple(state.arrivals.recovery(fault, at=at, rate=rate * _RECOVERED) for fault, at in state.faults),
        kills=state.kills,
        left=left,
        dead=dead,
        ended=tuple(code for code in state.ended if code),
        seconds=time.monotonic() - started,
    )


async def _prepare(postgresql: PrivatePostgreSQL, rabbitmq: PrivateRabbitMQ) -> None:
    await anyio.to_thread.run_sync(postgresql.create_database, _DATABASE)
    await install_writers(postgresql.url(_DATABASE))
    await RabbitMQBroker(rabbitmq.amqp_url()).declare(_QUEUE)


def _through(proxy: FaultProxy, url: str) -> str:
    parts = urlsplit(url)
    credentials, _, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{credentials}@{proxy.host}:{proxy.port}"))


def _cause(fault: str) -> Cause:
    if fault.startswith("SIGKILL"):
        return Cause.RELAY_KILLED
    return Cause.SERVER_RESTARTED if fault.startswith("restart") else Cause.CONNECTION_LOST


# --- the consumer ---


async def _consume(state: _Run, rabbitmq: PrivateRabbitMQ) -> None:
    """Note what arrives; go back whenever the broker went away."""
    broker = RabbitMQBroker(rabbitmq.amqp_url())
    number = msgspec.json.Decoder(dict[str, int])
    while True:
        try:
            async with broker.subscribe(_QUEUE, prefetch=1_000) as deliveries:
                async for delivery in deliveries:
                    assert isinstance(delivery.content, Event)
                    event, now = number.decode(delivery.content.data)["n"], time.monotonic()
                    if state.history.saw(event, at=now, redelivered=delivery.delivery_count > 0):
                        state.arrivals.add(now)
                    await deliveries.ack(delivery)
        except BrokerError:
            await anyio.sleep(0.1)


# --- the faults ---


async def _calm(state: _Run) -> float:
    """Wait until events arrive, and for the calm after the start; returns the beginning of the calm."""
    with anyio.fail_after(_START_SECONDS):
        while not state.history.seen:  # noqa: ASYNC110 - asks for the first of many
            await anyio.sleep(0.1)
    await anyio.sleep(_SETTLING)
    begun = time.monotonic()
    await anyio.sleep(state.plan.calm)
    return begun


async def _kill(state: _Run, relays: RelayProcesses, postgresql: PrivatePostgreSQL, every: float) -> None:
    """SIGKILL a random relay that is at work, again and again; the death of one that still starts shows nothing."""
    while True:
        await anyio.sleep(every)
        if time.monotonic() < state.spared_until:
            continue
        at_work = relays.at_work()
        if not at_work or (state.plan.let_start and await _at_work(postgresql) < len(relays.running)):
            continue
        relays.kill(state.rng.choice(at_work))
        state.kills += 1
        state.faults.append(("SIGKILL of a relay", time.monotonic()))


async def _break(
    state: _Run,
    rate: float,
    relays: RelayProcesses,
    database: FaultProxy,
    broker: FaultProxy,
    postgresql: PrivatePostgreSQL,
    rabbitmq: PrivateRabbitMQ,
) -> None:
    """Do the planned faults in random order, again and again while enough is to be written for one more round."""

    async def restart(server: PrivatePostgreSQL | PrivateRabbitMQ) -> None:
        begun = time.monotonic()
        await anyio.to_thread.run_sync(server.restart)
        state.arrivals.downtimes.append((begun, time.monotonic()))

    async def strand(proxy: FaultProxy) -> None:
        state.spared_until = time.monotonic() + state.plan.between
        proxy.strand()

    async def cut(proxy: FaultProxy) -> None:
        await proxy.cut()

    async def replace() -> None:
        for _ in range(len(relays.running)):
            await _all_at_work(postgresql, len(relays.running))
            state.ended.append(await relays.stop())
            relays.start()
            await anyio.sleep(state.plan.between)
        await _all_at_work(postgresql, len(relays.running))

    actions: dict[str, Callable[[], Awaitable[None]]] = {
        "cut PostgreSQL": lambda: cut(database),
        "cut RabbitMQ": lambda: cut(broker),
        "strand PostgreSQL": lambda: strand(database),
        "strand RabbitMQ": lambda: strand(broker),
        "restart RabbitMQ": lambda: restart(rabbitmq),
        "restart PostgreSQL": lambda: restart(postgresql),
        GRACEFUL: replace,
    }
    plan, left, done = state.plan, math.inf, 0
    while left > plan.round_seconds + plan.calm and done != plan.rounds:
        for fault in state.rng.sample(plan.faults, len(plan.faults)):
            state.say(fault)
            await actions[fault]()
            state.faults.append((fault, time.monotonic()))
            await anyio.sleep(plan.between)
        left, done = (plan.events - state.history.seen) / max(rate, 1.0), done + 1


async def _all_at_work(postgresql: PrivatePostgreSQL, relays: int) -> None:
    """Wait until all relays have their share: who is told to stop is at work, and not still starting."""
    with anyio.fail_after(_START_SECONDS):
        while await _at_work(postgresql) < relays:  # noqa: ASYNC110 - asks a database of other processes
            await anyio.sleep(0.1)


async def _at_work(postgresql: PrivatePostgreSQL) -> int:
    """Return how many relays own partitions; 0 while some partition is nobody's, or the database is away."""
    owners = (
        "SELECT CASE WHEN bool_and(expires_at > clock_timestamp()) THEN count(DISTINCT owner) END "
        "FROM outbox_leases LEFT JOIN outbox_relays ON relay = owner"
    )
    try:
        connection = await asyncpg.connect(postgresql.dsn(_DATABASE))
        try:
            return int(await connection.fetchval(owners) or 0)
        finally:
            await connection.close()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return 0


# --- the end ---


async def _wait_for_the_rest(state: _Run, postgresql: PrivatePostgreSQL) -> None:
    """Ask the ledger what was committed, and wait for all of it while anything still arrives."""
    committed = await ledger(postgresql.dsn(_DATABASE))
    state.history.resolve(committed)
    state.say(f"{len(committed):,} events committed, {state.history.seen:,} seen so far")
    seen, quiet_since = state.history.seen, time.monotonic()
    while await _count(postgresql, "outbox") or state.history.seen < len(committed):
        await anyio.sleep(0.2)
        if state.history.seen > seen:
            seen, quiet_since = state.history.seen, time.monotonic()
        if time.monotonic() - quiet_since > state.plan.patience:
            return


async def _count(postgresql: PrivatePostgreSQL, table: str) -> int:
    connection = await asyncpg.connect(postgresql.dsn(_DATABASE))
    try:
        count: object = await connection.fetchval(f"SELECT count(*) FROM {table}")
        return int(str(count))
    finally:
        await connection.close()
