"""What is done to relays and consumers, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CONSUMER", "FAULTS", "RELAY", "SERVER", "Mode", "Plan"]

Mode = Literal["ordered", "unordered"]

FAULTS = (
    "cut PostgreSQL",
    "cut RabbitMQ",
    "strand PostgreSQL",
    "strand RabbitMQ",
    "strand a consumer's PostgreSQL",
    "strand a consumer's RabbitMQ",
    "restart RabbitMQ",
    "restart PostgreSQL",
    "stop a consumer in order",
    "stop a relay in order",
)
_RESTART = 6.0
"""Seconds that a server takes to come back, about."""
_COMMON = {
    # Times an operator sets who wants a quick recovery; each bounds one way of being stuck.
    "SAGAPOST_START_RETRY_CAP": "1s",
    "SAGAPOST_DATABASE_CONNECT_TIMEOUT": "3s",
    "SAGAPOST_BROKER_CONNECT_TIMEOUT": "3s",
    "SAGAPOST_BROKER_HEARTBEAT": "2s",
}
SERVER = {
    # Room for the connections that were stranded, which a server keeps until it gives them up; and what makes it give
    # up their transactions, whose dedup keys the other replicas wait for (docs/operations.md).
    "max_connections": "400",
    "idle_in_transaction_session_timeout": "8s",
}
"""Settings of the PostgreSQL server."""
RELAY = {
    **_COMMON,
    "SAGAPOST_RELAY_LEASE_TTL": "2s",
    "SAGAPOST_RELAY_RECONNECT_CAP": "1s",
    "SAGAPOST_DATABASE_CALL_TIMEOUT": "3s",
    "SAGAPOST_BROKER_CONFIRM_TIMEOUT": "4s",
}
CONSUMER = {
    **_COMMON,
    "SAGAPOST_CONSUMER_CONCURRENCY": "8",
    "SAGAPOST_CONSUMER_HANDLER_TIMEOUT": "4s",
    "SAGAPOST_CONSUMER_DATABASE_TIMEOUT": "3s",
    "SAGAPOST_CONSUMER_RECONNECT_CAP": "1s",
    "SAGAPOST_CONSUMER_POLL_INTERVAL": "100ms",
    "SAGAPOST_CONSUMER_DRAIN_TIMEOUT": "15s",
    # A dead letter does not hold its key: the order of the rest is judged.
    "SAGAPOST_CONSUMER_ON_DEAD": "skip",
    # No other version will take what is strange.
    "SAGAPOST_CONSUMER_UNKNOWN_FOR": "0s",
    # Poison is dead within seconds, and what only had bad luck has rounds enough.
    "SAGAPOST_CONSUMER_RETRY_QUICK": "0",
    "SAGAPOST_CONSUMER_RETRY_ATTEMPTS": "8",
    "SAGAPOST_CONSUMER_RETRY_BASE": "50ms",
    "SAGAPOST_CONSUMER_RETRY_CAP": "250ms",
    # Processes die here all the time: only what does so again and again is a killer.
    "SAGAPOST_CONSUMER_MAX_CRASHES": "6",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done, and how much of it."""

    mode: Mode = "ordered"
    events: int = 100_000
    batch: int = 10
    """Group commit of the consumers."""
    writers: int = 4
    sessions: int = 8
    """Transactions that each writer has open at a time."""
    most: float = 140.0
    """Events a second that the writers are asked for, at most: on two cores all of it, the proxies too, has to leave
    something for those who come back."""
    relays: int = 2
    consumers: int = 3
    kill_every: float = 2.0
    """Seconds between SIGKILLs of a random relay or consumer."""
    faults: tuple[str, ...] = FAULTS
    rounds: int | None = None
    """How often each fault is done, at most; None: for as long as there is enough to write."""
    calm: float = 8.0
    """Seconds without faults at the beginning, which give the undisturbed rate."""
    between: float = 8.0
    """Seconds from one fault to the next. Nobody is killed in this time after a connection was stranded: who uses it
    has to notice by itself."""
    strangers: int = 5
    """Messages of each kind that no handler can take."""
    patience: float = 60.0
    """Seconds without any progress until the rest counts as lost."""

    @property
    def rate(self) -> float:
        """Events a second, so that the writers are busy for as long as things are broken."""
        return min(self.events / (2 * self.calm + self.round_seconds), self.most)

    @property
    def round_seconds(self) -> float:
        """Seconds that all faults take, one after the other."""
        restarts = sum(fault.startswith("restart") for fault in self.faults)
        return len(self.faults) * self.between + restarts * _RESTART
