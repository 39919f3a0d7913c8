"""What can be set on a relay, validated when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeAlias

from sagapost.core.backoff import Backoff
from sagapost.core.errors import ConfigurationError

__all__ = ["DeadLetterPolicy", "RelaySettings", "Routing", "UnroutablePolicy"]

DeadLetterPolicy: TypeAlias = Literal["block", "park", "skip"]
"""What the later events of a key do once one of them is dead.

`block`: they wait in the outbox until an operator redrives or discards the dead one. `park`: they become dead letters
behind it. `skip`: they go on without it.
"""

UnroutablePolicy: TypeAlias = Literal["wait", "bury"]
"""What becomes of an event that no queue is bound for.

`wait`: it stays in the outbox, with its reason, and holds back the later events of its key until somebody listens;
being returned uses up at most half of its attempts. `bury`: it is refused like any other, in the end a dead letter.
"""


@dataclass(frozen=True, slots=True)
class Routing:
    """Where events go that do not follow the default: the broker's default exchange, with the row's topic."""

    destinations: Mapping[str, str] = field(default_factory=dict[str, str])
    """Event type -> exchange."""
    topics: Mapping[str, str] = field(default_factory=dict[str, str])
    """Event type -> routing key."""
    optional: frozenset[str] = frozenset()
    """Event types that nobody has to hear. Where no queue is bound they count as published and are gone; all other
    events wait in the outbox until somebody listens. For the last events of a saga, and for lifecycle events."""


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Settings of one relay.

    :raises ConfigurationError: if a value is out of its range.
    """

    max_in_flight: int = 4_000
    """Rows fetched and not yet settled, at most. Range 1 to 100,000. More hides latency, and costs memory."""
    max_in_flight_bytes: int = 32 * 1024 * 1024
    """Bytes of event data fetched and not yet confirmed, at most (give or take one event)."""
    page_rows: int = 1_000
    """Rows per fetch, at most."""
    batch_rows: int = 250
    """Messages handed to the broker connection in one write, at most."""
    poll_interval: timedelta = timedelta(seconds=1)
    """Longest sleep without looking at the table, whatever the doorbell says."""
    sweep_interval: timedelta = timedelta(minutes=1)
    """How often, idle or busy, a relay looks for rows that were there an interval ago and that it does not know of
    (restored, replicated, repaired by hand). A sweep that is slow comes less often."""
    lease_ttl: timedelta = timedelta(seconds=6)
    """How long a partition stays owned without a heartbeat. A crashed relay's share moves on after this time; a
    relay that cannot reach the database stops publishing before it ends. Range 1 s to 10 min."""
    retry: Backoff = field(default_factory=lambda: Backoff(base=timedelta(seconds=1), cap=timedelta(minutes=1)))
    """Wait between attempts on a message that the broker refused."""
    max_attempts: int = 20
    """Attempts on a refused message before it becomes a dead letter. With the default waits: about a quarter hour."""
    on_dead: DeadLetterPolicy = "block"
    on_unroutable: UnroutablePolicy = "wait"
    """See docs/adr/0010. Event types that nobody has to hear are named in `Routing.optional`."""
    reconnect: Backoff = field(
        default_factory=lambda: Backoff(base=timedelta(milliseconds=200), cap=timedelta(seconds=5))
    )
    """Wait between attempts to reach the broker or the database. Burns no attempt of any message."""
    max_held_keys: int = 10_000
    """Held keys (each with a refused message) kept in mind; beyond that the relay pauses fetching until some clear."""
    serial_keys: bool = False
    """Wait for each message's confirm before the next of its key is sent, always. Otherwise only where the route is
    not proven: its first message, and for `suspicion` after the broker refused one. Needed only for strict order on
    queues that refuse publishes when full (`x-overflow=reject-publish`). Costs throughput on hot keys."""
    suspicion: timedelta = timedelta(minutes=1)
    """How long a route counts as not proven after a refusal."""
    drain_timeout: timedelta = timedelta(seconds=20)
    """On stop: how long to wait for what is in flight before leaving it to another relay."""
    routing: Routing = field(default_factory=Routing)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_in_flight", 1, 100_000),
            ("max_in_flight_bytes", 1, 2**40),
            ("page_rows", 1, 100_000),
            ("batch_rows", 1, 10_000),
            ("max_attempts", 1, 32_000),
            ("max_held_keys", 1, 1_000_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigurationError(f"RelaySettings.{name} is {value}; use {low:,} to {high:,}.")
        if not timedelta(seconds=1) <= self.lease_ttl <= timedelta(minutes=10):
            raise ConfigurationError(f"RelaySettings.lease_ttl is {self.lease_ttl}; use 1 second to 10 minutes.")
        for name in ("poll_interval", "sweep_interval", "drain_timeout"):
            if getattr(self, name) <= timedelta(0):
                raise ConfigurationError(f"RelaySettings.{name} is {getattr(self, name)}; it must be positive.")
