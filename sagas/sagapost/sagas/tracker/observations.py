"""What a tracker tells its observers, besides `sagapost.core.life.ServerLost` and `ServerReady`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from sagapost.core.observer import Observation

__all__ = [
    "ActionFailed",
    "ActionTaken",
    "Folded",
    "PassedOver",
    "PassedOverPart",
    "RuleFailed",
    "TrackerObservation",
    "TrackerPruned",
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


PassedOverPart: TypeAlias = Literal["message", "event", "data", "key", "saga"]
"""What could not be taken: a message that is no event; an event; the data of a lifecycle event, which is then part of
the history and says nothing; a business key, by which the saga is then not found; or a saga that could not be derived
anew, which then shows what it showed before."""


@dataclass(frozen=True, slots=True)
class PassedOver(TrackerObservation):
    """Something that arrived could not be taken, whoever made it; all else that came with it is folded.

    It is acknowledged: whoever it was meant for handles or parks it. An event is not passed over for an outage, nor
    for anything that is wrong with the tracker or its database.
    """

    event_id: str | None
    event_type: str | None
    saga: str | None
    part: PassedOverPart
    reason: str


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
class ActionFailed(TrackerObservation):
    """A rule cannot be applied to a saga; that is recorded, and not tried again. Other sagas are unharmed."""

    saga: str
    rule: str
    error: str


@dataclass(frozen=True, slots=True)
class RuleFailed(TrackerObservation):
    """A rule could not be applied this time; the other rules were. It is applied again with the next round."""

    rule: str
    error: str


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
