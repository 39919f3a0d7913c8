"""What a compensator tells its observers, besides `sagapost.core.life.ServerLost` and `ServerReady`."""

from __future__ import annotations

from dataclasses import dataclass

from sagapost.core.observer import Observation

__all__ = [
    "Compensated",
    "CompensationFailed",
    "SagaStuck",
    "CompensationNotKnown",
    "CompensationUnderWay",
    "InFlightNotKnown",
    "SagaObservation",
    "SagaRolledBack",
]


@dataclass(frozen=True, slots=True)
class SagaObservation(Observation):
    """Base of the compensator's events; `service` is whose part of the saga it is."""

    service: str


@dataclass(frozen=True, slots=True)
class Compensated(SagaObservation):
    """A step was undone and the ledger says so."""

    saga: str
    compensation: str
    attempts: int
    remaining: int


@dataclass(frozen=True, slots=True)
class CompensationFailed(SagaObservation):
    """A compensation failed; it is tried again after `retry_in` seconds."""

    saga: str
    compensation: str
    attempts: int
    retry_in: float
    error: str


@dataclass(frozen=True, slots=True)
class CompensationUnderWay(SagaObservation):
    """A compensation has begun and not ended; it is asked again after `again_in` seconds."""

    saga: str
    compensation: str
    again_in: float


@dataclass(frozen=True, slots=True)
class CompensationNotKnown(SagaObservation):
    """A saga waits for a version of the service that has this compensation; told once, and nothing is counted."""

    saga: str
    compensation: str
    reason: str


@dataclass(frozen=True, slots=True)
class SagaStuck(SagaObservation):
    """A compensation failed for the last time; the saga is stuck until an operator decides."""

    saga: str
    compensation: str
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class InFlightNotKnown(SagaObservation):
    """At its start a process found something recorded that its code has no name for; see `sagapost saga check`."""

    kind: str
    subject: str
    count: int
    saga: str | None
    """One of those it belongs to."""
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class SagaRolledBack(SagaObservation):
    """Everything this service did for the saga is undone."""

    saga: str
