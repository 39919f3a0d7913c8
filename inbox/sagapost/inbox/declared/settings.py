"""What can be set on a consumer, validated when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

from sagapost.core.backoff import Backoff
from sagapost.core.errors import ConfigurationError
from sagapost.core.settings import check, drain_limit, duration, nested, reconnect_waits, setting, waits
from sagapost.inbox.declared.schedules import Schedule

__all__ = ["GROUPS", "ConsumerSettings", "DeadLetterPolicy", "RetryPolicy"]

DeadLetterPolicy: TypeAlias = Literal["block", "skip"]
"""What the later messages of an ordering key do once one of them is dead (ordered inboxes only).

`block`: they stay parked behind it until an operator redrives or discards it. `skip`: they go on without it.
"""

GROUPS: Final = 0
"""The value of `ConsumerSettings.batch` for groups with savepoints."""

_LEAST_PREFETCH: Final = 32
_PREFETCH_FOR_GROUPS: Final = 16
"""For each transaction at a time: half the largest group, for all are seldom in work at once."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a message is handled again after a technical failure.

    :raises ConfigurationError: if a value is out of its range.
    """

    quick: int = setting(
        2,
        "Tries right away after a message failed for the first time; it is parked after them.",
        example="2",
        unit="tries",
        danger="Each holds a place of the concurrency while it waits.",
        low=0,
        high=20,
    )
    quick_backoff: Backoff = waits(
        timedelta(milliseconds=50),
        timedelta(seconds=1),
        prefix="quick",
        base=duration(
            "Wait before the first quick try; doubles with each further one.",
            example="50ms",
            danger="Long: a few failing messages hold up all of them.",
            high=timedelta(minutes=1),
        ),
        cap=duration(
            "Longest wait before a quick try. At least `SAGAPOST_CONSUMER_RETRY_QUICK_BASE`.",
            example="1s",
            danger="Long: a few failing messages hold up all of them.",
            high=timedelta(minutes=10),
        ),
    )
    attempts: int = setting(
        12,
        "Rounds in all before a failing message is a dead letter; the first round with its quick tries counts as one.",
        example="12",
        unit="rounds",
        danger="Low: an hour's outage of something a handler calls fills the dead letters.",
        low=1,
        high=10_000,
    )
    backoff: Backoff = waits(
        timedelta(seconds=10),
        timedelta(hours=4),
        base=duration(
            "Wait after the first failed round; doubles with each further one.",
            example="10s",
            danger="Short: the rounds are used up before what failed has recovered.",
            high=timedelta(days=1),
        ),
        cap=duration(
            "Longest wait between rounds. At least `SAGAPOST_CONSUMER_RETRY_BASE`.",
            example="4h",
            danger="Long: a message is handled that late after what failed has recovered.",
            high=timedelta(days=30),
        ),
    )
    schedule: Schedule | None = None
    """When the further rounds are, entry by entry, in place of `attempts` and `backoff`; spans days where it must."""

    def __post_init__(self) -> None:
        check(self)

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

    concurrency: int = setting(
        10,
        "Transactions at a time of each inbox, each on a database connection of its own. SQLite has one writer: 1 is "
        "used there.",
        example="10",
        unit="transactions",
        danger="Each inbox of the process opens up to this many connections, and three more; the database's limit "
        "must hold all processes.",
        low=1,
        high=1_000,
    )
    batch: int = setting(
        1,
        "Messages in one transaction. 0: what quick handlers have waiting shares transactions, in which each is "
        "within a savepoint and none undoes another. 1: one each. More: up to so many without savepoints.",
        example="50",
        unit="messages",
        danger="From 2 on one failing message costs the work of its whole batch, which is then done one by one, "
        "effects outside the database included. With 20 or more a concurrency of 2 is fastest.",
        low=0,
        high=1_000,
    )
    prefetch: int | None = setting(
        None,
        "Messages the broker hands out before it waits for acknowledgements. Unset: twice what can be in work, "
        "or 16 for each transaction where `SAGAPOST_CONSUMER_BATCH` is 0.",
        example="200",
        unit="messages",
        danger="High: one replica hoards what others could handle. At least `SAGAPOST_CONSUMER_BATCH`.",
        low=1,
        high=1_000_000,
        at_least="batch",
    )
    max_bytes_in_hand: int = setting(
        64 * 2**20,
        "Bodies received and not yet settled, of each inbox; with large messages the prefetch is narrowed.",
        example="64MiB",
        unit="bytes",
        danger="This bounds the consumer's memory; the process needs a small multiple of it.",
        low=1,
        high=2**40,
    )
    retry: RetryPolicy = nested(RetryPolicy, prefix="retry")
    """For handlers that declare none of their own."""
    handler_timeout: timedelta = setting(
        timedelta(minutes=1),
        "Longest a message's transaction may take; then it is rolled back and counts as failed.",
        example="1m",
        unit="duration",
        danger="A `def` handler cannot be interrupted: its thread is waited for.",
        low=timedelta(milliseconds=1),
        high=timedelta(hours=12),
    )
    database_timeout: timedelta = setting(
        timedelta(seconds=15),
        "Longest wait for the database where no handler runs; then it counts as unreachable.",
        example="15s",
        unit="duration",
        danger="Short on a busy database: consumption pauses for nothing.",
        low=timedelta(milliseconds=1),
        high=timedelta(minutes=10),
    )
    max_crashes: int = setting(
        3,
        "How often a message may be in flight when the process dies before it is parked as poison; and how often in "
        "a row its connection to the database may be lost under it before that is a failure of its own.",
        example="3",
        unit="crashes",
        danger="2: whatever was in flight during two power failures is parked.",
        low=2,
        high=100,
    )
    retention: timedelta = setting(
        timedelta(days=7),
        "The dedup window: how long a handled message is remembered. An older event is parked, not handled.",
        example="7d",
        unit="duration",
        danger="Shorter than the longest outage you want to sit out: what arrives after it is parked for a decision.",
        low=timedelta(minutes=1),
        high=timedelta(days=3650),
    )
    unknown_for: timedelta = setting(
        timedelta(days=1),
        "How long what this version does not know (an event no handler takes, a step that is not declared) waits for "
        "a version that does, before it is a dead letter. 0: it is one at once.",
        example="1d",
        unit="duration",
        danger="Shorter than a deployment: old replicas bury what only the new ones know.",
        low=timedelta(0),
        high=timedelta(days=365),
    )
    prune_interval: timedelta = setting(
        timedelta(minutes=1),
        "How often rows older than the window are looked for.",
        example="1m",
        unit="duration",
        danger="Long with high traffic: the table of handled messages grows meanwhile.",
        low=timedelta(milliseconds=1),
        high=timedelta(days=1),
    )
    prune_chunk: int = setting(
        2_000,
        "Rows deleted in one pruning transaction.",
        example="2000",
        unit="rows",
        danger="High: one long transaction, and its locks.",
        low=1,
        high=100_000,
    )
    poll_interval: timedelta = setting(
        timedelta(seconds=1),
        "How often parked messages are looked at; bounds how late a retry starts.",
        example="1s",
        unit="duration",
        danger="Short: an idle consumer keeps the database busy.",
        low=timedelta(milliseconds=1),
        high=timedelta(hours=1),
    )
    on_dead: DeadLetterPolicy = setting(
        "block",
        "Ordered inboxes: what the later messages of a key do once one is dead: `block` (stay parked behind it until "
        "an operator decides) or `skip` (go on without it).",
        example="skip",
        unit="word",
        danger="`skip` gives up the order of the key; `block` parks more and more until somebody looks.",
    )
    reconnect: Backoff = reconnect_waits("consumers", variable="SAGAPOST_CONSUMER_RECONNECT_BASE")
    release_after: timedelta = setting(
        timedelta(minutes=5),
        "While the database is unreachable: how long what was received is held before it goes back to the queue.",
        example="5m",
        unit="duration",
        danger="Keep it below the broker's consumer timeout (RabbitMQ: 30 minutes), which closes the channel.",
        low=timedelta(milliseconds=1),
        high=timedelta(hours=12),
    )
    drain_timeout: timedelta = drain_limit(
        "how long running handlers may take before they are cancelled and their messages given back."
    )

    def __post_init__(self) -> None:
        check(self)

    def effective_prefetch(self, concurrency: int, limit: int | None) -> int:
        """Return the prefetch that is asked of a broker.

        :param limit: the largest that it takes; None: any.
        :raises ConfigurationError: if more is asked for by name.
        """
        if self.prefetch is None:
            each = _PREFETCH_FOR_GROUPS if self.batch == GROUPS else 2 * self.batch
            wanted = max(each * concurrency, _LEAST_PREFETCH)
            return wanted if limit is None else min(wanted, limit)
        if limit is not None and self.prefetch > limit:
            raise ConfigurationError(
                f"ConsumerSettings.prefetch is {self.prefetch:,}, and this broker hands out at most {limit:,} "
                "messages ahead. Use no more, or leave it out."
            )
        return self.prefetch
