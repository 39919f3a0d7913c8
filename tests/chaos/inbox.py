"""End to end under fire: three replicas of a service handle what others commit, while everything around them breaks.

    writer x4 -> PostgreSQL <- proxy <- `sagapost relay` x2 -> proxy -> RabbitMQ
                 PostgreSQL <- proxy <- `sagapost consume` x3 <- proxy <- RabbitMQ

Each replica reaches both servers through proxies of its own, so that one of them can be cut off from the broker while
it still reaches the database, and the other way round. Some events are poison, some kill their process, some fail
twice, some are declined by the business; strangers send messages that are no events at all. In the end the consuming
service's database is compared with what was committed.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anyio

from tests.chaos.inbox_faults import Faults
from tests.chaos.inbox_plan import FAULTS, Plan
from tests.chaos.inbox_stage import READERS, WRITERS, Stage, prepare, running
from tests.chaos.inbox_strangers import KINDS, send_strange_messages
from tests.chaos.inbox_verdict import Found, Verdict, judge, look
from tests.chaos.rates import Arrivals, Recovery
from tests.chaos.writers import ledger, running_writers
from tests.servers.postgresql import PrivatePostgreSQL
from tests.servers.rabbitmq import PrivateRabbitMQ

__all__ = ["FAULTS", "Outcome", "Plan", "run"]

_RECOVERED = 0.9


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    verdict: Verdict
    rate: float
    """Undisturbed, effects a second."""
    recoveries: tuple[Recovery, ...]
    kills: Counter[str]
    """SIGKILLs by role; by "a message": those of killers."""
    left: dict[str, int]
    """Where nothing may be left: outbox rows, the relay's dead letters, the queue and its dead letters."""
    ended: tuple[int, ...]
    """Exit codes other than 0, of processes that gave up by themselves or were stopped with SIGTERM."""
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether every promise held."""
        return self.verdict.clean and not self.ended and not any(self.left.values())

    def __str__(self) -> str:
        kills = ", ".join(f"{number} of {role}" for role, number in sorted(self.kills.items()))
        lines = [
            str(self.verdict),
            f"left behind {self.left}, exits {self.ended}",
            f"SIGKILLs: {kills}; {self.seconds:.0f} s in all; undisturbed {self.rate:,.0f} effects/s",
        ]
        for fault in dict.fromkeys(recovery.fault for recovery in self.recoveries):
            took = [recovery.seconds for recovery in self.recoveries if recovery.fault == fault]
            worst = "not within the run" if None in took else f"{max(filter(None, took), default=0.0):.1f} s at most"
            lines.append(f"back to {_RECOVERED:.0%} of it after: {fault} ({len(took)}x): {worst}")
        return "\n".join(lines)


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
    started, calm_from, committed = time.monotonic(), 0.0, set[int]()
    await prepare(plan, postgresql, rabbitmq)
    async with running(plan, postgresql, rabbitmq, logs=logs) as stage:
        faults = Faults(plan, stage, rng, say)
        async with (
            running_writers(
                postgresql.url(WRITERS),
                writers=plan.writers,
                events=plan.events,
                rate=plan.rate,
                sessions=plan.sessions,
                rng=rng,
                nursery=stage.nursery,
                logs=logs,
            ) as writers,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(stage.consumers.supervise)
            calm_from = await _calm(plan, stage)
            await send_strange_messages(rabbitmq.amqp_url(), plan.strangers)
            await faults.run()
            await writers.ended()
            committed = await ledger(postgresql.dsn(WRITERS))
            say(f"{len(committed):,} events committed, {await stage.handled():,} handled so far")
            if not await _came_to_its_end(plan, stage, len(committed) + plan.strangers * len(KINDS)):
                say("\n  ".join(("stuck:", *await stage.stuck())))
            tasks.cancel_scope.cancel()
        await stage.consumers.stop_all()
        ended = [*faults.ended, *stage.consumers.ended, *stage.relays.dead()]
        ended += [await stage.relays.stop() for _ in range(len(stage.relays.running))]
        left = {
            "outbox": await stage.ask(WRITERS, "SELECT count(*) FROM outbox"),
            "relay's dead letters": await stage.ask(WRITERS, "SELECT count(*) FROM outbox_dead"),
            **await stage.queues(),
        }
    found = await look(postgresql.dsn(READERS))
    arrivals = _arrivals(found, faults.downtimes)
    rate = arrivals.between(calm_from, calm_from + plan.calm) / plan.calm
    strange = dict.fromkeys(KINDS, plan.strangers)
    return Outcome(
        verdict=judge(found, committed, strange, writers.records, ordered=plan.mode == "ordered"),
        rate=rate,
        recoveries=tuple(arrivals.recovery(fault, at=at, rate=rate * _RECOVERED) for fault, at in faults.done),
        kills=faults.kills + Counter({"a message": stage.consumers.died}),
        left=left,
        # A process that was still starting had nothing in flight, and no handler for SIGTERM yet.
        ended=tuple(code for code in ended if code not in {0, -signal.SIGTERM}),
        seconds=time.monotonic() - started,
    )


async def _calm(plan: Plan, stage: Stage) -> float:
    """Wait until events are handled, and for the calm after the start; returns the beginning of the calm."""
    with anyio.fail_after(2 * plan.patience):
        while not await stage.handled():  # noqa: ASYNC110 - asks a database of other processes
            await anyio.sleep(0.1)
    # What waited for everybody to start is behind us by then.
    await anyio.sleep(plan.calm / 4)
    begun = time.monotonic()
    await anyio.sleep(plan.calm)
    return begun


async def _came_to_its_end(plan: Plan, stage: Stage, expected: int) -> bool:
    """Wait until everything has, while anything still does, and until the queue is empty; False if it got stuck."""
    handled, quiet_since = await stage.handled(), time.monotonic()
    while handled < expected or (await stage.queues())["queue"]:
        await anyio.sleep(0.2)
        now = await stage.handled()
        if now > handled:
            handled, quiet_since = now, time.monotonic()
        if time.monotonic() - quiet_since > plan.patience:
            return False
    return True


def _arrivals(found: Found, downtimes: list[tuple[float, float]]) -> Arrivals:
    arrivals = Arrivals(downtimes=downtimes)
    for at in sorted(effect.at for effect in found.effects):
        arrivals.add(at)
    return arrivals
