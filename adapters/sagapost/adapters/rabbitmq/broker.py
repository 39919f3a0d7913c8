"""`RabbitMQBroker`: the broker port on RabbitMQ 3.8 and later (AMQP 0-9-1), through aio-pika."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal

from sagapost.adapters.cloudevents import read_again
from sagapost.adapters.rabbitmq.settings import BrokerEndpoint, Limits, RabbitMQSettings, TopologySettings
from sagapost.core.broker import BrokerCapabilities, Malformed, Publisher, Queue, QueueDepth, Subscription
from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError, MissingExtraError
from sagapost.core.foreign import ForeignMessages

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

    from sagapost.core.findings import Diagnosis

# Everything that imports aio-pika is imported where it is used: configuration stays cheap, and possible without it.

__all__ = ["RabbitMQBroker"]

_QUORUM_PREFETCH: Final = 2_000
"""What quorum queues take; with more, subscribing fails."""
_AMQP_PREFETCH: Final = 65_535
"""What the field of the protocol holds."""
_DEFAULTS: Final = RabbitMQSettings()


class RabbitMQBroker:
    """Configuration of a RabbitMQ broker; opens nothing by itself.

    `url`: ``amqp://user:password@host:port/vhost`` or ``amqps://...``; for TLS the query may name `cafile`, `capath`,
    `certfile`, `keyfile`, or `no_verify_ssl=1` (testing only).
    `connection`: instead of a URL, an open aio-pika connection that the service has anyway. Publishers and consumers
    take channels of their own from it and close only those. When it is lost they end with `BrokerUnavailableError`,
    and so does every attempt to open one until the connection is open again: a plain connection never is, a robust one
    once it has reconnected. Heartbeat, TLS and name are those it was made with, `max_buffered_bytes` does not apply,
    and a broker that blocks publishers (a resource alarm) then blocks the acknowledgements of its consumers as well:
    lend publishers and consumers a connection each. It costs about three times the CPU of one of our own.
    `exchange`: the durable topic exchange; services that consume each other's events must agree on it.
    `queue_type`: of the queues that are declared. Classic queues live on one node and count no deliveries.
    `heartbeat`: a silent peer is given up after two of them (default 10 s, so within 25 s).
    `connect_timeout`: for connecting, and for each call the broker answers at once.
    `confirm_timeout`: for the answer to a batch, and for writing one; its clock stands still while the broker blocks
    publishers. Too short for a loaded broker means duplicates.
    `max_message_bytes`: larger bodies are not sent. Set it to the broker's `max_message_size` (16 MiB by default in
    RabbitMQ 4, 128 MiB before).
    `delivery_limit`: of quorum queues; a message handed out more often goes to the dead-letter queue
    ``<queue>.dead``. Lost connections count, so a low limit turns an outage into dead letters.
    `max_buffered_bytes`: of bodies received ahead of a slow consumer; past it the socket is not read.
    `name`: what the connections are called in the broker's management tools.

    :raises ConfigurationError: if a setting is out of range; names it.
    :raises MissingExtraError: if aio-pika is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        connection: AbstractConnection | None = None,
        exchange: str = _DEFAULTS.exchange,
        queue_type: Literal["quorum", "classic"] = _DEFAULTS.queue_type,
        heartbeat: timedelta = _DEFAULTS.heartbeat,
        connect_timeout: timedelta = _DEFAULTS.connect_timeout,
        confirm_timeout: timedelta = _DEFAULTS.confirm_timeout,
        max_message_bytes: int = _DEFAULTS.max_message_bytes,
        delivery_limit: int = _DEFAULTS.delivery_limit,
        max_buffered_bytes: int = _DEFAULTS.max_buffered_bytes,
        foreign_policy: ForeignMessages | None = None,
        name: str = "sagapost",
    ) -> None:
        if find_spec("aio_pika") is None:
            raise MissingExtraError(module="aio_pika", extra="rabbitmq", purpose="RabbitMQBroker")
        self._settings = BrokerEndpoint(
            url=_where(url, connection),
            name=name,
            heartbeat=heartbeat,
            connect_timeout=connect_timeout,
            confirm_timeout=confirm_timeout,
            connection=connection,
        )
        _check(exchange=exchange, queue_type=queue_type)
        for setting, value in (
            ("max_message_bytes", max_message_bytes),
            ("delivery_limit", delivery_limit),
            ("max_buffered_bytes", max_buffered_bytes),
        ):
            if value < 1:
                raise ConfigurationError(f"{setting} is {value}; it must be at least 1.")
        self._topology = TopologySettings(exchange, queue_type, delivery_limit)
        self._max_buffered_bytes = max_buffered_bytes
        self._foreign_policy = foreign_policy or ForeignMessages()
        self._limits = Limits(max_message_bytes)

    @property
    def capabilities(self) -> BrokerCapabilities:
        """What this adapter promises with this type of queue."""
        return BrokerCapabilities(
            durable=True,
            reports_unroutable=True,
            counts_deliveries=self._topology.queue_type == "quorum",
            single_active_consumer=True,
            crosses_processes=True,
            max_prefetch=_QUORUM_PREFETCH if self._topology.queue_type == "quorum" else _AMQP_PREFETCH,
        )

    @property
    def address(self) -> str:
        """Scheme, host, port and virtual host; no credentials."""
        return self._settings.address

    def __repr__(self) -> str:
        topology = self._topology
        return f"RabbitMQBroker({self.address!r}, exchange={topology.exchange!r}, queue_type={topology.queue_type!r})"

    @asynccontextmanager
    async def publisher(self) -> AsyncGenerator[Publisher]:
        """Open a publisher, on a connection of its own if none was lent."""
        from sagapost.adapters.rabbitmq.publisher import open_publisher

        async with open_publisher(self._settings, self._topology, self._limits) as publisher:
            yield publisher

    @asynccontextmanager
    async def subscribe(self, queue: Queue, *, prefetch: int) -> AsyncGenerator[Subscription]:
        """Declare the queue and consume from it, on a connection of its own if none was lent."""
        from sagapost.adapters.rabbitmq.consumer import open_subscription

        async with open_subscription(
            self._settings,
            self._topology,
            queue,
            prefetch=prefetch,
            foreign_policy=queue.foreign or self._foreign_policy,
            max_buffered_bytes=self._max_buffered_bytes,
        ) as subscription:
            yield subscription

    async def declare(self, *queues: Queue) -> None:
        """Create exchange, queues, dead-letter queues and bindings ahead of time."""
        from sagapost.adapters.rabbitmq.connection import open_link
        from sagapost.adapters.rabbitmq.topology import declare_exchange, declare_queue

        async with open_link(self._settings, purpose="topology") as link:
            await declare_exchange(link, self._topology)
            for queue in queues:
                await declare_queue(link, self._topology, queue)

    def read(
        self, message: Malformed, topic: str, *, received_at: datetime, foreign: ForeignMessages | None = None
    ) -> Event | Malformed:
        """Read again what could not be read, by the policy for foreign messages as it is now."""
        return read_again(message, topic, foreign or self._foreign_policy, received_at=received_at)

    async def depths(self, *queues: str) -> Sequence[QueueDepth]:
        """Return how much lies in these queues and their dead-letter queues."""
        from sagapost.adapters.rabbitmq.connection import open_link
        from sagapost.adapters.rabbitmq.topology import depth_of

        async with open_link(self._settings, purpose="looking") as link:
            return [await depth_of(link, self._topology, queue) for queue in queues]

    async def examine(self, queues: Mapping[str, bool | None]) -> Sequence[Diagnosis]:
        """Return what is wrong with the exchanges, with these queues, and with this user's right to publish.

        :param queues: by name, whether each is ordered; None: nobody knows.
        :raises BrokerUnavailableError: if the broker cannot be reached within the connect timeout.
        :raises BrokerRefusedError: if it was reached and refused.
        """
        from sagapost.adapters.rabbitmq.connection import open_link
        from sagapost.adapters.rabbitmq.examination import examine

        async with open_link(self._settings, purpose="looking") as link:
            return await examine(link, self._topology, queues)


def _where(url: str | None, connection: AbstractConnection | None) -> str:
    if (url is None) is (connection is None):
        raise ConfigurationError("RabbitMQBroker takes a URL or an open aio-pika connection: give one of them.")
    if url is not None:
        return url
    # Both kinds of aio-pika's connections have it, though not their common base class.
    return str(getattr(connection, "url", ""))


def _check(*, exchange: str, queue_type: str) -> None:
    if not exchange or len(exchange.encode()) > 127:
        raise ConfigurationError(f"exchange is {exchange!r}; it needs a name of 1 to 127 bytes.")
    if exchange.startswith("amq.") and exchange != "amq.topic":
        raise ConfigurationError(
            f"exchange is {exchange!r}; of those that belong to the broker only 'amq.topic' routes by topic."
        )
    if queue_type not in ("quorum", "classic"):
        raise ConfigurationError(f"queue_type is {queue_type!r}; it must be 'quorum' or 'classic'.")
