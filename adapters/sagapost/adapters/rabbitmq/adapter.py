"""RabbitMQ for URLs `amqp://` and `amqps://`, and what can be set on it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from sagapost.adapters.cloudevents import StrangerPolicy
from sagapost.adapters.rabbitmq.broker import RabbitMQBroker
from sagapost.core.adapters import BrokerAdapter, ForeignPolicy
from sagapost.core.settings import check, setting

__all__ = ["RabbitMQSettings", "adapter"]


def _refuse_exchange(name: str) -> str | None:
    if not 0 < len(name.encode()) <= 127 or not name.isprintable() or name.startswith("amq."):
        return "is not an exchange name; use 1 to 127 printable characters, not beginning with amq."
    return None


@dataclass(frozen=True, slots=True)
class RabbitMQSettings:
    """What can be set on RabbitMQ beside its URL.

    :raises ConfigurationError: if a value is out of its range.
    """

    exchange: str = setting(
        "sagapost",
        "The topic exchange that events are published to and queues are bound to.",
        example="sagapost",
        unit="name, at most 127 characters",
        danger="Services that consume each other's events must agree on it.",
        variable="exchange",
        refuse=_refuse_exchange,
    )
    queue_type: Literal["quorum", "classic"] = setting(
        "quorum",
        "The kind of queue a consumer declares.",
        example="classic",
        unit="word",
        danger="A queue that exists keeps its type; another value here is refused at start. Classic queues live on "
        "one node of a cluster.",
        variable="queue_type",
    )
    connect_timeout: timedelta = setting(
        timedelta(seconds=10),
        "How long connecting to the broker, and declaring what is needed there, may take.",
        example="10s",
        unit="duration",
        danger="Too short on a busy broker: it is taken for unreachable.",
        low=timedelta(milliseconds=100),
        high=timedelta(minutes=5),
        variable="broker_connect_timeout",
    )
    confirm_timeout: timedelta = setting(
        timedelta(seconds=30),
        "How long the broker may take to confirm a message before it counts as unknown and is published again, under "
        "the same id.",
        example="30s",
        unit="duration",
        danger="Shorter than the broker needs under load: duplicates, and a reconnect each time.",
        low=timedelta(seconds=1),
        high=timedelta(minutes=10),
        variable="broker_confirm_timeout",
    )
    heartbeat: timedelta = setting(
        timedelta(seconds=10),
        "Interval of the heartbeat on broker connections; a dead link is noticed after two of them.",
        example="10s",
        unit="duration",
        danger="Too short: a busy process loses its connections. Long: a dead link is noticed late.",
        low=timedelta(seconds=1),
        high=timedelta(minutes=10),
        variable="broker_heartbeat",
    )
    max_message_bytes: int = setting(
        16 * 2**20,
        "Largest event that is sent; a larger one counts as refused by the broker.",
        example="16MiB",
        unit="bytes",
        danger="Above the broker's own `max_message_size` (16 MiB in RabbitMQ 4, 128 MiB before), it closes the "
        "channel over such a message.",
        low=1,
        high=2**31,
        variable="broker_max_message_bytes",
    )
    max_buffered_bytes: int = setting(
        64 * 2**20,
        "Bodies received ahead of a slow consumer; past it the socket is not read.",
        example="64MiB",
        unit="bytes",
        danger="High: memory. Low with large messages: the consumer waits for the network.",
        low=1024,
        high=2**40,
        variable="broker_max_buffered_bytes",
    )
    delivery_limit: int = setting(
        100,
        "How often the broker hands a message of a quorum queue out before it moves to the queue's dead-letter queue.",
        example="100",
        unit="deliveries",
        danger="Lost connections count, so a low limit turns an outage into dead letters. A queue that exists keeps "
        "its limit; another value here is refused at start.",
        low=1,
        high=1_000_000,
        variable="broker_delivery_limit",
    )

    def __post_init__(self) -> None:
        check(self)


def _make(url: str, settings: RabbitMQSettings, *, without_id: ForeignPolicy) -> RabbitMQBroker:
    return RabbitMQBroker(
        url,
        exchange=settings.exchange,
        queue_type=settings.queue_type,
        heartbeat=settings.heartbeat,
        connect_timeout=settings.connect_timeout,
        confirm_timeout=settings.confirm_timeout,
        max_message_bytes=settings.max_message_bytes,
        delivery_limit=settings.delivery_limit,
        max_buffered_bytes=settings.max_buffered_bytes,
        stranger_policy=StrangerPolicy(without_id=without_id),
    )


adapter = BrokerAdapter(
    name="rabbitmq",
    title="RabbitMQ",
    settings=RabbitMQSettings,
    make=_make,
    example="amqp://orders:password@localhost:5672/",
    # aiormq logs each failed attempt as an error, in its own words; ours come from the exception, once.
    loggers={"aiormq": logging.CRITICAL, "aio_pika": logging.WARNING},
)
