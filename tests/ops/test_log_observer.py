"""What relays and consumers report becomes log lines: the right ones, at a rate a person can read."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from sagapost.core.life import ServerLost, ServerReady
from sagapost.core.observer import Observation
from sagapost.inbox.declared import observations as inbox
from sagapost.ops.log_lines import Line, line_for
from sagapost.ops.log_observer import LogObserver
from sagapost.outbox.relay import observations as relay

SILENT: set[type[Observation]] = {
    # Bases, and steps of a single message that say nothing `Handled` does not.
    relay.Relayed,
    inbox.Consuming,
    inbox.DeliveryStep,
    inbox.Received,
    inbox.Started,
    inbox.Claimed,
    inbox.HandlerReturned,
    inbox.Written,
    inbox.Screened,
    inbox.GroupStarted,
    inbox.GroupClaimed,
    inbox.GroupReturned,
    inbox.GroupWritten,
    inbox.GroupCommitted,
    inbox.GroupParked,
}

SAMPLES: dict[str, Any] = {
    "str": "text",
    "str | None": "text",
    "int": 3,
    "float": 0.5,
    "float | None": 0.5,
    "bool": True,
    "frozenset[int]": frozenset({1, 2}),
    "Mapping[str, int]": {"t.v1": 3},
}


def kinds(module: ModuleType) -> Iterator[type[Observation]]:
    """Return the observer events that a module declares."""
    for _, kind in inspect.getmembers(module, inspect.isclass):
        if issubclass(kind, Observation) and kind.__module__ == module.__name__:
            yield kind


def sample(kind: type[Observation]) -> Observation:
    """Return an event of this kind with some value in each field."""
    fields = {field.name: SAMPLES[str(field.type)] for field in dataclasses.fields(kind)}
    return kind(**fields)


ALL = [*kinds(relay), *kinds(inbox)]


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def observer(clock: Clock, caplog: pytest.LogCaptureFixture) -> LogObserver:
    """An observer that logs everything from DEBUG up."""
    caplog.set_level(logging.DEBUG, logger="test.relay")
    return LogObserver(logging.getLogger("test.relay"), monotonic=clock)


@pytest.mark.parametrize("kind", ALL)
def test_every_event_has_a_line_or_is_silent_on_purpose(kind: type[Observation]) -> None:
    """A new observer event cannot be forgotten here: it gets words, or a place in the list of silent ones."""
    line = line_for(sample(kind))
    assert (line is None) == (kind in SILENT)
    if line is not None:
        assert line.text
        assert line.level in {logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR}
        # Field names of a log record cannot be given as extra.
        logging.getLogger("x").makeRecord("x", line.level, "f", 1, line.text, (), None, extra=dict(line.extra))


@pytest.mark.parametrize("kind", [relay.Sent, relay.Published, relay.Settled, relay.Fetched, inbox.Acknowledged])
def test_what_comes_per_batch_is_debug_and_limited(kind: type[Observation]) -> None:
    """At INFO a busy relay is quiet; at DEBUG it stays readable."""
    line = line_for(sample(kind))
    assert line is not None
    assert line.level == logging.DEBUG
    assert line.every > 0


@pytest.mark.parametrize(
    ("event", "level", "words"),
    [
        (
            ServerLost("relay", "broker", "The broker is away.", 3, 1.25),
            logging.WARNING,
            "Attempt 3; next in 1.2 s",
        ),
        (
            ServerLost("relay", "database", "The database is away.", 1, 0.2),
            logging.WARNING,
            "Attempt 1; next in 0.2 s",
        ),
        (ServerLost("relay", "database", "The database is away.", 0, 0.0), logging.WARNING, "The database is away."),
        (ServerReady("relay", "database"), logging.INFO, "the database answers again"),
        (relay.Blocked(blocked=True), logging.WARNING, "asked publishers to pause"),
        (
            relay.Held("id", "t.v1", "k", 7, 2, 4.0, "no queue is bound"),
            logging.WARNING,
            "refused t.v1: no queue is bound",
        ),
        (relay.Buried("id", "t.v1", "k", 7, 20, "no queue", "block"), logging.ERROR, "t.v1 is a dead letter after 20"),
        (relay.RelayStopped("r", 0), logging.INFO, "relay stopped"),
        (relay.RelayStopped("r", 5), logging.WARNING, "relay stopped"),
        (inbox.HandlerFailed("w", "id", "t.v1", 1, "ValueError"), logging.WARNING, "handling t.v1 failed: ValueError"),
        (inbox.Parked("w", "id", "t.v1", "failed", "waiting", 1, 10.0), logging.WARNING, "next try in 10.0 s"),
        (
            inbox.Parked("w", None, None, "undecodable", "dead", 1, None),
            logging.ERROR,
            "a message that is no event",
        ),
        (inbox.ConsumerStopped("w", 2), logging.WARNING, "inbox w stopped"),
    ],
)
def test_what_an_operator_must_see(event: Observation, level: int, words: str) -> None:
    """Severity and words by hand, for what calls for a person."""
    line = line_for(event)
    assert isinstance(line, Line)
    assert line.level == level
    assert words in line.text


def test_lines_about_an_event_name_it(observer: LogObserver, caplog: pytest.LogCaptureFixture) -> None:
    """The id is a field, so that one can look for everything that happened to an event."""
    observer.notify(relay.Held("event-7", "t.v1", "key-1", 7, 2, 4.0, "no queue is bound"))
    (record,) = caplog.records
    assert vars(record)["event_id"] == "event-7"
    assert vars(record)["key"] == "key-1"


def test_many_of_a_kind_become_one_line_a_second(
    observer: LogObserver, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The next line says how many were left out; other kinds are not held up by it."""
    for position in range(50):
        observer.notify(relay.Held("id", "t.v1", "k", position, 1, 1.0, "full"))
    observer.notify(relay.Buried("id", "t.v1", "k", 1, 20, "full", "block"))
    observer.notify(relay.Buried("id", "t.v1", "k", 2, 20, "full", "block"))
    clock.now += 1.0
    observer.notify(relay.Held("id", "t.v1", "k", 99, 1, 1.0, "full"))
    assert [(record.levelname, vars(record)["position"]) for record in caplog.records] == [
        ("WARNING", 0),
        ("ERROR", 1),
        ("ERROR", 2),
        ("WARNING", 99),
    ]
    assert vars(caplog.records[3])["left_out"] == 49


def test_once_a_minute_the_work_done_is_summed_up(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """At INFO a busy relay shows a sign of life, and an idle one does not."""
    caplog.set_level(logging.INFO, logger="test.summary")
    observer = LogObserver(logging.getLogger("test.summary"), monotonic=clock)
    for _ in range(60):
        clock.now += 1.0
        observer.notify(relay.Settled(rows=100))
    clock.now += 600.0
    observer.notify(relay.Idle())
    clock.now += 1.0
    observer.notify(relay.Settled(rows=1))
    observer.notify(relay.RelayStopped("r", 0))
    assert [record.getMessage() for record in caplog.records] == [
        "6000 events published",
        "1 events published",
        "relay stopped",
    ]
    assert vars(caplog.records[0])["rate"] == 100.0
