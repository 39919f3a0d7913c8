"""How a consumer works; each default is the library's own (`sagapost.inbox.settings.ConsumerSettings`)."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from pydantic_settings import BaseSettings

from sagapost.core.backoff import Backoff
from sagapost.inbox.settings import ConsumerSettings, DeadLetterPolicy, RetryPolicy
from sagapost.ops.settings.field import setting
from sagapost.ops.settings.units import ByteSize, Duration

__all__ = ["ConsumerOptions"]

_LIBRARY: Final = ConsumerSettings()


class ConsumerOptions(BaseSettings):
    """Settings of `sagapost consume`."""

    consumer_concurrency: int = setting(
        _LIBRARY.concurrency,
        "Transactions at a time of each inbox, each on a database connection of its own. SQLite has one writer: 1 is "
        "used there.",
        example="10",
        unit="transactions",
        danger="Each inbox of the process opens up to this many connections, and three more; the database's limit "
        "must hold all processes.",
        low=1,
        high=1_000,
    )
    consumer_batch: int = setting(
        _LIBRARY.batch,
        "Group commit: up to this many messages in one transaction, taken from what has arrived. 1: one each.",
        example="50",
        unit="messages",
        danger="One failing message costs the work of its whole batch, which is then done one by one. With 20 or more "
        "a concurrency of 2 is fastest.",
        low=1,
        high=1_000,
    )
    consumer_prefetch: int | None = setting(
        _LIBRARY.prefetch,
        "Messages the broker hands out before it waits for acknowledgements. Unset: twice what can be in work.",
        example="200",
        unit="messages",
        danger="High: one replica hoards what others could handle. At least `SAGAPOST_CONSUMER_BATCH`.",
        low=1,
        high=2_000,
    )
    consumer_max_bytes_in_hand: ByteSize = setting(
        _LIBRARY.max_bytes_in_hand,
        "Bodies received and not yet settled, of each inbox; with large messages the prefetch is narrowed.",
        example="64MiB",
        unit="bytes",
        danger="This bounds the consumer's memory; the process needs a small multiple of it.",
        low=1024,
        high=2**40,
    )
    consumer_retry_quick: int = setting(
        _LIBRARY.retry.quick,
        "Tries right away after a message failed for the first time; it is parked after them.",
        example="2",
        unit="tries",
        danger="Each holds a place of the concurrency while it waits.",
        low=0,
        high=20,
    )
    consumer_retry_quick_base: Duration = setting(
        _LIBRARY.retry.quick_backoff.base,
        "Wait before the first quick try; doubles with each further one.",
        example="50ms",
        unit="duration",
        danger="Long: a few failing messages hold up all of them.",
        low=timedelta(milliseconds=1),
        high=timedelta(minutes=1),
    )
    consumer_retry_quick_cap: Duration = setting(
        _LIBRARY.retry.quick_backoff.cap,
        "Longest wait before a quick try. At least `SAGAPOST_CONSUMER_RETRY_QUICK_BASE`.",
        example="1s",
        unit="duration",
        danger="Long: a few failing messages hold up all of them.",
        low=timedelta(milliseconds=1),
        high=timedelta(minutes=10),
    )
    consumer_retry_attempts: int = setting(
        _LIBRARY.retry.attempts,
        "Rounds in all before a failing message is a dead letter; the first round with its quick tries counts as one.",
        example="12",
        unit="rounds",
        danger="Low: an hour's outage of something a handler calls fills the dead letters.",
        low=1,
        high=10_000,
    )
    consumer_retry_base: Duration = setting(
        _LIBRARY.retry.backoff.base,
        "Wait after the first failed round; doubles with each further one.",
        example="10s",
        unit="duration",
        danger="Short: the rounds are used up before what failed has recovered.",
        low=timedelta(milliseconds=1),
        high=timedelta(days=1),
    )
    consumer_retry_cap: Duration = setting(
        _LIBRARY.retry.backoff.cap,
        "Longest wait between rounds. At least `SAGAPOST_CONSUMER_RETRY_BASE`.",
        example="4h",
        unit="duration",
        danger="Long: a message is handled that late after what failed has recovered.",
        low=timedelta(milliseconds=1),
        high=timedelta(days=30),
    )
    consumer_handler_timeout: Duration = setting(
        _LIBRARY.handler_timeout,
        "Longest a message's transaction may take; then it is rolled back and counts as failed.",
        example="1m",
        unit="duration",
        danger="A `def` handler cannot be interrupted: its thread is waited for.",
        low=timedelta(milliseconds=1),
        high=timedelta(hours=12),
    )
    consumer_database_timeout: Duration = setting(
        _LIBRARY.database_timeout,
        "Longest wait for the database where no handler runs; then it counts as unreachable.",
        example="15s",
        unit="duration",
        danger="Short on a busy database: consumption pauses for nothing.",
        low=timedelta(milliseconds=1),
        high=timedelta(minutes=10),
    )
    consumer_max_crashes: int = setting(
        _LIBRARY.max_crashes,
        "How often a message may be in hand when the process dies before it is parked as its killer.",
        example="3",
        unit="crashes",
        danger="2: whatever was in hand during two power failures is parked.",
        low=2,
        high=100,
    )
    consumer_retention: Duration = setting(
        _LIBRARY.retention,
        "The dedup window: how long a handled message is remembered. An older event is parked, not handled.",
        example="7d",
        unit="duration",
        danger="Shorter than the longest outage you want to sit out: what arrives after it is parked for a decision.",
        low=timedelta(minutes=1),
        high=timedelta(days=3650),
    )
    consumer_prune_interval: Duration = setting(
        _LIBRARY.prune_interval,
        "How often rows older than the window are looked for.",
        example="1m",
        unit="duration",
        danger="Long with high traffic: the table of handled messages grows meanwhile.",
        low=timedelta(milliseconds=1),
        high=timedelta(days=1),
    )
    consumer_prune_chunk: int = setting(
        _LIBRARY.prune_chunk,
        "Rows deleted in one pruning transaction.",
        example="2000",
        unit="rows",
        danger="High: one long transaction, and its locks.",
        low=1,
        high=100_000,
    )
    consumer_poll_interval: Duration = setting(
        _LIBRARY.poll_interval,
        "How often parked messages are looked at; bounds how late a retry starts.",
        example="1s",
        unit="duration",
        danger="Short: an idle consumer keeps the database busy.",
        low=timedelta(milliseconds=1),
        high=timedelta(hours=1),
    )
    consumer_on_dead: DeadLetterPolicy = setting(
        _LIBRARY.on_dead,
        "Ordered inboxes: what the later messages of a key do once one is dead: `block` (stay parked behind it until "
        "an operator decides) or `skip` (go on without it).",
        example="skip",
        unit="word",
        danger="`skip` gives up the order of the key; `block` parks more and more until somebody looks.",
    )
    consumer_reconnect_base: Duration = setting(
        _LIBRARY.reconnect.base,
        "Wait after the first failed attempt to reach the broker or the database; doubles with each further one.",
        example="200ms",
        unit="duration",
        danger="Short: a fleet of consumers hammers a server that is starting.",
        low=timedelta(milliseconds=1),
        high=timedelta(minutes=10),
    )
    consumer_reconnect_cap: Duration = setting(
        _LIBRARY.reconnect.cap,
        "Longest wait between attempts to reach a server. At least `SAGAPOST_CONSUMER_RECONNECT_BASE`.",
        example="5s",
        unit="duration",
        danger="Long: work resumes that late after the outage ends.",
        low=timedelta(milliseconds=1),
        high=timedelta(minutes=10),
    )
    consumer_release_after: Duration = setting(
        _LIBRARY.release_after,
        "While the database is unreachable: how long what was received is held before it goes back to the queue.",
        example="5m",
        unit="duration",
        danger="Keep it below the broker's consumer timeout (RabbitMQ: 30 minutes), which closes the channel.",
        low=timedelta(milliseconds=1),
        high=timedelta(hours=12),
    )
    consumer_drain_timeout: Duration = setting(
        _LIBRARY.drain_timeout,
        "After SIGTERM: how long running handlers may take before they are cancelled and their messages given back.",
        example="20s",
        unit="duration",
        danger="Together with ten seconds of clean-up it must fit into the supervisor's grace period (Kubernetes: "
        "`terminationGracePeriodSeconds`, 30 s by default).",
        low=timedelta(milliseconds=1),
        high=timedelta(hours=1),
    )

    def consumer_settings(self) -> ConsumerSettings:
        """Return these settings as the library takes them."""
        return ConsumerSettings(
            concurrency=self.consumer_concurrency,
            batch=self.consumer_batch,
            prefetch=self.consumer_prefetch,
            max_bytes_in_hand=self.consumer_max_bytes_in_hand,
            retry=RetryPolicy(
                quick=self.consumer_retry_quick,
                quick_backoff=Backoff(base=self.consumer_retry_quick_base, cap=self.consumer_retry_quick_cap),
                attempts=self.consumer_retry_attempts,
                backoff=Backoff(base=self.consumer_retry_base, cap=self.consumer_retry_cap),
            ),
            handler_timeout=self.consumer_handler_timeout,
            database_timeout=self.consumer_database_timeout,
            max_crashes=self.consumer_max_crashes,
            retention=self.consumer_retention,
            prune_interval=self.consumer_prune_interval,
            prune_chunk=self.consumer_prune_chunk,
            poll_interval=self.consumer_poll_interval,
            on_dead=self.consumer_on_dead,
            reconnect=Backoff(base=self.consumer_reconnect_base, cap=self.consumer_reconnect_cap),
            release_after=self.consumer_release_after,
            drain_timeout=self.consumer_drain_timeout,
        )
