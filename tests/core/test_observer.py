"""Observers: all are told, in order, and none can disturb the work."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest

from sagapost.core.observer import NullObserver, Observation, Observers


@dataclass(frozen=True, slots=True)
class Ticked(Observation):
    """An observer event of this test."""

    count: int


@dataclass
class Recorder:
    """Keeps what it is told."""

    seen: list[Observation] = field(default_factory=list[Observation])

    def notify(self, event: Observation, /) -> None:
        """Keep the event."""
        self.seen.append(event)


class Broken:
    """Raises on every event."""

    def notify(self, event: Observation, /) -> None:
        """Fail."""
        raise RuntimeError("exporter is down")


def test_each_observer_sees_every_event_in_order() -> None:
    """Fan-out neither drops nor reorders."""
    first, second = Recorder(), Recorder()
    observers = Observers([first, NullObserver(), second])
    for count in range(3):
        observers.notify(Ticked(count))
    assert first.seen == second.seen == [Ticked(0), Ticked(1), Ticked(2)]


def test_a_failing_observer_is_reported_and_isolated(caplog: pytest.LogCaptureFixture) -> None:
    """The others still hear, the caller sees no exception, and the log names the culprit and the event."""
    recorder = Recorder()
    with caplog.at_level(logging.ERROR, logger="sagapost"):
        Observers([Broken(), recorder]).notify(Ticked(1))
    assert recorder.seen == [Ticked(1)]
    (record,) = caplog.records
    assert "Broken" in record.getMessage()
    assert "Ticked" in record.getMessage()
    assert record.exc_info is not None


def test_an_interrupt_is_not_swallowed() -> None:
    """KeyboardInterrupt is not an observer's failure."""

    class Interrupted:
        def notify(self, event: Observation, /) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Observers([Interrupted()]).notify(Ticked(1))


def test_events_are_immutable() -> None:
    """One observer cannot change what the next one sees."""
    with pytest.raises(AttributeError):
        Ticked(1).count = 2  # type: ignore[misc]
