"""What the library itself says about sagas, for trackers; and what an operator may ask of services."""

from __future__ import annotations

import msgspec

from sagapost.core.naming import event

__all__ = ["CompensationDone", "CompensationNeedsHuman", "RollbackRequested", "RollbackStarted", "RolledBack"]


@event("sagapost.saga.rollback-requested.v1")
class RollbackRequested(msgspec.Struct, frozen=True):
    """An operator asks every service to undo its part of the saga in the envelope's correlation id."""

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


@event("sagapost.saga.compensation-needs-human.v1")
class CompensationNeedsHuman(msgspec.Struct, frozen=True):
    """A service has given up on undoing a step; a person must decide."""

    service: str
    compensation: str
    error: str
    attempts: int


@event("sagapost.saga.rolled-back.v1")
class RolledBack(msgspec.Struct, frozen=True):
    """A service has undone its whole part."""

    service: str
