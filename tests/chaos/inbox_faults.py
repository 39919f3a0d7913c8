"""What is broken while events flow, one thing after the other; and processes that are killed all the time."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import anyio
import anyio.to_thread

from tests.chaos.inbox_plan import Plan
from tests.chaos.inbox_stage import Stage
from tests.faults.proxy import FaultProxy
from tests.servers.postgresql import PrivatePostgreSQL
from tests.servers.rabbitmq import PrivateRabbitMQ

__all__ = ["Faults"]


class Faults:
    """The faults of one run."""

    def __init__(self, plan: Plan, stage: Stage, rng: random.Random, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._stage = stage
        self._rng = rng
        self._say = say
        self._spared_until = 0.0
        self.done: list[tuple[str, float]] = []
        """What was broken, and when."""
        self.downtimes: list[tuple[float, float]] = []
        """When a server was away."""
        self.kills: Counter[str] = Counter()
        """SIGKILLs by role."""
        self.ended: list[int] = []
        """Exit codes of relays that were stopped in order."""

    async def run(self) -> None:
        """Break and kill until what is left to be written is too little for one more round."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._kill)
            await self._break()
            tasks.cancel_scope.cancel()

    async def _kill(self) -> None:
        """SIGKILL a random relay or consumer again and again."""
        relays, consumers = self._stage.relays, self._stage.consumers
        while True:
            await anyio.sleep(self._plan.kill_every)
            if time.monotonic() < self._spared_until:
                continue
            at_work = consumers.at_work()
            if self._rng.random() < 0.5 and relays.running:
                relays.kill(self._rng.randrange(len(relays.running)))
                self.kills["relays"] += 1
            elif at_work:
                consumers.kill(self._rng.choice(at_work))
                self.kills["consumers"] += 1

    async def _break(self) -> None:
        """Do the planned faults in random order, round after round."""
        plan, actions = self._plan, self._actions()
        # The writers are busy for at least so long, less the calm that is over.
        last_round = time.monotonic() + plan.events / plan.rate - plan.calm - plan.round_seconds
        rounds = 0
        while plan.faults and (plan.rounds is None or rounds < plan.rounds):
            rounds += 1
            for fault in self._rng.sample(plan.faults, len(plan.faults)):
                self._say(fault)
                await actions[fault]()
                self.done.append((fault, time.monotonic()))
                await anyio.sleep(plan.between)
            if time.monotonic() > last_round:
                return

    def _actions(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return what to do for each fault."""
        stage, choice = self._stage, self._rng.choice
        databases = [way.database for way in (stage.shared, *stage.own)]
        brokers = [way.broker for way in (stage.shared, *stage.own)]
        return {
            "cut PostgreSQL": lambda: self._cut(databases),
            "cut RabbitMQ": lambda: self._cut(brokers),
            "strand PostgreSQL": lambda: self._strand(databases),
            "strand RabbitMQ": lambda: self._strand(brokers),
            "strand a consumer's PostgreSQL": lambda: self._strand([choice(stage.own).database]),
            "strand a consumer's RabbitMQ": lambda: self._strand([choice(stage.own).broker]),
            "restart RabbitMQ": lambda: self._restart(stage.rabbitmq),
            "restart PostgreSQL": lambda: self._restart(stage.postgresql),
            "stop a consumer in order": lambda: stage.consumers.replace(choice(range(stage.consumers.count))),
            "stop a relay in order": self._replace_a_relay,
        }

    async def _cut(self, proxies: list[FaultProxy]) -> None:
        for proxy in proxies:
            await proxy.cut()

    async def _strand(self, proxies: list[FaultProxy]) -> None:
        self._spared_until = time.monotonic() + self._plan.between
        for proxy in proxies:
            proxy.strand()

    async def _restart(self, server: PrivatePostgreSQL | PrivateRabbitMQ) -> None:
        begun = time.monotonic()
        await anyio.to_thread.run_sync(server.restart)
        self.downtimes.append((begun, time.monotonic()))

    async def _replace_a_relay(self) -> None:
        self.ended.append(await self._stage.relays.stop())
        self._stage.relays.start()
