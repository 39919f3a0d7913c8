"""What a consumer tells its observers.

A `DeliveryStep` lies between a delivery and its acknowledgement. The tests kill the process at each class of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sagapost.core.observer import Observation

__all__ = [
    "Acknowledged",
    "Claimed",
    "Consuming",
    "ConsumerReady",
    "ConsumerStarted",
    "ConsumerStopped",
    "Duplicate",
    "Handled",
    "GroupClaimed",
    "GroupCommitted",
    "GroupHandled",
    "GroupParked",
    "GroupReturned",
    "GroupStarted",
    "GroupUndone",
    "GroupWritten",
    "HandlerFailed",
    "HandlerReturned",
    "Ignored",
    "AttemptBegun",
    "Discarded",
    "Edited",
    "Parked",
    "Promoted",
    "PrunedKeys",
    "Received",
    "Redriven",
    "GivenBack",
    "RoundClaimed",
    "Screened",
    "Started",
    "DeliveryStep",
    "StrandedEnded",
    "Written",
]


@dataclass(frozen=True, slots=True)
class Consuming(Observation):
    """Base of the inbox's events."""

    consumer: str
    """Name of the inbox."""


@dataclass(frozen=True, slots=True)
class DeliveryStep(Consuming):
    """Base of the steps between a delivery and its acknowledgement."""


# --- steps, in their order ---


@dataclass(frozen=True, slots=True)
class Received(DeliveryStep):
    """The broker handed a message out."""

    topic: str
    bytes: int
    delivery_count: int


@dataclass(frozen=True, slots=True)
class Screened(DeliveryStep):
    """Messages were compared with the committed dedup keys; the duplicates among them are not yet acknowledged."""

    messages: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class AttemptBegun(DeliveryStep):
    """A message that was handed out before is about to be handled, and this is on record."""

    event_id: str
    unended: int
    """How many recorded attempts before this one never ended."""


@dataclass(frozen=True, slots=True)
class RoundClaimed(DeliveryStep):
    """Parked messages became due and are claimed for a round."""

    messages: int


@dataclass(frozen=True, slots=True)
class Started(DeliveryStep):
    """A transaction for this message is about to begin."""

    event_id: str
    event_type: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Claimed(DeliveryStep):
    """The dedup key is written, uncommitted."""

    event_id: str


@dataclass(frozen=True, slots=True)
class HandlerReturned(DeliveryStep):
    """A handler returned; what it did is uncommitted."""

    event_id: str
    handler: str


@dataclass(frozen=True, slots=True)
class Written(DeliveryStep):
    """Everything the handlers did and published is in the database, uncommitted."""

    event_id: str


@dataclass(frozen=True, slots=True)
class Handled(DeliveryStep):
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
class Duplicate(DeliveryStep):
    """Handled before; nothing was done. Not yet acknowledged."""

    event_id: str
    event_type: str


@dataclass(frozen=True, slots=True)
class HandlerFailed(DeliveryStep):
    """A try failed and was rolled back; it is tried again at once, or parked."""

    event_id: str
    event_type: str
    attempt: int
    error: str
    """Its class and, of a database error, the SQLSTATE; quotes nothing."""
    text: str = field(default="", repr=False)
    """What it says, bounded, and without the values a statement was given. For a log; it may quote the message."""
    traceback: str = field(default="", repr=False)
    """The same with where it was raised and what led to it."""


@dataclass(frozen=True, slots=True)
class Parked(DeliveryStep):
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
class Ignored(DeliveryStep):
    """No handler takes it, and the inbox ignores or rejects such events. Not yet settled."""

    event_id: str
    event_type: str


@dataclass(frozen=True, slots=True)
class Promoted(DeliveryStep):
    """The next parked message of an ordering key may go."""

    messages: int


# --- steps of a group commit, which take the place of Started to Handled ---


@dataclass(frozen=True, slots=True)
class GroupStarted(DeliveryStep):
    """A transaction for several messages is about to begin."""

    messages: int


@dataclass(frozen=True, slots=True)
class GroupClaimed(DeliveryStep):
    """The dedup keys are written, uncommitted."""

    messages: int
    fresh: int


@dataclass(frozen=True, slots=True)
class GroupReturned(DeliveryStep):
    """All handlers returned."""

    messages: int


@dataclass(frozen=True, slots=True)
class GroupWritten(DeliveryStep):
    """Everything the handlers did and published is in the database, uncommitted."""

    messages: int


@dataclass(frozen=True, slots=True)
class GroupParked(DeliveryStep):
    """Of a group that is committed, so many were parked behind others of their keys. None is promoted yet."""

    messages: int


@dataclass(frozen=True, slots=True)
class GroupHandled(DeliveryStep):
    """Committed together. Not yet acknowledged."""

    types: Mapping[str, int]
    """Event type -> how many were handled."""
    duplicates: int
    seconds: float
    """From the beginning of the transaction to its commit."""
    lag_seconds: float
    """From the `time` of the oldest event to now, by this host's clock."""


@dataclass(frozen=True, slots=True)
class GroupCommitted(DeliveryStep):
    """Messages within savepoints of one transaction are committed. None is reported as handled yet."""

    messages: int


@dataclass(frozen=True, slots=True)
class GroupUndone(DeliveryStep):
    """The group's transaction was rolled back; its messages are run one by one."""

    messages: int
    error: str


# --- the end of the way, by either ---


@dataclass(frozen=True, slots=True)
class Acknowledged(DeliveryStep):
    """The broker was told that these are done."""

    messages: int


# --- the rest ---


@dataclass(frozen=True, slots=True)
class PrunedKeys(Consuming):
    """Dedup keys from before the window were deleted, and records of attempts at messages that never came back."""

    rows: int
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class StrandedEnded(Consuming):
    """Transactions were ended whose client was lost in the middle of a statement; what they held can be claimed."""

    connections: int


@dataclass(frozen=True, slots=True)
class Redriven(Consuming):
    """An operator let parked messages be handled again."""

    messages: int
    actor: str


@dataclass(frozen=True, slots=True)
class Discarded(Consuming):
    """An operator gave parked messages up."""

    messages: int
    actor: str


@dataclass(frozen=True, slots=True)
class Edited(Consuming):
    """An operator changed a parked message; the original is in the audit."""

    parked_id: int
    actor: str


@dataclass(frozen=True, slots=True)
class ConsumerStarted(Consuming):
    """The consumer begins to run."""


@dataclass(frozen=True, slots=True)
class ConsumerReady(Consuming):
    """The queue is subscribed to."""

    address: str
    prefetch: int


@dataclass(frozen=True, slots=True)
class GivenBack(Consuming):
    """Messages went back to the queue untouched."""

    messages: int


@dataclass(frozen=True, slots=True)
class ConsumerStopped(Consuming):
    """The consumer has ended; `unfinished` messages were given back, over budget or without a database."""

    unfinished: int
