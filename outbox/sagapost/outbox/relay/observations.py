"""What a relay tells its observers, besides `sagapost.core.life.ServerLost` and `ServerReady`."""

from __future__ import annotations

from dataclasses import dataclass

from sagapost.core.observer import Observation

__all__ = [
    "Blocked",
    "BrokerReady",
    "Buried",
    "Published",
    "Fetched",
    "Held",
    "Idle",
    "LeaseLost",
    "LeasesChanged",
    "Missed",
    "Moved",
    "Overtaken",
    "Relayed",
    "RelayStarted",
    "RelayStopped",
    "Released",
    "Saturated",
    "Sent",
    "Settled",
    "Woken",
]


@dataclass(frozen=True, slots=True)
class Relayed(Observation):
    """Base of the relay's events."""


@dataclass(frozen=True, slots=True)
class RelayStarted(Relayed):
    """The relay begins to run under this identity."""

    relay: str


@dataclass(frozen=True, slots=True)
class RelayStopped(Relayed):
    """The relay has ended; `left_in_flight` rows were unsettled when the drain budget ran out."""

    relay: str
    left_in_flight: int


@dataclass(frozen=True, slots=True)
class LeasesChanged(Relayed):
    """The relay now owns these partitions."""

    owned: frozenset[int]
    gained: frozenset[int]
    given_up: frozenset[int]


@dataclass(frozen=True, slots=True)
class LeaseLost(Relayed):
    """Partitions were taken over by another relay, or their lease could not be proven in time."""

    partitions: frozenset[int]
    reason: str


@dataclass(frozen=True, slots=True)
class BrokerReady(Relayed):
    """A publisher is open."""

    address: str


@dataclass(frozen=True, slots=True)
class Fetched(Relayed):
    """Rows were read from the outbox."""

    rows: int
    caught_up: bool


@dataclass(frozen=True, slots=True)
class Sent(Relayed):
    """A batch was written to the broker."""

    rows: int


@dataclass(frozen=True, slots=True)
class Published(Relayed):
    """The broker confirmed rows of a batch."""

    rows: int


@dataclass(frozen=True, slots=True)
class Settled(Relayed):
    """Published rows were deleted from the outbox."""

    rows: int


@dataclass(frozen=True, slots=True)
class Held(Relayed):
    """The broker refused a row; later rows of its key wait."""

    event_id: str
    event_type: str
    key: str | None
    position: int
    attempt: int
    retry_in: float
    reason: str


@dataclass(frozen=True, slots=True)
class Released(Relayed):
    """A held row went through, or is gone; its key flows again."""

    key: str | None
    position: int


@dataclass(frozen=True, slots=True)
class Buried(Relayed):
    """A row became a dead letter; see `policy` for what happens to the later rows of its key.

    Also a scheduled event that the outbox refused when it was due: after no attempt, at a negative position, and with
    nothing of its key behind it.
    """

    event_id: str
    event_type: str
    key: str | None
    position: int
    attempts: int
    reason: str
    policy: str


@dataclass(frozen=True, slots=True)
class Overtaken(Relayed):
    """Rows of a key were confirmed after an earlier one, sent in the same window, was refused.

    `position` is the refused row's, `by` that of the one which was confirmed.
    Happens only on a route that was proven and began to refuse within one confirm window (a queue that rejects
    publishes when full, a binding removed under load); `serial_keys` rules it out.
    """

    key: str
    position: int
    by: int


@dataclass(frozen=True, slots=True)
class Blocked(Relayed):
    """The broker asked publishers to pause, or lets them go on."""

    blocked: bool


@dataclass(frozen=True, slots=True)
class Saturated(Relayed):
    """As many keys are held as the relay keeps in mind: it reads nothing new, of any key, until some clear.

    Said once when that begins (`saturated`), and once when it is over.
    """

    held: int
    saturated: bool


@dataclass(frozen=True, slots=True)
class Moved(Relayed):
    """Scheduled events became due and moved into the outbox."""

    rows: int


@dataclass(frozen=True, slots=True)
class Missed(Relayed):
    """A sweep found rows that the relay did not know of (restored, replicated, repaired by hand); it starts over.

    `position` is the lowest of them.
    """

    rows: int
    position: int


@dataclass(frozen=True, slots=True)
class Idle(Relayed):
    """Nothing is left to do; the relay sleeps until the doorbell rings or the poll interval ends."""


@dataclass(frozen=True, slots=True)
class Woken(Relayed):
    """The relay woke from its sleep."""

    rung: bool
