"""A scenario: its name, what it shows, the services it needs; and how one is played."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

import anyio

from examples.streamtech.deployment import Deployment, Tracked
from examples.streamtech.scenarios.books import Opening, complaints, leftovers, opening
from examples.streamtech.scenarios.stage import PATIENCE, Stage
from examples.streamtech.scenarios.tracked import disagreements, ends
from examples.streamtech.services import FULFILMENT
from sagapost import Service
from sagapost.sagas.tracker import SagaView

_HEARSAY = 10.0
"""Seconds until everything that was published is handled."""


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

    view: SagaView | None
    """The saga as a tracker sees it; None where there is none."""
    expected: dict[str, object]
    """What the services' own data should say."""
    found: dict[str, object]
    """What it says."""
    books: list[str]
    """What does not agree between the services, or between them and the tracker."""

    @property
    def complaints(self) -> list[str]:
        """What should not be, in sentences."""
        wrong = (name for name, value in self.expected.items() if self.found.get(name) != value)
        different = [f"{name}: expected {self.expected[name]!r}, found {self.found.get(name)!r}." for name in wrong]
        return different + self.books


async def run(scenario: Scenario, deployment: Deployment, say: Callable[[str], None]) -> Outcome:
    """Play a scenario on a running deployment, which goes on running; then compare the books of all services."""
    shop = any(service.name == "warehouse" for service in deployment.services)
    before = await opening(deployment) if shop else Opening.empty()
    earlier = await ends(deployment)
    stage = Stage(deployment, say, before)
    async with deployment.tracking() as tracker:
        if shop:
            await stage.courier(1000)
        await scenario.play(stage)
        complained = await settled(deployment)
        complained += await complaints(deployment, before) if shop else []
        views, different = await tracked(deployment, tracker, earlier=earlier)
        complained += different
    view = views.get(stage.saga) if stage.saga is not None else None
    return Outcome(view, stage.expected, stage.found, complained)


async def tracked(
    deployment: Deployment, tracker: Tracked, *, earlier: Collection[str] = ()
) -> tuple[Mapping[str, SagaView], list[str]]:
    """Ask a tracker once nothing more is published; return the sagas, and where the services have something else."""
    views: Mapping[str, SagaView] = {}
    different: list[str] = []
    with anyio.move_on_after(_HEARSAY):
        while True:
            views = await tracker(await ends(deployment))
            different = await disagreements(deployment, views, earlier=earlier)
            if not different:
                break
            # What is published is in the tracker's queue, and soon in the tracker.
            await anyio.sleep(0.1)
    return views, different


async def settled(deployment: Deployment) -> list[str]:
    """Wait until nothing is on its way any more; return what still is when patience ends."""
    left: list[str] = []
    with anyio.move_on_after(PATIENCE):
        while left := await leftovers(deployment):
            deployment.check()
            await anyio.sleep(0.03)
    return left
