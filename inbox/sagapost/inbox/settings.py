"""What can be set on a consumer, validated when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from sagapost.core.backoff import Backoff
from sagapost.core.errors import ConfigurationError
from sagapost.inbox.schedules import Schedule

__all__ = ["ConsumerSettings", "DeadLetterPolicy", "RetryPolicy"]

DeadLetterPolicy: TypeAlias = Literal["block", "skip"]
"""What the later messages of an ordering key do once one of them is dead (ordered inboxes only).

`block`: they stay parked behind it until an operator redrives or discards it. `skip`: they go on without it.
"""

_MAX_PREFETCH = 2000  # quorum queues of RabbitMQ take no more


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a message is handled again after a technical failure.

    :raises ConfigurationError: if a value is out of its range.
    """

    quick: int = 2
    """Tries right away, in the process, after the first one failed; the message is parked after them. Range 0 to 20.
    Each holds a place of the consumer's concurrency."""
    quick_backoff: Backoff = field(
        default_factory=lambda: Backoff(base=timedelta(milliseconds=50), cap=timedelta(seconds=1))
    )
    """Wait before each quick try."""
    attempts: int = 12
    """Rounds in all, the first with its quick tries counting as one, before the message is a dead letter. 1: no
    retries from the parked messages. With the default waits: about a day."""
    backoff: Backoff = field(default_factory=lambda: Backoff(base=timedelta(seconds=10), cap=timedelta(hours=4)))
    """Wait between rounds."""
    schedule: Schedule | None = None
    """When the further rounds are, entry by entry, in place of `attempts` and `backoff`; spans days where it must."""

    def __post_init__(self) -> None:
        if not 0 <= self.quick <= 20:
            raise ConfigurationError(f"RetryPolicy.quick is {self.quick}; use 0 to 20.")
        if not 1 <= self.attempts <= 10_000:
            raise ConfigurationError(f"RetryPolicy.attempts is {self.attempts}; use 1 to 10,000.")

    @property
    def rounds(self) -> int:
        """Rounds in all before the budget is used up."""
        return self.attempts if self.schedule is None else self.schedule.rounds

    def delay(self, round_: int, now: datetime) -> timedelta:
        """Return the wait after failed round number `round_` (1 for the first)."""
        return self.backoff.delay(round_) if self.schedule is None else self.schedule.delay(round_, now)


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """Settings of one consumer.

    :raises ConfigurationError: if a value is out of its range.
    """

    concurrency: int = 10
    """Transactions at a time, each on a database connection of its own: the engine's pool needs three more than
    this (its default of 15 fits the default here). Range 1 to 1,000. SQLite has one writer: 1 is used there."""
    batch: int = 1
    """Group commit: up to this many messages in one transaction, taken from what has arrived (it never waits to fill
    one). 1: a transaction each. A failure in a batch costs its whole work, which is then done one by one, so use it
    where failures are rare. With 20 or more, `concurrency=2` is fastest. Range 1 to 1,000."""
    prefetch: int | None = None
    """Messages the broker hands out before it waits for acknowledgements. Default: twice what can be in work.
    Range 1 to 2,000, which is the limit of quorum queues."""
    max_bytes_in_hand: int = 64 * 1024 * 1024
    """Bytes of bodies received and not yet settled. When large messages exceed it, the prefetch is narrowed."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    """For handlers that declare none of their own."""
    handler_timeout: timedelta = timedelta(minutes=1)
    """Longest a message's transaction may take; over it the transaction is rolled back and the message counts as
    failed. A `def` handler cannot be interrupted: its thread is waited for."""
    database_timeout: timedelta = timedelta(seconds=15)
    """Longest wait for the database where no handler runs. Over it the database counts as unreachable."""
    max_crashes: int = 3
    """How often a message may be in hand when the process dies before it is parked as its killer; and how often in a
    row its connection to the database may be lost under it before that is a failure of its own. Range 2 to 100."""
    retention: timedelta = timedelta(days=7)
    """The dedup window: how long a handled message is remembered. An event older than it is parked, not handled."""
    prune_interval: timedelta = timedelta(minutes=1)
    """How often rows older than the window are looked for."""
    prune_chunk: int = 2_000
    """Rows per pruning transaction."""
    poll_interval: timedelta = timedelta(seconds=1)
    """How often parked messages are looked at; bounds how late a retry starts."""
    on_dead: DeadLetterPolicy = "block"
    reconnect: Backoff = field(
        default_factory=lambda: Backoff(base=timedelta(milliseconds=200), cap=timedelta(seconds=5))
    )
    """Wait between attempts to reach the broker or the database. Burns no attempt of any message."""
    release_after: timedelta = timedelta(minutes=5)
    """Database unreachable: how long what was received is held before it is given back to the queue. Keep it below
    the broker's consumer timeout (RabbitMQ: 30 minutes)."""
    drain_timeout: timedelta = timedelta(seconds=20)
    """On stop: how long running handlers may take before they are cancelled and their messages given back."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("concurrency", 1, 1_000),
            ("batch", 1, 1_000),
            ("max_bytes_in_hand", 1, 2**40),
            ("max_crashes", 2, 100),
            ("prune_chunk", 1, 100_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigurationError(f"ConsumerSettings.{name} is {value}; use {low:,} to {high:,}.")
        if self.prefetch is not None and not self.batch <= self.prefetch <= _MAX_PREFETCH:
            raise ConfigurationError(
                f"ConsumerSettings.prefetch is {self.prefetch}; use {self.batch:,} (the batch) to {_MAX_PREFETCH:,}."
            )
        for name in (
            "handler_timeout",
            "database_timeout",
            "retention",
            "prune_interval",
            "poll_interval",
            "release_after",
            "drain_timeout",
        ):
            if getattr(self, name) <= timedelta(0):
                raise ConfigurationError(f"ConsumerSettings.{name} is {getattr(self, name)}; it must be positive.")

    def effective_prefetch(self, concurrency: int) -> int:
        """Return the prefetch that is asked of the broker."""
        if self.prefetch is not None:
            return self.prefetch
        return min(max(2 * concurrency * self.batch, 32), _MAX_PREFETCH)
