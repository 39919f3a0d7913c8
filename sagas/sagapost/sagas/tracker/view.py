"""Where a saga is, as values: what the fold derives and everything else shows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sagapost.sagas.tracker.entries import Entry, moment

__all__ = [
    "PendingDeadline",
    "ExpectedStep",
    "TrackedIslandStep",
    "OpenTask",
    "Rollback",
    "SagaState",
    "SagaView",
    "StepDone",
]


class SagaState(StrEnum):
    """What can be said of a saga as a whole."""

    RUNNING = "running"
    COMPLETED = "completed"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    WAITING = "waiting"
    """A task asks a person to decide."""
    STUCK = "stuck"
    """A compensation was given up; a person must decide."""

    @property
    def over(self) -> bool:
        """Whether nothing more is expected."""
        return self in {SagaState.COMPLETED, SagaState.ROLLED_BACK}


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step that has spoken."""

    service: str
    step: str
    event: str
    """Type of what it said."""
    at: datetime
    failed: bool
    undone: bool


@dataclass(frozen=True, slots=True)
class ExpectedStep:
    """A step that has been told, and has not spoken yet."""

    service: str
    step: str
    after: str
    """Type of the event it was told by."""
    since: datetime


@dataclass(frozen=True, slots=True)
class PendingDeadline:
    """A deadline that is running."""

    service: str
    name: str
    event: str
    due: datetime


@dataclass(frozen=True, slots=True)
class Rollback:
    """How far a service is with undoing its part."""

    service: str
    total: int
    """Undo intents, as far as is known."""
    done: tuple[str, ...]
    """Names of the compensations that are carried out."""
    finished: bool
    stuck: str | None
    """Why a compensation was given up."""


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A decision that a person is asked for."""

    service: str
    task: int
    name: str
    title: str
    outcomes: tuple[str, ...]
    since: datetime


@dataclass(frozen=True, slots=True)
class TrackedIslandStep:
    """A step of an orchestrated part."""

    service: str
    island: str
    run: str
    step: str
    state: str
    attempt: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class SagaView:
    """One saga. A function of the set of its events and of the choreography, and of nothing else."""

    saga: str
    state: SagaState
    reason: str | None
    """Why it is rolled back, stuck or waiting."""
    started: datetime
    last: datetime
    ended: datetime | None
    history: tuple[Entry, ...]
    """In causal order."""
    truncated: bool
    """Older events are not shown: there were more than the tracker keeps of one saga."""
    steps: tuple[StepDone, ...]
    expected: tuple[ExpectedStep, ...]
    deadlines: tuple[PendingDeadline, ...]
    rollbacks: tuple[Rollback, ...]
    tasks: tuple[OpenTask, ...]
    islands: tuple[TrackedIslandStep, ...]
    keys: tuple[tuple[str, str], ...] = ()
    services: tuple[tuple[str, str], ...] = ()
    """Source -> service, for what is in the history."""

    def late(self, now: datetime) -> tuple[PendingDeadline, ...]:
        """Return the deadlines that have passed."""
        return tuple(deadline for deadline in self.deadlines if deadline.due <= now)

    def is_late(self, now: datetime) -> bool:
        """Whether something should have happened by now."""
        return bool(self.late(now))

    def service(self, source: str) -> str:
        """Return the name of the service behind a source."""
        return dict(self.services).get(source, source)

    def at(self, entry: Entry) -> datetime:
        """Return when an entry was said."""
        return moment(entry.at)
