"""Pitfall 32 in the tracker: whatever one event holds, it stops nothing, and all others are folded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.envelope import Event
from sagapost.core.errors import StoreUnavailableError
from sagapost.core.ids import new_id
from sagapost.core.observer import Observation
from sagapost.sagas.choreography import Choreography
from sagapost.sagas.tracker import Tracker, TrackerConsumer, TrackerSettings, fold, lifecycle, timeline, tree
from sagapost.sagas.tracker import observations as obs
from sagapost.sagas.tracker import tracker as tracker_module
from sagapost.sagas.tracker.derive import derive
from sagapost.sagas.tracker.entries import pack, unpack
from tests.sagas.choreographies import healthy
from tests.sagas.tracker.histories import START, Story
from tests.sagas.tracker.test_consumer import publish, until_folded

pytestmark = pytest.mark.anyio

CHOREOGRAPHY = Choreography(healthy())
SETTINGS = TrackerSettings(keys=("order_id",))
LIFECYCLE_TYPES = sorted([*lifecycle.CLASSES, "sagapost.saga.of-a-later-release.v9"])
NUL = "4\x007"


class Seen:
    """Collects what is reported."""

    def __init__(self) -> None:
        self.passed_over: list[obs.PassedOver] = []

    def notify(self, event: Observation, /) -> None:
        if isinstance(event, obs.PassedOver):
            self.passed_over.append(event)

    def parts(self) -> dict[str | None, str]:
        return {report.event_id: report.part for report in self.passed_over}


def an_event(**attributes: Any) -> Event:
    event = Event(id=new_id(), source="https://orders.example", type="order-placed", time=START, correlationid="bad")
    return msgspec.structs.replace(event, **attributes)


def said(type_: str, data: bytes, **attributes: Any) -> Event:
    return an_event(type=f"sagapost.saga.{type_}.v1", data=data, **attributes)


def deep(levels: int) -> bytes:
    return b'{"service":' + b"[" * levels + b"]" * levels + b"}"


def flawed() -> dict[str, Event]:
    """Events that something is wrong with, by the part that is passed over."""
    started = b'{"service": "payment", "reason": "why", "compensations": %s}'
    data = [
        said("rollback-started", started % b"null"),
        said("rollback-started", started % b'"two"'),
        said("rollback-started", b'{"service": "payment", "compensations": 1}'),
        said("rollback-started", started % (b"9" * 400)),
        said("compensation-done", b'{"service": {"name": "payment"}, "compensation": [], "remaining": 1}'),
        said("task-opened", b'{"service": "p", "task": [1], "name": "n", "title": "t", "outcomes": []}'),
        said("task-ended", b"[]"),
        said("rolled-back", b""),
        said("rolled-back", b"\xff\xfe\x00"),
        said("rolled-back", b'"\xed\xa0\x80"'),
        said("island-step", deep(100_000)),
        said("rollback-requested", b'{"reason": 1e999, "by": "kim"}'),
    ]
    keys = [
        an_event(data=b'{"order_id": "4\\u00007"}'),
        an_event(data=b'{"order_id": "' + b"4" * 2**20 + b'"}'),
        an_event(data=b'{"order_id": ["4711"]}'),
        an_event(data=b'{"order_id": 4.7}'),
        an_event(data=b'{"other": ' + deep(100_000) + b', "order_id": "1"}'),
        an_event(partitionkey="k" * 300),
        an_event(partitionkey=NUL),
        an_event(subject=NUL),
        an_event(extensions={"sagakeys": "order=%00"}),
        an_event(extensions={"sagakeys": ",".join(f"k{n}=v" for n in range(40))}),
    ]
    events = [
        an_event(correlationid=NUL),
        an_event(correlationid="s" * 10_000),
        an_event(correlationid="half\ud800"),
        an_event(id="i" * 300),
        an_event(type="t" * 2**20),
        an_event(source=NUL),
        an_event(causationid="c" * 300),
        an_event(time=datetime(2026, 11, 1)),
        an_event(time=datetime.max.replace(tzinfo=UTC)),
        an_event(time=datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))),
    ]
    parts = (("data", data), ("key", keys), ("event", events))
    return {f"{part} {n}": event for part, found in parts for n, event in enumerate(found)}


def good(count: int = 6) -> list[Event]:
    events: list[Event] = []
    for n in range(count):
        story = Story(f"good-{n}", start=START + timedelta(minutes=n))
        events += story.completed() if n % 2 else [story.says("orders", "order-placed", data={"order_id": str(n)})]
    return events


async def test_pitfall_32_one_bad_event_stops_no_other(engine: AsyncEngine) -> None:
    """Each bad event alone is left out, or its bad part, and reported with its id; all else is folded, once."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    tracker, seen = Tracker(engine, CHOREOGRAPHY, settings=SETTINGS), Seen()
    await tracker.install()
    bad = flawed()
    batch = [*good(), *bad.values()]
    random.Random(seed).shuffle(batch)
    await tracker.fold(batch, observer=seen)
    expected = fold(good(), CHOREOGRAPHY, keys=["order_id"])
    shown = {saga: await tracker.show(saga) for saga in expected}
    for saga, view in expected.items():
        found = shown[saga]
        assert found is not None
        assert (found.state, found.ended, found.keys) == (view.state, view.ended, view.keys)
    assert seen.parts() == {event.id[:255]: name.partition(" ")[0] for name, event in bad.items()}
    # What can be kept of them is: the event is in the history, without what could not be read.
    kept = await tracker.show("bad")
    assert kept is not None
    assert {entry.id for entry in kept.history} == {
        event.id for name, event in bad.items() if not name.startswith("event")
    }
    assert await tracker.fold(batch) == 0
    assert await tracker.refold() == len(expected) + 1


async def test_pitfall_32_what_nobody_foresaw_is_found_half_by_half(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that breaks the fold, or that the database refuses, is found among a hundred; the others are folded."""
    tracker, seen = Tracker(engine, CHOREOGRAPHY), Seen()
    await tracker.install()
    events = good(50)
    breaks, refused = events[17], events[61]

    def fragile(saga: str, history: Any, route: Any) -> Any:
        view = derive(saga, history, route)
        if breaks.id in {entry.id for entry in history.entries}:
            raise ZeroDivisionError(f"nobody foresaw{chr(0)}this")
        if refused.id in {entry.id for entry in history.entries}:
            # Breaks a CHECK constraint of the table.
            return replace(view, ended=None if view.ended is not None else view.last)
        return view

    monkeypatch.setattr(tracker_module, "derive", fragile)
    await tracker.fold(events, observer=seen)
    monkeypatch.undo()
    assert seen.parts() == {breaks.id: "event", refused.id: "event"}
    reason = next(report.reason for report in seen.passed_over if report.event_id == breaks.id)
    assert reason == "ZeroDivisionError: nobody foresaw\ufffdthis"
    left = [event for event in events if event.id not in {breaks.id, refused.id}]
    expected = fold(left, CHOREOGRAPHY)
    for saga, view in expected.items():
        found = await tracker.show(saga)
        assert found is not None
        assert found.history == view.history


async def test_what_is_wrong_with_the_database_is_no_fault_of_an_event(engine: AsyncEngine) -> None:
    """Without its table nothing can be folded: that is published, and no event is passed over for it."""
    tracker, seen = Tracker(engine, CHOREOGRAPHY, settings=SETTINGS), Seen()
    await tracker.install()
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE tracker_observed RENAME TO away"))
    with pytest.raises(StoreUnavailableError):
        await tracker.fold(good(), observer=seen)
    assert seen.passed_over == []
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE away RENAME TO tracker_observed"))
    assert await tracker.fold(good(), observer=seen) == 6


async def test_pitfall_32_a_saga_that_cannot_be_derived_anew_stops_no_start(engine: AsyncEngine) -> None:
    """A history that cannot be read keeps its row, and is reported; the others are derived anew."""
    bare, seen = Tracker(engine), Seen()
    await bare.install()
    await bare.fold(good())
    async with engine.begin() as connection:
        damaged = {"history": b"\x00" * 9 + b"\xc1"}
        await connection.execute(text("UPDATE tracker_sagas SET history = :history WHERE saga = 'good-3'"), damaged)
    assert await Tracker(engine, CHOREOGRAPHY).adopt(observer=seen) == 5
    assert [(report.part, report.saga) for report in seen.passed_over] == [("saga", "good-3")]


async def test_pitfall_32_the_consumer_goes_on(engine: AsyncEngine) -> None:
    """At the head of the queue and among others: everything is acknowledged, and what is good is folded."""
    broker, seen = MemoryBroker(), Seen()
    tracker = Tracker(engine, CHOREOGRAPHY, settings=SETTINGS)
    await tracker.install()
    consumer, bad = TrackerConsumer(tracker, broker, observer=seen), list(flawed().values())
    await broker.declare(consumer.queue)
    await publish(broker, [*bad[:4], *good()[:4], *bad[4:], *good()[4:]])
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            later = Story("later").completed()
            await publish(broker, later)
            await until_folded(tracker, later)
            consumer.stop()
    assert set(seen.parts()) == {event.id[:255] for event in bad}
    assert await tracker.show("good-5") is not None


# --- fuzzed ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "service", "reason", "by", "compensations", "compensation", "remaining", "error", "attempts", "task", "name",
    "title", "outcomes", "state", "outcome", "island", "run", "steps", "step", "attempt",
]  # fmt: skip
SHAPES = st.one_of(
    st.binary(max_size=40),
    JSON.map(msgspec.json.encode),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8).map(msgspec.json.encode),
    # Nearly right: every field there, some of another kind.
    st.fixed_dictionaries({name: JSON | st.text(max_size=4) | st.integers(0, 9) for name in FIELDS}).map(
        msgspec.json.encode
    ),
)
EVENTS = st.builds(
    Event,
    id=st.text(max_size=20) | st.uuids().map(str),
    source=st.sampled_from(["https://payment.example", "", "urn:\x00"]) | st.text(max_size=20),
    type=st.sampled_from([*LIFECYCLE_TYPES, "order-placed", "payment-taken", "order-cancelled"]) | st.text(max_size=9),
    time=st.datetimes(timezones=st.none() | st.timezones()),
    data=SHAPES,
    correlationid=st.sampled_from(["bad", "good-0", "good-1"]) | st.none() | st.text(max_size=300),
    causationid=st.none() | st.sampled_from(["x", "y"]) | st.text(max_size=9),
    partitionkey=st.none() | st.text(max_size=300),
    subject=st.none() | st.text(max_size=300),
    extensions=st.dictionaries(st.just("sagakeys"), st.text(max_size=60), max_size=1),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=6))
def test_no_event_breaks_the_fold_or_what_shows_it(events: Sequence[Event]) -> None:
    """Whatever arrives: the fold ends, every saga can be shown, and what is kept can be written down and read."""
    seen = Seen()
    views = fold([*events, *good(2)], CHOREOGRAPHY, keys=["order_id", "service"], observer=seen)
    assert {"good-0", "good-1"} <= views.keys()
    for view in views.values():
        timeline(view, now=START)
        tree(view)
        msgspec.json.encode(view)
        assert "\x00" not in (view.reason or "")
        assert unpack(pack(view.history)) == view.history


async def test_what_the_fold_keeps_every_database_takes(engine: AsyncEngine) -> None:
    """Seeded: many random events; both databases take all that was read of them, in one transaction each."""
    seed = random.randrange(2**16)
    print(f"seed {seed}")
    found: list[Event] = []

    @settings(max_examples=120, deadline=None, database=None)
    @given(EVENTS)
    def collect(event: Event) -> None:
        found.append(event)

    collect()
    tracker, seen = Tracker(engine, CHOREOGRAPHY, settings=TrackerSettings(keys=("service", "name"))), Seen()
    await tracker.install()
    await tracker.fold(found, observer=seen)
    known = fold(found, CHOREOGRAPHY)
    expected = {saga for saga, view in known.items() if view.last > tracker.clock.now() - timedelta(days=180)}
    assert {row.saga for row in await tracker.sagas(limit=10_000)} >= expected
