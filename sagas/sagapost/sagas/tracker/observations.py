"""What a tracker tells its observers."""

from __future__ import annotations

from dataclasses import dataclass

from sagapost.core.observer import Observation

__all__ = [
    "ActionTaken",
    "Folded",
    "TrackerObservation",
    "TrackerPruned",
    "TrackerUnavailable",
    "Undecodable",
    "WebhookFailed",
    "WebhookSent",
]


@dataclass(frozen=True, slots=True)
class TrackerObservation(Observation):
    """Base of the tracker's events."""


@dataclass(frozen=True, slots=True)
class Folded(TrackerObservation):
    """A batch is durable and acknowledged."""

    events: int
    sagas: int


@dataclass(frozen=True, slots=True)
class Undecodable(TrackerObservation):
    """A message is no event and belongs to no saga; it was passed over."""

    reason: str


@dataclass(frozen=True, slots=True)
class TrackerUnavailable(TrackerObservation):
    """The database or the broker cannot be reached; tried again after `retry_in` seconds. Nothing is lost."""

    reason: str
    attempt: int
    retry_in: float


@dataclass(frozen=True, slots=True)
class TrackerPruned(TrackerObservation):
    """Sagas that ended long ago were forgotten."""

    sagas: int


@dataclass(frozen=True, slots=True)
class ActionTaken(TrackerObservation):
    """A rule was applied to a saga, for the only time."""

    saga: str
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class WebhookSent(TrackerObservation):
    """A webhook was answered with success."""

    saga: str
    rule: str
    attempts: int


@dataclass(frozen=True, slots=True)
class WebhookFailed(TrackerObservation):
    """A webhook failed; tried again after `retry_in` seconds, or given up."""

    saga: str
    rule: str
    attempts: int
    error: str
    retry_in: float | None
