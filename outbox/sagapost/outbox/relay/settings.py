"""What can be set on a relay, validated when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

from sagapost.core.backoff import Backoff
from sagapost.core.settings import check, drain_limit, duration, nested, reconnect_waits, setting, waits

__all__ = ["DeadLetterPolicy", "RelaySettings", "Routing", "UnroutablePolicy"]

DeadLetterPolicy: TypeAlias = Literal["block", "park", "skip"]
"""What the later events of a key do once one of them is dead.

`block`: they wait in the outbox until an operator redrives or discards the dead one. `park`: they become dead letters
behind it. `skip`: they go on without it.
"""

UnroutablePolicy: TypeAlias = Literal["wait", "bury"]
"""What becomes of an event that no queue is bound for.

`wait`: it stays in the outbox, with its reason, and holds back the later events of its key until a queue is bound;
being returned uses up at most half of its attempts. `bury`: it is refused like any other, in the end a dead letter.
"""


def _refuse_topics(topics: Mapping[str, str]) -> str | None:
    empty = [type_ for type_, topic in topics.items() if not topic]
    return f"names no routing key for {empty[0]!r}" if empty else None


@dataclass(frozen=True, slots=True)
class Routing:
    """Where events go that do not follow the default: the broker's default destination, with the row's topic."""

    destinations: Mapping[str, str] = setting(
        dict[str, str],
        "Event types that go to another destination of the broker than the default (on RabbitMQ: another exchange; an "
        "empty name is its default exchange, where the routing key is the name of a queue).",
        example="audit.entry-written.v1=audit,orders.order-placed.v1=orders",
        unit="type=destination, comma-separated",
        danger="It must exist; an event for one that is missing is held and retried.",
    )
    topics: Mapping[str, str] = setting(
        dict[str, str],
        "Event types whose routing key is not the topic they were published under.",
        example="orders.order-placed.v1=orders.placed",
        unit="type=routing key, comma-separated",
        danger="Consumers must be bound to the new key before the relay starts with it.",
        refuse=_refuse_topics,
    )
    optional: frozenset[str] = setting(
        frozenset(),
        "Event types that need no consumer. Where no queue is bound for one it counts as published and is gone; all "
        "other events wait in the outbox until a queue is bound for them.",
        example="orders.order-closed.v1,orders.order-viewed.v1",
        unit="event types, comma-separated",
        danger="An event of these types that was published while its queue did not exist is lost.",
    )


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Settings of one relay.

    :raises ConfigurationError: if a value is out of its range.
    """

    max_in_flight: int = setting(
        4_000,
        "Rows fetched and not yet settled, at most.",
        example="4000",
        unit="rows",
        danger="High: memory, and more duplicates after a crash. Low: the broker's latency shows.",
        low=1,
        high=100_000,
    )
    max_in_flight_bytes: int = setting(
        32 * 2**20,
        "Event data fetched and not yet confirmed, at most, give or take one event.",
        example="32MiB",
        unit="bytes",
        danger="This bounds the relay's memory; the process needs a small multiple of it.",
        low=1,
        high=2**40,
    )
    page_rows: int = setting(
        1_000,
        "Rows per fetch, at most.",
        example="1000",
        unit="rows",
        danger="Low: a round trip to the database for few rows.",
        low=1,
        high=100_000,
    )
    batch_rows: int = setting(
        250,
        "Messages handed to the broker connection in one write, at most.",
        example="250",
        unit="rows",
        danger="Low: more CPU per message. High: a heartbeat may wait behind one write.",
        low=1,
        high=10_000,
    )
    poll_interval: timedelta = setting(
        timedelta(seconds=1),
        "Longest sleep without looking at the outbox, whatever the doorbell says.",
        example="500ms",
        unit="duration",
        danger="Where there is no doorbell (SQLite, a pooler), this is the worst latency of an idle outbox. Short: an "
        "idle relay keeps the database busy.",
        low=timedelta(milliseconds=1),
        high=timedelta(hours=1),
    )
    sweep_interval: timedelta = setting(
        timedelta(minutes=1),
        "How often a relay, idle or busy, looks for rows that it does not know of (restored, replicated, repaired by "
        "hand). A sweep that is slow comes less often.",
        example="1m",
        unit="duration",
        danger="Short with a large backlog of held rows: their positions are read again and again.",
        low=timedelta(seconds=1),
        high=timedelta(days=1),
    )
    lease_ttl: timedelta = setting(
        timedelta(seconds=6),
        "How long a partition stays owned without a heartbeat.",
        example="6s",
        unit="duration",
        danger="Long: the share of a crashed relay waits that long. Short: a slow database makes partitions change "
        "hands, and publishing stops meanwhile.",
        low=timedelta(seconds=1),
        high=timedelta(minutes=10),
    )
    retry: Backoff = waits(
        timedelta(seconds=1),
        timedelta(minutes=1),
        prefix="retry",
        base=duration(
            "Wait after the broker refused a message for the first time; doubles with each further refusal.",
            example="1s",
            danger="Short: a message that a full queue refuses is given up before anybody has looked.",
            high=timedelta(hours=1),
        ),
        cap=duration(
            "Longest wait between attempts on a refused message. At least `SAGAPOST_RELAY_RETRY_BASE`.",
            example="1m",
            danger="Long: a held key flows again that late after the cause is gone.",
            high=timedelta(days=1),
        ),
    )
    max_attempts: int = setting(
        20,
        "Attempts on a refused message before it becomes a dead letter. An outage of the broker burns none.",
        example="20",
        unit="attempts",
        danger="Low: a queue that is full for a minute finds its messages among the dead letters.",
        low=1,
        high=32_000,
    )
    on_dead: DeadLetterPolicy = setting(
        "block",
        "What the later events of a key do once one of them is dead: `block` (wait for an operator), `park` (become "
        "dead letters behind it), `skip` (go on without it).",
        example="park",
        unit="word",
        danger="`skip` gives up the order of the key; `block` lets the outbox grow until somebody looks.",
    )
    on_unroutable: UnroutablePolicy = setting(
        "wait",
        "What becomes of an event that no queue is bound for: `wait` (stays in the outbox until one is bound, and "
        "uses up at most half of its attempts by that), `bury` (a refusal like any other, in the end a dead letter). "
        "Types that need no consumer belong into `SAGAPOST_RELAY_OPTIONAL`.",
        example="bury",
        unit="word",
        danger="`wait`: a type that no queue is ever bound for holds back its keys and, with more of them than "
        "`SAGAPOST_RELAY_MAX_HELD_KEYS`, everything. `bury`: so do its dead letters, until an operator acts.",
    )
    reconnect: Backoff = reconnect_waits("relays", variable="SAGAPOST_RELAY_RECONNECT_BASE")
    max_held_keys: int = setting(
        10_000,
        "Held keys (each with a refused message) kept in mind; beyond that the relay pauses until some clear.",
        example="10000",
        unit="keys",
        danger="High: memory. Low: a missing queue for one event type soon stops all the others.",
        low=1,
        high=1_000_000,
    )
    serial_keys: bool = setting(
        False,
        "Wait for each message's confirm before the next of its key is sent, always. Only needed for strict order on "
        "queues that refuse publishes when full (`x-overflow=reject-publish`).",
        example="true",
        unit="true or false",
        danger="A hot key then moves at one message per round trip.",
    )
    suspicion: timedelta = setting(
        timedelta(minutes=1),
        "How long a route counts as not proven after a refusal; until then its keys go one message at a time.",
        example="1m",
        unit="duration",
        danger="Short with queues that are full off and on: later events of a key may overtake a refused one.",
        low=timedelta(0),
        high=timedelta(days=1),
    )
    drain_timeout: timedelta = drain_limit(
        "how long to wait for what is in flight before leaving it to another relay."
    )
    routing: Routing = nested(Routing)

    def __post_init__(self) -> None:
        check(self)
