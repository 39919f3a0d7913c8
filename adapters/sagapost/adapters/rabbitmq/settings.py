"""What can be set on RabbitMQ, and what a `RabbitMQBroker` was configured with: where it is, how calls are bounded."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from sagapost.adapters.rabbitmq.tls import TLSFiles
from sagapost.core.broker import Queue
from sagapost.core.errors import ConfigurationError
from sagapost.core.settings import check, setting

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

__all__ = ["BrokerEndpoint", "Limits", "RabbitMQSettings", "TopologySettings"]

_PORTS = {"amqp": 5672, "amqps": 5671}
_EXAMPLE = "for example amqp://user:password@localhost:5672/ or amqps://user:password@broker.example/vhost"


def _refuse_exchange(name: str) -> str | None:
    if (
        not 0 < len(name.encode()) <= 127
        or not name.isprintable()
        or (name.startswith("amq.") and name != "amq.topic")
    ):
        return "is not an exchange name; use 1 to 127 printable characters, not beginning with amq., or amq.topic"
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
        danger="A queue that exists keeps its type; a warning says that it is another one. Classic queues live on "
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
        "its limit; a warning says that it is another one.",
        low=1,
        high=1_000_000,
        variable="broker_delivery_limit",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class BrokerEndpoint:
    """A broker's URL, checked, with the time limits of its connections."""

    url: str = field(repr=False)
    """Holds the password: shown nowhere; use `address`."""
    name: str
    """What the connections are called at the broker."""
    heartbeat: timedelta
    connect_timeout: timedelta
    """Bounds connecting, and then each call the broker answers at once (declare, consume, cancel)."""
    confirm_timeout: timedelta
    connection: AbstractConnection | None = field(default=None, repr=False)
    """One that the service has already and lends; `url` then only says where it leads."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            # The parser's own message may quote the URL, password included.
            raise ConfigurationError(f"The broker's URL cannot be read. Write it like this: {_EXAMPLE}.") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ConfigurationError(
                f"The broker's URL must begin with amqp:// or amqps:// and name a host: {_EXAMPLE}."
            )
        if port == 0:
            raise ConfigurationError("The broker's URL names port 0; leave the port out for the default.")
        if not timedelta(seconds=1) <= self.heartbeat <= timedelta(minutes=10):
            raise ConfigurationError(
                f"heartbeat is {self.heartbeat.total_seconds():g} s; it must be 1 to 600 s (10 s is a good value). "
                "Without one a dead link would never be noticed."
            )
        for name in ("connect_timeout", "confirm_timeout"):
            value: timedelta = getattr(self, name)
            if value <= timedelta(0):
                raise ConfigurationError(f"{name} is {value.total_seconds():g} s; it must be positive.")

    @property
    def address(self) -> str:
        """The URL without credentials and query, for logs and errors."""
        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        vhost = quote(unquote(parts.path[1:]), safe="")
        return f"{parts.scheme}://{host}:{parts.port or _PORTS[parts.scheme]}/{vhost}"

    @property
    def vhost(self) -> str:
        """The virtual host by its own name, whatever of it had to be escaped in the URL."""
        return unquote(urlsplit(self.url).path[1:]) or "/"

    @property
    def tls(self) -> TLSFiles | None:
        """What the URL says about TLS; None: none is spoken."""
        parts = urlsplit(self.url)
        if parts.scheme != "amqps":
            return None
        query = dict(parse_qsl(parts.query))
        return TLSFiles(
            cafile=query.get("cafile"),
            capath=query.get("capath"),
            certfile=query.get("certfile"),
            keyfile=query.get("keyfile"),
            verify=query.get("no_verify_ssl", "0") == "0",
        )

    @property
    def heartbeat_seconds(self) -> int:
        """The heartbeat as AMQP negotiates it, in whole seconds."""
        return max(1, round(self.heartbeat.total_seconds()))

    def driver_url(self) -> str:
        """Return the URL for the driver: heartbeat and mechanism are in its query, TLS it gets as a context."""
        parts = urlsplit(self.url)
        ours = {"heartbeat", "name", "cafile", "capath", "certfile", "keyfile", "no_verify_ssl"}
        query = [(name, value) for name, value in parse_qsl(parts.query) if name not in ours]
        query.append(("heartbeat", str(self.heartbeat_seconds)))
        return urlunsplit(parts._replace(query=urlencode(query)))


_NO_LIMIT = 1_000_000_000
"""RabbitMQ 4 limits deliveries to 20 unless told otherwise, 3.x knows no "unlimited": looking into a dead-letter
queue must not lose its letters, so they get a limit nobody reaches."""


@dataclass(slots=True)
class SeenTopology:
    """What was seen of the topology by the connections of one `RabbitMQBroker`."""

    listeners: bool = False
    """Whether the exchange of the listeners was there."""
    tie_at: float = 0.0
    """When it may be tied to what is published, by the clock of the connections."""


@dataclass(frozen=True, slots=True)
class TopologySettings:
    """What is declared, and how."""

    exchange: str
    queue_type: Literal["quorum", "classic"]
    delivery_limit: int
    seen: SeenTopology = field(default_factory=SeenTopology, compare=False, repr=False)

    @property
    def _own(self) -> str:
        # Names that begin with "amq." are the broker's, and no others may be made.
        return f"sagapost.{self.exchange}" if self.exchange.startswith("amq.") else self.exchange

    @property
    def listeners_exchange(self) -> str:
        """What the queues of listeners are bound to, all of them; it is bound to `exchange` once."""
        return f"{self._own}.listeners"

    @property
    def observed_exchange(self) -> str:
        """What the queues of observers are bound to; publishers send copies there."""
        return f"{self._own}.observed"

    def source_of(self, queue: Queue) -> str:
        """Return the exchange that a consumer's queue is bound to."""
        return self.observed_exchange if queue.observer else self.listeners_exchange

    @property
    def dead_letter_exchange(self) -> str:
        """Where rejected messages of all queues go, under the name of their queue."""
        return f"{self._own}.dead"

    def dead_letter_queue(self, queue: str) -> str:
        """Where the rejected messages of one queue end up."""
        return f"{queue}.dead"

    def queue_arguments(self, queue: Queue) -> dict[str, Any]:
        """Arguments of a consumer's queue."""
        arguments: dict[str, Any] = {
            "x-queue-type": self.queue_type,
            "x-dead-letter-exchange": self.dead_letter_exchange,
            "x-dead-letter-routing-key": queue.name,
        }
        if self.queue_type == "quorum":
            arguments |= {
                "x-delivery-limit": self.delivery_limit,
                # Dead-lettering is at most once unless asked for; at least once needs this overflow setting, which
                # does nothing without a maximum length.
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            }
        if queue.ordered:
            arguments["x-single-active-consumer"] = True
        return arguments

    def dead_letter_arguments(self) -> dict[str, Any]:
        """Arguments of a dead-letter queue."""
        if self.queue_type == "quorum":
            return {"x-queue-type": "quorum", "x-delivery-limit": _NO_LIMIT}
        return {"x-queue-type": "classic"}


@dataclass(slots=True)
class Limits:
    """What the broker was seen to take; shared by the publishers of one `RabbitMQBroker`.

    AMQP 0-9-1 has no way to ask for the largest message. What is configured is an upper bound that is kept here; what
    the broker refused teaches a lower one, from which on it is asked.
    """

    max_message_bytes: int
    refused_bytes: int | None = None
    """Size of the smallest message that the broker refused for a reason like its size; None: it refused none."""
    transactions: bool = True
    """Whether it knows transactions, in which messages are tried."""

    @property
    def largest(self) -> int:
        """The largest message that should go through."""
        if self.refused_bytes is None:
            return self.max_message_bytes
        return min(self.max_message_bytes, self.refused_bytes - 1)

    def refused(self, size: int) -> None:
        """Take note that the broker refused a message of this size."""
        self.refused_bytes = size if self.refused_bytes is None else min(self.refused_bytes, size)

    def taken(self, size: int) -> None:
        """Take note that it took one: a limit that was raised is forgotten."""
        if self.refused_bytes is not None and size >= self.refused_bytes:
            self.refused_bytes = None
