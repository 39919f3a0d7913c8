"""Outages of the broker and the database, hours of them, in virtual time: nothing is burned, lost or forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import anyio
import pytest

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.broker import Queue
from sagapost.core.envelope import Event
from sagapost.core.errors import SchemaError
from sagapost.core.life import ServerLost, ServerReady
from sagapost.core.observer import Observation
from sagapost.core.outbox_store import Claims, Partition, Published
from sagapost.outbox.relay import Relay, RelaySettings
from sagapost.outbox.relay import observations as obs
from tests.relay.fake_store import FakeDatabase, FakeStore
from tests.relay.shop import EVERYTHING, Watch
from tests.relay.virtual_time import VIRTUAL_TIME, LoopClock

HOUR = 3600.0
SECONDS_TO_RESUME = 6.0
"""The cap of the reconnect backoff, and a poll."""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Hours pass at once."""
    return VIRTUAL_TIME


class Scene:
    """A database, a broker with one queue that hears everything, and a relay between them."""

    def __init__(self, *, settings: RelaySettings | None = None) -> None:
        self.database = FakeDatabase()
        self.broker = MemoryBroker()
        self.watch = Watch()
        self.settings = settings if settings is not None else RelaySettings()

    def relay(self) -> Relay:
        """One more relay."""
        return Relay(
            FakeStore(self.database), self.broker, settings=self.settings, observer=self.watch, clock=LoopClock()
        )

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Relay, None]:
        """Run a relay for the block, and stop it gracefully."""
        await self.broker.declare(EVERYTHING)
        async with anyio.create_task_group() as tasks:
            relay = self.relay()
            tasks.start_soon(relay.run)
            yield relay
            relay.stop()

    def delivered(self) -> int:
        """Messages in the queue, duplicates included."""
        return len(self.broker.waiting(EVERYTHING.name))


async def test_pitfall_12_an_hour_without_the_broker_burns_no_attempt() -> None:
    """More connection attempts fail than a message may have; no row is touched, and all flow within seconds."""
    scene = Scene()
    async with scene.running():
        scene.broker.go_down()
        scene.database.write("a", "b", None, "a")
        await anyio.sleep(HOUR)
        assert scene.watch.lost("broker") > 20 * scene.settings.max_attempts
        assert [row.attempts for row in scene.database.rows.values()] == [0, 0, 0, 0]
        assert scene.database.dead == {}
        scene.broker.come_up()
        await anyio.sleep(SECONDS_TO_RESUME)
        assert scene.database.rows == {}
    assert scene.delivered() == 4


async def test_an_idle_relay_notices_a_lost_broker_and_is_back_before_the_next_event() -> None:
    """Without anything to send it reconnects as soon as the broker is there; the next event does not wait for that."""
    scene = Scene()
    async with scene.running():
        await scene.watch.until(lambda: scene.watch.count(obs.Idle) > 0)
        scene.broker.go_down()
        await anyio.sleep(HOUR)
        assert scene.watch.lost("broker") > 0
        scene.broker.come_up()
        await anyio.sleep(SECONDS_TO_RESUME)
        assert scene.watch.count(obs.BrokerReady) == 2
        lost = scene.watch.lost("broker")
        scene.database.write("a")
        await anyio.sleep(SECONDS_TO_RESUME)
        assert scene.watch.lost("broker") == lost
    assert scene.delivered() == 1


async def test_a_connection_that_lived_begins_the_backoff_anew() -> None:
    """An idle relay whose connection is dropped now and then waits as after a first failure, each time."""
    scene = Scene()
    async with scene.running():
        for _ in range(5):
            await anyio.sleep(90)
            scene.broker.disconnect()
        await anyio.sleep(SECONDS_TO_RESUME)
    assert [event.attempt for event in scene.watch.events if isinstance(event, ServerLost)] == [1] * 5


async def test_leases_in_doubt_stop_the_sending_and_keep_the_connection() -> None:
    """A database that stalls past the lease: nothing new goes out meanwhile, and what is on its way counts."""
    scene = Scene(settings=RelaySettings(serial_keys=True))
    async with scene.running():
        await scene.watch.until(lambda: scene.watch.count(obs.Idle) > 0)
        scene.broker.hold_confirms()
        scene.database.write("a", "a", "b")
        await scene.watch.until(lambda: scene.watch.count(obs.Sent) > 0)
        scene.database.stalled = True
        await anyio.sleep(2 * scene.settings.lease_ttl.total_seconds())
        scene.broker.release_confirms()
        await anyio.sleep(1)
        assert scene.delivered() == 2
        scene.database.stalled = False
        scene.database.flow.set()
        await anyio.sleep(SECONDS_TO_RESUME)
        assert scene.database.rows == {}
    assert scene.delivered() == 3
    assert scene.watch.count(obs.BrokerReady) == 1


async def test_an_hour_without_the_database_costs_no_duplicate() -> None:
    """What was confirmed before the outage is deleted after it; the rest flows within seconds."""
    scene = Scene()
    async with scene.running():
        await scene.watch.until(lambda: scene.watch.count(obs.Idle) > 0)
        scene.broker.hold_confirms()
        scene.database.write("a", "b", "a")
        await scene.watch.until(lambda: scene.watch.count(obs.Sent) > 0)
        scene.database.down = True
        scene.broker.release_confirms()
        scene.database.write("c")
        await anyio.sleep(HOUR)
        assert len(scene.database.rows) == 4
        scene.database.down = False
        await anyio.sleep(SECONDS_TO_RESUME)
        assert scene.database.rows == {}
    assert scene.delivered() == 4


async def test_an_hour_under_a_resource_alarm_costs_no_duplicate() -> None:
    """The broker takes nothing in and answers nothing: the relay waits, with its memory bounded."""
    scene = Scene(settings=RelaySettings(max_in_flight=100, page_rows=50, batch_rows=10))
    async with scene.running() as relay:
        scene.broker.pause()
        scene.database.write(*("abcdefghij" * 100))
        await anyio.sleep(HOUR)
        assert relay.statistics.in_flight <= 100
        assert scene.watch.count(obs.Blocked) == 1
        scene.broker.resume()
        await anyio.sleep(SECONDS_TO_RESUME)
        assert scene.database.rows == {}
    assert scene.delivered() == 1_000


async def test_both_away_and_back_in_any_order() -> None:
    """A power cut of the whole site."""
    scene = Scene()
    async with scene.running():
        for broker_first in (True, False):
            scene.database.write("a", "b")
            scene.broker.go_down()
            scene.database.down = True
            await anyio.sleep(HOUR)
            if broker_first:
                scene.broker.come_up()
                await anyio.sleep(60)
                scene.database.down = False
            else:
                scene.database.down = False
                await anyio.sleep(60)
                scene.broker.come_up()
            await anyio.sleep(2 * SECONDS_TO_RESUME)
            assert scene.database.rows == {}


async def test_a_stop_while_the_broker_is_away_still_deletes_what_was_confirmed() -> None:
    """Rows wait for their deletion, the broker goes, the relay is told to stop: no duplicate for its successor."""
    scene = Scene()
    async with scene.running() as relay:
        await scene.watch.until(lambda: scene.watch.count(obs.Idle) > 0)
        scene.database.no_deletes = True
        scene.database.write("a", "b")
        await scene.watch.until(lambda: scene.watch.count(obs.Published) == 1)
        scene.broker.go_down()
        scene.database.write("c")
        await scene.watch.until(lambda: scene.watch.lost("broker") > 0)
        relay.stop()
        await anyio.sleep(1)
        scene.database.no_deletes = False
    assert list(scene.database.rows) == [3]
    assert scene.delivered() == 2


async def test_a_stop_ends_within_its_budget_whatever_is_away() -> None:
    """Neither server answers: the drain budget, and the bounded goodbye, and then it ends."""
    scene = Scene(settings=RelaySettings(drain_timeout=timedelta(seconds=3)))
    async with scene.running() as relay:
        await scene.watch.until(lambda: scene.watch.count(obs.Idle) > 0)
        scene.broker.hold_confirms()
        scene.database.write("a", "b")
        await scene.watch.until(lambda: scene.watch.count(obs.Sent) > 0)
        scene.database.stalled = True
        relay.stop()
        asked = anyio.current_time()
        await scene.watch.until(lambda: scene.watch.count(obs.RelayStopped) > 0)
        assert anyio.current_time() - asked < 15
    (stopped,) = [event for event in scene.watch.events if isinstance(event, obs.RelayStopped)]
    assert stopped.left_in_flight == 2
    assert len(scene.database.rows) == 2


async def test_held_keys_are_bounded_and_the_bound_is_no_trap() -> None:
    """With as many held keys as the relay keeps in mind it reads nothing new, lives on, and clears them when it can.

    The loop must not spin meanwhile: in virtual time a busy loop would never let the clock move.
    """
    scene = Scene(settings=RelaySettings(max_held_keys=2))
    only = Queue("only", frozenset({"good"}))
    await scene.broker.declare(only)
    async with anyio.create_task_group() as tasks:
        relay = scene.relay()
        tasks.start_soon(relay.run)
        for key in "abcde":
            scene.database.write(key, topic="bad")
        scene.database.write("f", topic="good")
        await anyio.sleep(30)
        assert relay.statistics.held_keys >= 2
        assert [e.saturated for e in scene.watch.events if isinstance(e, obs.Saturated)][:1] == [True]
        await scene.broker.declare(Queue("only", frozenset({"good", "bad"})))
        await anyio.sleep(200)
        assert scene.database.rows == {}
        assert [e.saturated for e in scene.watch.events if isinstance(e, obs.Saturated)][-1] is False
        relay.stop()


async def test_refused_messages_back_off_and_die_after_their_attempts() -> None:
    """Exponential waits with jitter up to the cap: about a quarter hour with the defaults, then a dead letter."""
    scene = Scene()
    scene.broker.refuse(lambda _event: True)
    async with scene.running():
        scene.database.write("a")
        await scene.watch.until(lambda: scene.watch.count(obs.Buried) == 1, within=HOUR)
    held = [event for event in scene.watch.events if isinstance(event, obs.Held)]
    assert [event.attempt for event in held] == list(range(1, scene.settings.max_attempts))
    for event in held:
        assert event.retry_in <= 60
        assert event.retry_in >= 0.5 * min(2 ** (event.attempt - 1), 60)
    assert 7 * 60 < sum(event.retry_in for event in held) < 20 * 60
    assert list(scene.database.dead) == [1]


async def test_a_refusal_that_is_written_down_slowly_is_retried_when_due() -> None:
    """The relay falls asleep meanwhile, for there is nothing to read; its sleep ends with the wait of the retry."""
    scene = Scene(settings=RelaySettings(poll_interval=timedelta(hours=1)))
    scene.broker.refuse(lambda _event: True)
    scene.database.slow_refusals = 5.0
    async with scene.running():
        scene.database.write("a")
        await scene.watch.until(lambda: scene.watch.count(obs.Idle) > 0)
        await scene.watch.until(lambda: scene.watch.count(obs.Held) == 3, within=60)


async def test_what_follows_a_dead_letter_does_not_wait_for_the_next_poll() -> None:
    """Policy `skip`: the followers that were seen meanwhile go as soon as the row is buried, asleep or not."""
    scene = Scene(settings=RelaySettings(poll_interval=timedelta(hours=1), max_attempts=1, on_dead="skip"))
    refused: list[str] = []

    def first(event: Event) -> bool:
        refused.append(event.id)
        return event.id == refused[0]

    scene.broker.refuse(first)
    scene.database.slow_refusals = 5.0
    async with scene.running():
        scene.database.write("a", "a", "a")
        await scene.watch.until(lambda: scene.watch.settled == 2, within=60)
    assert list(scene.database.dead) == [1]


@pytest.mark.parametrize("outage", [False, True], ids=["at work", "after an outage"])
async def test_a_relay_ends_when_its_tables_come_to_be_of_another_version(*, outage: bool) -> None:
    """Somebody upgraded them while it runs: two versions side by side would take each other's leases."""
    scene = Scene()
    await scene.broker.declare(EVERYTHING)
    ended: list[BaseException] = []

    async def run() -> None:
        try:
            await scene.relay().run()
        except* SchemaError as errors:
            ended.extend(errors.exceptions)

    with anyio.fail_after(SECONDS_TO_RESUME if outage else 90):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await scene.watch.until(lambda: scene.watch.count(obs.Idle) > 0)
            scene.database.schema = 2
            if outage:
                scene.broker.disconnect()
    (error,) = ended
    assert "has sagapost schema version 2, this release needs 1. Upgrade the sagapost package" in str(error)
    assert scene.database.relays == {}, "its partitions are handed over"


class _Hostile:
    """Raises at every report what would end a task, or a process; a watch behind it sees them all."""

    def __init__(self, watch: Watch, error: type[BaseException]) -> None:
        self._watch = watch
        self._error = error

    def notify(self, event: Observation, /) -> None:
        """Take note, and raise."""
        self._watch.notify(event)
        raise self._error


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, GeneratorExit, ZeroDivisionError])
async def test_an_observer_that_raises_ends_no_part(error: type[BaseException]) -> None:
    """Every part reports something here, outages included, and every part goes on: all is published and deleted."""
    scene = Scene(settings=RelaySettings(sweep_interval=timedelta(seconds=1)))
    await scene.broker.declare(EVERYTHING)
    relay = Relay(
        FakeStore(scene.database),
        scene.broker,
        settings=scene.settings,
        observer=_Hostile(scene.watch, error),
        clock=LoopClock(),
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(relay.run)
        for _ in range(2):
            scene.database.write("a", "b", None, "a")
            await anyio.sleep(SECONDS_TO_RESUME)
            scene.broker.go_down()
            scene.database.down = True
            await anyio.sleep(2 * scene.settings.lease_ttl.total_seconds())
            scene.broker.come_up()
            scene.database.down = False
            await anyio.sleep(SECONDS_TO_RESUME)
        assert scene.database.rows == {}
        assert relay.statistics.settled == 8
        relay.stop()
    assert scene.delivered() == 8
    for kind in (obs.LeasesChanged, obs.Fetched, obs.Sent, obs.Published, obs.Settled, ServerLost, ServerReady):
        assert scene.watch.count(kind), kind
    assert scene.watch.count(obs.RelayStopped) == 1


class _CancellingStore(FakeStore):
    """A store of somebody else's, whose delete raises a CancelledError that nobody asked for."""

    async def delete_published(self, rows: Mapping[Partition, Sequence[Published]], claims: Claims) -> int:
        """Fail as a future does that was cancelled elsewhere."""
        raise asyncio.CancelledError


async def test_no_part_of_a_relay_ends_in_silence() -> None:
    """Were it taken for a cancellation, the relay would publish on and never delete what it published."""
    scene = Scene()
    await scene.broker.declare(EVERYTHING)
    scene.database.write("a")
    relay = Relay(_CancellingStore(scene.database), scene.broker, settings=scene.settings, clock=LoopClock())
    with pytest.raises(ExceptionGroup) as caught, anyio.fail_after(60):
        await relay.run()
    assert caught.group_contains(RuntimeError, match="relay's settlement ended with CancelledError")
