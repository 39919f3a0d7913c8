"""An event that nobody listens to (docs/adr/0010), for hours, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import anyio
import pytest

from sagapost.core.broker import Queue
from sagapost.outbox.relay import Relay, RelaySettings, Routing
from sagapost.outbox.relay import observations as obs
from tests.relay.rows import TOPIC
from tests.relay.test_outages import HOUR, Scene
from tests.relay.virtual_time import VIRTUAL_TIME

HOURS = 2 * HOUR
PATIENT = RelaySettings(
    poll_interval=timedelta(minutes=1), sweep_interval=timedelta(minutes=10), lease_ttl=timedelta(minutes=10)
)
"""The default attempts and waits; the loops that have nothing to do with them turn less often."""
CAP = 60.0
"""The longest wait between two attempts, by default."""
LISTENERS = Queue("listeners", frozenset({TOPIC}))
OTHERS = Queue("others", frozenset({"others"}))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Hours pass at once."""
    return VIRTUAL_TIME


@asynccontextmanager
async def relaying(scene: Scene) -> AsyncGenerator[Relay, None]:
    """Run a relay for the block, with no queue but one for other topics."""
    await scene.broker.declare(OTHERS)
    async with anyio.create_task_group() as tasks:
        relay = scene.relay()
        tasks.start_soon(relay.run)
        yield relay
        relay.stop()


async def test_it_waits_and_flows_in_order_once_somebody_listens() -> None:
    """The consumer is deployed hours after the publisher: nothing is dead, nobody has to redrive anything."""
    scene = Scene(settings=PATIENT)
    async with relaying(scene):
        scene.database.write("a", "b", None)
        scene.database.write("a", topic="others")
        scene.database.write("c", topic="others")
        await anyio.sleep(HOURS)
        assert scene.database.dead == {}
        assert [row.key for row in scene.database.rows.values()] == ["a", "b", None, "a"]
        assert len(scene.broker.waiting(OTHERS.name)) == 1
        await scene.broker.declare(LISTENERS)
        await anyio.sleep(CAP + 5)
        assert scene.database.rows == {}
    assert len(scene.broker.waiting(LISTENERS.name)) == 3
    assert len(scene.broker.waiting(OTHERS.name)) == 2
    assert scene.watch.count(obs.Overtaken) == 0


async def test_one_that_finds_a_listener_lets_the_others_go_at_once() -> None:
    """Those that have waited longest would be tried last: an event of today shows them that somebody is there."""
    scene = Scene(settings=PATIENT)
    async with relaying(scene):
        scene.database.write("a", "b", None)
        await anyio.sleep(HOURS)
        await scene.broker.declare(LISTENERS)
        scene.database.write("c")
        await scene.watch.until(lambda: scene.watch.settled > 0, within=CAP + 5)
        await scene.watch.until(lambda: not scene.database.rows, within=CAP / 10)
    assert len(scene.broker.waiting(LISTENERS.name)) == 4


async def test_waiting_leaves_attempts_for_real_refusals() -> None:
    """After hours of nobody listening a queue that is full for a moment does not make it a dead letter."""
    scene = Scene(settings=PATIENT)
    async with relaying(scene):
        scene.database.write("a")
        await anyio.sleep(HOURS)
        assert [row.attempts for row in scene.database.rows.values()] == [scene.settings.max_attempts // 2]
        scene.broker.refuse(lambda _event: True)
        await scene.broker.declare(LISTENERS)
        await anyio.sleep(5 * CAP)
        assert scene.watch.count(obs.Buried) == 0
        scene.broker.refuse(lambda _event: False)
        await anyio.sleep(CAP + 5)
        assert scene.database.rows == {}


async def test_it_asks_no_more_often_than_the_cap_says() -> None:
    """One a minute or, with the jitter of a half, at most two; not one a second, nor all over after each sweep."""
    scene = Scene(settings=PATIENT)
    async with relaying(scene):
        scene.database.write("a")
        await anyio.sleep(HOURS)
    assert HOURS / CAP - 5 <= scene.watch.count(obs.Held) <= 2.2 * HOURS / CAP


async def test_where_it_is_to_be_buried_it_is() -> None:
    """The other choice: a dead letter after its attempts, which a person sees in the list of them."""
    scene = Scene(settings=RelaySettings(on_unroutable="bury"))
    async with relaying(scene):
        scene.database.write("a")
        await scene.watch.until(lambda: scene.watch.count(obs.Buried) == 1, within=HOUR)
    assert list(scene.database.dead) == [1]


@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_a_small_budget_does_not_change_what_waiting_means(attempts: int) -> None:
    """Also where half of the attempts is none."""
    scene = Scene(settings=replace(PATIENT, max_attempts=attempts))
    async with relaying(scene):
        scene.database.write("a")
        await anyio.sleep(HOUR)
        assert scene.watch.count(obs.Held) <= 2.2 * HOUR / CAP
        assert scene.database.dead == {}
        assert len(scene.database.rows) == 1


async def test_what_nobody_has_to_hear_waits_for_nobody() -> None:
    """A type named as optional goes out to nobody, and the later events of its key follow at once."""
    scene = Scene(settings=RelaySettings(routing=Routing(optional=frozenset({TOPIC}))))
    async with relaying(scene):
        scene.database.write("a")
        scene.database.write("a", topic="others")
        await scene.watch.until(lambda: scene.watch.settled == 2)
    assert len(scene.broker.waiting(OTHERS.name)) == 1
    assert scene.watch.count(obs.Held) == 0
