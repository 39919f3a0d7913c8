"""The tracker on a database: the same fold as in memory, whatever the batches, the order, and who else folds."""

from __future__ import annotations

import random
from datetime import timedelta

import anyio
import msgspec
import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError
from sagapost.sagas.choreography import Choreography
from sagapost.sagas.events import CompensationDone, RollbackStarted, RolledBack
from sagapost.sagas.testing.clock import VirtualClock
from sagapost.sagas.tracker import SagaState, Tracker, TrackerSettings, fold
from tests.sagas.choreographies import healthy
from tests.sagas.tracker.histories import START, Story

pytestmark = pytest.mark.anyio

CHOREOGRAPHY = Choreography(healthy())
SETTINGS = TrackerSettings(keys=("order_id",))


async def a_tracker(engine: AsyncEngine, settings: TrackerSettings = SETTINGS) -> Tracker:
    tracker = Tracker(engine, CHOREOGRAPHY, settings=settings, clock=VirtualClock(START))
    await tracker.install()
    return tracker


def many(count: int) -> list[Event]:
    """Sagas of every kind: completed, undone, in progress."""
    events: list[Event] = []
    for n in range(count):
        story = Story(f"saga-{n:03}", start=START - timedelta(minutes=n))
        story.says("orders", "order-placed", data={"order_id": str(4700 + n)})
        if n % 3:
            story.says("payment", "payment-taken")
        if n % 3 == 2:
            story.says("warehouse", "item-missing")
            story.says("orders", "order-cancelled")
            story.says("payment", RollbackStarted("payment", "missing", 1))
            story.says("payment", CompensationDone("payment", "refund", 0))
            story.says("payment", RolledBack("payment"))
        events += story.events
    return events


async def assert_all_folded(tracker: Tracker, events: list[Event]) -> None:
    expected = fold(events, CHOREOGRAPHY, keys=["order_id"])
    assert {saga: await tracker.show(saga) for saga in expected} == expected


async def test_shuffled_duplicated_batches_fold_like_the_history_in_memory(engine: AsyncEngine) -> None:
    """Random batches in random order with repetitions; folding everything once more changes nothing."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    tracker, events = await a_tracker(engine), many(30)
    arrivals = events + rng.sample(events, 20)
    rng.shuffle(arrivals)
    while arrivals:
        size = rng.randint(1, 40)
        await tracker.fold(arrivals[:size])
        del arrivals[:size]
    await assert_all_folded(tracker, events)
    # A tracker that knows nothing by heart: everything is read from the database, and nothing changes.
    again = await a_tracker(engine)
    assert await again.fold(events) == 0
    assert await again.refold() == 30
    await assert_all_folded(again, events)


async def test_trackers_that_fold_at_once_lose_nothing_of_each_other(engine: AsyncEngine) -> None:
    """Two trackers with memories of their own take turns on the same sagas."""
    events = many(20)
    trackers = [await a_tracker(engine), await a_tracker(engine)]

    async def work(tracker: Tracker, part: list[Event]) -> None:
        for start in range(0, len(part), 5):
            await tracker.fold(part[start : start + 5])

    async with anyio.create_task_group() as tasks:
        for n, tracker in enumerate(trackers):
            tasks.start_soon(work, tracker, events[n::2])
    await assert_all_folded(trackers[0], events)


async def test_lists_are_by_state_lateness_and_page(engine: AsyncEngine) -> None:
    """Newest first; a page begins where the one before ended."""
    tracker = await a_tracker(engine)
    await tracker.fold(many(9))
    assert await tracker.counts() == {SagaState.RUNNING: 6, SagaState.ROLLED_BACK: 3}
    first = await tracker.sagas(limit=4)
    rest = await tracker.sagas(before=first[-1])
    assert [row.saga for row in first + rest] == [f"saga-{n:03}" for n in range(9)]
    assert first[0].keys == (("order_id", "4700"),)
    undone = await tracker.sagas(states=[SagaState.ROLLED_BACK])
    assert [row.saga for row in undone] == ["saga-002", "saga-005", "saga-008"]
    assert undone[0].due is None
    assert await tracker.sagas(late=True) == []
    tracker.clock = VirtualClock(START + timedelta(minutes=54, seconds=30))
    assert [row.saga for row in await tracker.sagas(late=True)] == ["saga-006", "saga-007"]


async def test_a_saga_is_found_by_its_business_key(engine: AsyncEngine) -> None:
    """By value alone, or by name and value."""
    tracker = await a_tracker(engine)
    await tracker.fold(many(20))
    assert await tracker.find("4711") == ["saga-011"]
    assert await tracker.find("4711", name="order_id") == ["saga-011"]
    assert await tracker.find("4711", name="customer") == []
    assert await tracker.find("nothing") == []


async def test_what_is_over_for_long_is_forgotten_and_stays_so(engine: AsyncEngine) -> None:
    """Ended sagas go after the retention, silent ones much later; old events of unknown sagas do not revive them."""
    settings = TrackerSettings(retention=timedelta(days=1), silent_retention=timedelta(days=7))
    tracker = await a_tracker(engine, settings)
    events = many(9)
    await tracker.fold(events)
    tracker.clock = VirtualClock(START + timedelta(days=2))
    assert await tracker.prune(chunk=2) == 3
    assert await tracker.counts() == {SagaState.RUNNING: 6}
    tracker.clock = VirtualClock(START + timedelta(days=8))
    assert await tracker.prune() == 6
    assert await tracker.fold(events) == 0
    async with engine.connect() as connection:
        observed = await connection.execute(select(func.count()).select_from(tracker.tables.observed))
    assert observed.scalar_one() == 0, "what was observed outlives every saga"
    assert await tracker.counts() == {}
    assert await tracker.find("4700") == []


async def test_what_was_observed_is_compared_with_what_is_declared(engine: AsyncEngine) -> None:
    """Services without a manifest, events that are not declared, declarations that never happen."""
    tracker = await a_tracker(engine)
    story = Story()
    story.says("orders", "order-placed")
    story.says("payment", "fraud-suspected")
    story.says("loyalty", "points-awarded")
    await tracker.fold(story.events)
    found = await tracker.differences()
    assert [(item.kind, item.service, item.event) for item in found if item.saga == story.saga] == [
        ("unknown-service", "https://loyalty.example", "points-awarded"),
        ("undeclared", "payment", "fraud-suspected"),
    ]
    assert ("never-published", "payment", "payment-taken") in [(item.kind, item.service, item.event) for item in found]


async def test_a_history_is_bounded(engine: AsyncEngine) -> None:
    """The newest events are kept, the start is remembered, and the row says that it is not whole."""
    tracker = await a_tracker(engine, TrackerSettings(max_events=10))
    story = Story()
    story.says("orders", "order-placed")
    for _ in range(30):
        story.says("payment", "payment-taken")
    await tracker.fold(story.events[20:])
    await tracker.fold(story.events[:20])
    view = await tracker.show(story.saga)
    assert view is not None
    assert [entry.id for entry in view.history] == [event.id for event in story.events[-10:]]
    assert view.started == story.events[0].time
    assert view.truncated


async def test_a_changed_choreography_derives_every_saga_anew_once(engine: AsyncEngine) -> None:
    """Without manifests an end is not known as one; with them it is, also for whoever asks without them."""
    await a_tracker(engine)
    bare, story = Tracker(engine), Story()
    await bare.fold(story.completed())
    assert await bare.counts() == {SagaState.RUNNING: 1}
    tracker = Tracker(engine, CHOREOGRAPHY)
    assert await tracker.adopt() == 1
    assert await tracker.adopt() == 0
    assert await bare.counts() == {SagaState.COMPLETED: 1}
    await bare.recall()
    assert await bare.show(story.saga) == await tracker.show(story.saga)


async def test_events_outside_sagas_are_passed_over(engine: AsyncEngine) -> None:
    """Without a correlation id an event counts only if it is declared to start a saga; then its id is the saga's."""
    tracker = await a_tracker(engine)
    story = Story()
    placed = story.says("orders", "order-placed")
    alone = msgspec.structs.replace(placed, correlationid=None, id="the-order")
    stranger = msgspec.structs.replace(placed, correlationid=None, type="weather-changed")
    assert await tracker.fold([alone, stranger]) == 1
    view = await tracker.show("the-order")
    assert view is not None
    assert view.state is SagaState.RUNNING
    assert await tracker.show(stranger.id) is None


def test_settings_that_make_no_sense_are_refused() -> None:
    """The error names the setting."""
    with pytest.raises(ConfigurationError, match="silent_retention"):
        TrackerSettings(retention=timedelta(days=30), silent_retention=timedelta(days=1))
    with pytest.raises(ConfigurationError, match="max_events"):
        TrackerSettings(max_events=0)
