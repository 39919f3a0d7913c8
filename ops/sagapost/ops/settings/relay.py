"""How the relay works; each default is the library's own (`sagapost.outbox.relay.RelaySettings`)."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from pydantic_settings import BaseSettings

from sagapost.core.backoff import Backoff
from sagapost.ops.settings.field import setting
from sagapost.ops.settings.units import ByteSize, Duration, TypeMap, TypeSet
from sagapost.outbox.relay.settings import DeadLetterPolicy, RelaySettings, Routing, UnroutablePolicy

__all__ = ["RelayOptions"]

_LIBRARY: Final = RelaySettings()


class RelayOptions(BaseSettings):
    """Settings of `sagapost relay`."""

    relay_max_in_flight: int = setting(
        _LIBRARY.max_in_flight,
        "Rows fetched and not yet settled, at most.",
        example="4000",
        unit="rows",
        danger="High: memory, and more duplicates after a crash. Low: the broker's latency shows.",
        low=1,
        high=100_000,
    )
    relay_max_in_flight_bytes: ByteSize = setting(
        _LIBRARY.max_in_flight_bytes,
        "Event data fetched and not yet confirmed, at most, give or take one event.",
        example="32MiB",
        unit="bytes",
        danger="This bounds the relay's memory; the process needs a small multiple of it.",
        low=1024,
        high=2**40,
    )
    relay_page_rows: int = setting(
        _LIBRARY.page_rows,
        "Rows per fetch, at most.",
        example="1000",
        unit="rows",
        danger="Low: a round trip to the database for few rows.",
        low=1,
        high=100_000,
    )
    relay_batch_rows: int = setting(
        _LIBRARY.batch_rows,
        "Messages handed to the broker connection in one write, at most.",
        example="250",
        unit="rows",
        danger="Low: more CPU per message. High: a heartbeat may wait behind one write.",
        low=1,
        high=10_000,
    )
    relay_poll_interval: Duration = setting(
        _LIBRARY.poll_interval,
        "Longest sleep without looking at the outbox, whatever the doorbell says.",
        example="500ms",
        unit="duration",
        danger="Where there is no doorbell (SQLite, a pooler), this is the worst latency of an idle outbox. Short: an "
        "idle relay keeps the database busy.",
        low=timedelta(milliseconds=1),
        high=timedelta(hours=1),
    )
    relay_sweep_interval: Duration = setting(
        _LIBRARY.sweep_interval,
        "How often a relay, idle or busy, looks for rows that it does not know of (restored, replicated, repaired by "
        "hand).",
        example="1m",
        unit="duration",
        danger="Short with a large backlog of held rows: their positions are read again and again.",
        low=timedelta(seconds=1),
        high=timedelta(days=1),
    )
    relay_lease_ttl: Duration = setting(
        _LIBRARY.lease_ttl,
        "How long a partition stays owned without a heartbeat.",
        example="6s",
        unit="duration",
        danger="Long: the share of a crashed relay waits that long. Short: a slow database makes partitions change "
        "hands, and publishing stops meanwhile.",
        low=timedelta(seconds=1),
        high=timedelta(minutes=10),
    )
    relay_retry_base: Duration = setting(
        _LIBRARY.retry.base,
        "Wait after the broker refused a message for the first time; doubles with each further refusal.",
        example="1s",
        unit="duration",
        danger="Short: a message that a full queue refuses is given up before anybody has looked.",
        low=timedelta(milliseconds=1),
        high=timedelta(hours=1),
    )
    relay_retry_cap: Duration = setting(
        _LIBRARY.retry.cap,
        "Longest wait between attempts on a refused message. At least `SAGAPOST_RELAY_RETRY_BASE`.",
        example="1m",
        unit="duration",
        danger="Long: a held key flows again that late after the cause is gone.",
        low=timedelta(milliseconds=1),
        high=timedelta(days=1),
    )
    relay_max_attempts: int = setting(
        _LIBRARY.max_attempts,
        "Attempts on a refused message before it becomes a dead letter. An outage of the broker burns none.",
        example="20",
        unit="attempts",
        danger="Low: a queue that is full for a minute finds its messages among the dead letters.",
        low=1,
        high=32_000,
    )
    relay_on_dead: DeadLetterPolicy = setting(
        _LIBRARY.on_dead,
        "What the later events of a key do once one of them is dead: `block` (wait for an operator), `park` (become "
        "dead letters behind it), `skip` (go on without it).",
        example="park",
        unit="word",
        danger="`skip` gives up the order of the key; `block` lets the outbox grow until somebody looks.",
    )
    relay_on_unroutable: UnroutablePolicy = setting(
        _LIBRARY.on_unroutable,
        "What becomes of an event that no queue is bound for: `wait` (stays in the outbox until somebody listens, and "
        "uses up at most half of its attempts by that), `bury` (a refusal like any other, in the end a dead letter). "
        "Types that nobody has to hear belong into `SAGAPOST_RELAY_OPTIONAL`.",
        example="bury",
        unit="word",
        danger="`wait`: a type that nobody ever hears holds back its keys and, with more of them than "
        "`SAGAPOST_RELAY_MAX_HELD_KEYS`, everything. `bury`: so do its dead letters, until an operator acts.",
    )
    relay_reconnect_base: Duration = setting(
        _LIBRARY.reconnect.base,
        "Wait after the first failed attempt to reach the broker or the database; doubles with each further one.",
        example="200ms",
        unit="duration",
        danger="Short: a fleet of relays hammers a server that is starting.",
        low=timedelta(milliseconds=1),
        high=timedelta(minutes=10),
    )
    relay_reconnect_cap: Duration = setting(
        _LIBRARY.reconnect.cap,
        "Longest wait between attempts to reach the broker or the database. At least `SAGAPOST_RELAY_RECONNECT_BASE`.",
        example="5s",
        unit="duration",
        danger="Long: work resumes that late after the outage ends.",
        low=timedelta(milliseconds=1),
        high=timedelta(minutes=10),
    )
    relay_max_held_keys: int = setting(
        _LIBRARY.max_held_keys,
        "Held keys (each with a refused message) kept in mind; beyond that the relay pauses until some clear.",
        example="10000",
        unit="keys",
        danger="High: memory. Low: a missing queue for one event type soon stops all the others.",
        low=1,
        high=1_000_000,
    )
    relay_serial_keys: bool = setting(
        _LIBRARY.serial_keys,
        "Wait for each message's confirm before the next of its key is sent, always. Only needed for strict order on "
        "queues that refuse publishes when full (`x-overflow=reject-publish`).",
        example="true",
        unit="true or false",
        danger="A hot key then moves at one message per round trip.",
    )
    relay_suspicion: Duration = setting(
        _LIBRARY.suspicion,
        "How long a route counts as not proven after a refusal; until then its keys go one message at a time.",
        example="1m",
        unit="duration",
        danger="Short with queues that are full off and on: later events of a key may overtake a refused one.",
        low=timedelta(0),
        high=timedelta(days=1),
    )
    relay_drain_timeout: Duration = setting(
        _LIBRARY.drain_timeout,
        "After SIGTERM: how long to wait for what is in flight before leaving it to another relay.",
        example="20s",
        unit="duration",
        danger="Together with ten seconds of clean-up it must fit into the supervisor's grace period (Kubernetes: "
        "`terminationGracePeriodSeconds`, 30 s by default).",
        low=timedelta(milliseconds=1),
        high=timedelta(hours=1),
    )
    relay_destinations: TypeMap = setting(
        {},
        "Event types that go to another exchange than `SAGAPOST_EXCHANGE`.",
        example="audit.entry-written.v1=audit,orders.order-placed.v1=orders",
        unit="type=exchange, comma-separated",
        danger="The exchange must exist; an event for a missing one is held and retried.",
    )
    relay_topics: TypeMap = setting(
        {},
        "Event types whose routing key is not the topic they were published under.",
        example="orders.order-placed.v1=orders.placed",
        unit="type=routing key, comma-separated",
        danger="Consumers must be bound to the new key before the relay starts with it.",
    )

    relay_optional: TypeSet = setting(
        frozenset(),
        "Event types that nobody has to hear. Where no queue is bound for one it counts as published and is gone; all "
        "other events wait in the outbox until somebody listens.",
        example="orders.order-closed.v1,orders.order-viewed.v1",
        unit="event types, comma-separated",
        danger="An event of these types that was published while its queue did not exist is lost.",
    )

    def relay_settings(self) -> RelaySettings:
        """Return these settings as the library takes them."""
        return RelaySettings(
            max_in_flight=self.relay_max_in_flight,
            max_in_flight_bytes=self.relay_max_in_flight_bytes,
            page_rows=self.relay_page_rows,
            batch_rows=self.relay_batch_rows,
            poll_interval=self.relay_poll_interval,
            sweep_interval=self.relay_sweep_interval,
            lease_ttl=self.relay_lease_ttl,
            retry=Backoff(base=self.relay_retry_base, cap=self.relay_retry_cap),
            max_attempts=self.relay_max_attempts,
            on_dead=self.relay_on_dead,
            on_unroutable=self.relay_on_unroutable,
            reconnect=Backoff(base=self.relay_reconnect_base, cap=self.relay_reconnect_cap),
            max_held_keys=self.relay_max_held_keys,
            serial_keys=self.relay_serial_keys,
            suspicion=self.relay_suspicion,
            drain_timeout=self.relay_drain_timeout,
            routing=Routing(
                destinations=self.relay_destinations, topics=self.relay_topics, optional=self.relay_optional
            ),
        )
