"""What a consumer tells its observers.

A `Step` is one step of the way from a delivery to its acknowledgement; the tests kill the process at every one of
them, by the list of the classes here.
"""

from __future__ import annotations

from dataclasses import dataclass

from sagapost.core.observer import Observation

__all__ = [
    "Acknowledged",
    "BrokerLost",
    "Claimed",
    "Consuming",
    "ConsumerReady",
    "ConsumerStarted",
    "ConsumerStopped",
    "Duplicate",
    "Handled",
    "HandlerFailed",
    "HandlerReturned",
    "Ignored",
    "Parked",
    "Received",
    "Released",
    "Started",
    "Step",
    "StoreLost",
    "StoreReady",
    "Written",
]


@dataclass(frozen=True, slots=True)
class Consuming(Observation):
    """Base of the inbox's events."""

    consumer: str
    """Name of the inbox."""


@dataclass(frozen=True, slots=True)
class Step(Consuming):
    """Base of the steps between a delivery and its acknowledgement."""


# --- steps, in their order ---


@dataclass(frozen=True, slots=True)
class Received(Step):
    """The broker handed a message out."""

    topic: str
    bytes: int
    delivery_count: int


@dataclass(frozen=True, slots=True)
class Started(Step):
    """A transaction for this message is about to begin."""

    event_id: str
    event_type: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Claimed(Step):
    """The dedup key is written, uncommitted."""

    event_id: str


@dataclass(frozen=True, slots=True)
class HandlerReturned(Step):
    """A handler returned; what it did is uncommitted."""

    event_id: str
    handler: str


@dataclass(frozen=True, slots=True)
class Written(Step):
    """Everything the handlers did and published is in the database, uncommitted."""

    event_id: str


@dataclass(frozen=True, slots=True)
class Handled(Step):
    """Committed: the effects, the published events and the dedup key. Not yet acknowledged."""

    event_id: str
    event_type: str
    seconds: float
    """From the beginning of the transaction to its commit."""
    lag_seconds: float
    """From the event's `time` to now, by this host's clock."""
    failure: str | None = None
    """Type of the failure event, if the handler raised `BusinessFailure`."""


@dataclass(frozen=True, slots=True)
class Duplicate(Step):
    """Handled before; nothing was done. Not yet acknowledged."""

    event_id: str
    event_type: str


@dataclass(frozen=True, slots=True)
class HandlerFailed(Step):
    """A try failed and was rolled back; it is tried again at once, or parked."""

    event_id: str
    event_type: str
    attempt: int
    error: str


@dataclass(frozen=True, slots=True)
class Parked(Step):
    """Committed to the parked messages. Not yet acknowledged."""

    event_id: str | None
    event_type: str | None
    reason: str
    state: str
    """`waiting`, `behind` or `dead`."""
    attempts: int
    retry_in: float | None
    """Seconds; set if it waits."""


@dataclass(frozen=True, slots=True)
class Ignored(Step):
    """No handler takes it, and the inbox ignores or rejects such events. Not yet settled."""

    event_id: str
    event_type: str


@dataclass(frozen=True, slots=True)
class Acknowledged(Step):
    """The broker was told that these are done."""

    messages: int


# --- the rest ---


@dataclass(frozen=True, slots=True)
class ConsumerStarted(Consuming):
    """The consumer begins to run."""


@dataclass(frozen=True, slots=True)
class ConsumerReady(Consuming):
    """The queue is subscribed to."""

    address: str
    prefetch: int


@dataclass(frozen=True, slots=True)
class Released(Consuming):
    """Messages went back to the queue untouched."""

    messages: int


@dataclass(frozen=True, slots=True)
class BrokerLost(Consuming):
    """The broker cannot be reached, ended the connection or cancelled the consumer; tried again in `retry_in` s."""

    address: str
    reason: str
    attempt: int
    retry_in: float


@dataclass(frozen=True, slots=True)
class StoreLost(Consuming):
    """The database cannot be reached; consumption pauses, nothing is acknowledged, no attempt is burned."""

    address: str
    reason: str
    attempt: int
    retry_in: float


@dataclass(frozen=True, slots=True)
class StoreReady(Consuming):
    """The database answers again; consumption resumes."""

    address: str


@dataclass(frozen=True, slots=True)
class ConsumerStopped(Consuming):
    """The consumer has ended; `unfinished` messages were given back because the drain budget ran out."""

    unfinished: int
