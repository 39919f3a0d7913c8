"""What the library itself says about sagas, for trackers; and what an operator may ask of services.

What is asked has no ordering key, and is handled in a transaction of the library's own: neither a relay nor an ordered
inbox lets it wait behind the very step that it is about.
"""

from __future__ import annotations

import msgspec

from sagapost.core.naming import event

__all__ = [
    "CompensationDone",
    "CompensationStuck",
    "IslandEnded",
    "IslandStarted",
    "IslandStepChanged",
    "RetryRequested",
    "RollbackRequested",
    "RollbackStarted",
    "RolledBack",
    "TaskEnded",
    "TaskOpened",
]


@event("sagapost.saga.rollback-requested.v1")
class RollbackRequested(msgspec.Struct, frozen=True):
    """An operator asks every service to undo its part of the saga in the envelope's correlation id."""

    reason: str
    by: str


@event("sagapost.saga.retry-requested.v1")
class RetryRequested(msgspec.Struct, frozen=True):
    """An operator asks every service to try the compensations again at which it is stuck."""

    reason: str
    by: str


@event("sagapost.saga.rollback-started.v1")
class RollbackStarted(msgspec.Struct, frozen=True):
    """A service begins to undo its part."""

    service: str
    reason: str
    compensations: int
    """How many undo intents it has."""


@event("sagapost.saga.compensation-done.v1")
class CompensationDone(msgspec.Struct, frozen=True):
    """A service has undone one step."""

    service: str
    compensation: str
    remaining: int


@event("sagapost.saga.compensation-stuck.v1")
class CompensationStuck(msgspec.Struct, frozen=True):
    """A service is stuck at a compensation; an operator decides."""

    service: str
    compensation: str
    error: str
    attempts: int


@event("sagapost.saga.rolled-back.v1")
class RolledBack(msgspec.Struct, frozen=True):
    """A service has undone its whole part."""

    service: str


@event("sagapost.saga.task-opened.v1")
class TaskOpened(msgspec.Struct, frozen=True):
    """The saga waits for a person in this service."""

    service: str
    task: int
    name: str
    title: str
    outcomes: tuple[str, ...]
    """What the person can choose."""


@event("sagapost.saga.task-ended.v1")
class TaskEnded(msgspec.Struct, frozen=True):
    """A person has decided, or the saga's rollback made the decision needless."""

    service: str
    task: int
    name: str
    state: str
    """`resolved` or `withdrawn`."""
    outcome: str | None
    by: str | None


@event("sagapost.saga.island-started.v1")
class IslandStarted(msgspec.Struct, frozen=True):
    """A service begins an orchestrated part of the saga."""

    service: str
    island: str
    run: str
    steps: tuple[str, ...]
    """In the order in which they are declared."""


@event("sagapost.saga.island-step.v1")
class IslandStepChanged(msgspec.Struct, frozen=True):
    """A step of an orchestrated part went on."""

    service: str
    island: str
    run: str
    step: str
    state: str
    """`waiting` (its command is out), `done`, `failed`, `rolling_back`, `rolled_back`, `skipped`, or `stuck`."""
    attempt: int
    reason: str | None = None


@event("sagapost.saga.island-ended.v1")
class IslandEnded(msgspec.Struct, frozen=True):
    """An orchestrated part of the saga is over."""

    service: str
    island: str
    run: str
    state: str
    """`completed` or `rolled_back`."""
    reason: str | None = None
