"""A scenario: its name, what it shows, the services it needs; and how one is played."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

from examples.streamtech.deployment import Deployment
from examples.streamtech.scenarios.books import Opening, complaints, leftovers, opening
from examples.streamtech.scenarios.chronicle import Chronicle
from examples.streamtech.scenarios.stage import PATIENCE, Stage
from examples.streamtech.services import FULFILMENT, Service
from sagapost.core import Event


@dataclass(frozen=True, slots=True)
class Scenario:
    """One story."""

    name: str
    play: Callable[[Stage], Awaitable[None]]
    services: tuple[Service, ...] = FULFILMENT

    @property
    def shows(self) -> str:
        """What it is about, in a line."""
        return (self.play.__doc__ or "").strip()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a story ended."""

    timeline: list[Event]
    expected: dict[str, object]
    """What the services' own data should say."""
    found: dict[str, object]
    """What it says."""
    books: list[str]
    """What does not agree between the services."""

    @property
    def complaints(self) -> list[str]:
        """What should not be, in sentences."""
        wrong = (name for name, value in self.expected.items() if self.found.get(name) != value)
        different = [f"{name}: expected {self.expected[name]!r}, found {self.found.get(name)!r}." for name in wrong]
        return different + self.books


async def run(scenario: Scenario, deployment: Deployment, say: Callable[[str], None]) -> Outcome:
    """Play a scenario on a running deployment, which goes on running; then compare the books of all services."""
    chronicle = Chronicle(deployment.broker)
    shop = any(service.name == "warehouse" for service in deployment.services)
    before = await opening(deployment) if shop else Opening.empty()
    stage = Stage(deployment, say, before)
    async with anyio.create_task_group() as tasks:
        await tasks.start(chronicle.run)
        if shop:
            await stage.courier(1000)
        await scenario.play(stage)
        left = await settled(deployment)
        books = await complaints(deployment, before) if shop else []
        timeline = chronicle.of(stage.saga) if stage.saga is not None else []
        tasks.cancel_scope.cancel()
    return Outcome(timeline, stage.expected, stage.found, books + left)


async def settled(deployment: Deployment) -> list[str]:
    """Wait until nothing is on its way any more; return what still is when patience ends."""
    left: list[str] = []
    with anyio.move_on_after(PATIENCE):
        while left := await leftovers(deployment):
            deployment.check()
            await anyio.sleep(0.03)
    return left
