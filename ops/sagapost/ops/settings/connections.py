"""Where the database and the broker are."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, GetPydanticSchema
from pydantic_core import core_schema
from pydantic_settings import BaseSettings

from sagapost.core.databases.server_url import read_server_url
from sagapost.core.errors import ConfigurationError
from sagapost.ops.masking import SecretUrl
from sagapost.ops.settings.field import setting
from sagapost.ops.settings.units import ByteSize, Duration

__all__ = ["ConnectionSettings"]

_BROKERS = ("amqp", "amqps", "memory")
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*")


def _url_schema(check: Callable[[SecretUrl], None]) -> GetPydanticSchema:
    def read(value: object) -> SecretUrl:
        if not isinstance(value, str | SecretUrl):
            # The value is not shown: it may hold what the right one holds.
            raise ValueError(f"is a {type(value).__name__}, not a URL")  # noqa: TRY004 - pydantic collects ValueErrors
        url = value if isinstance(value, SecretUrl) else SecretUrl(value.strip())
        check(url)
        return url

    return GetPydanticSchema(
        lambda _source, _handler: core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )
    )


def _check_parts(url: SecretUrl, *, server: bool) -> None:
    """Check what both kinds of URL have in common.

    :raises ValueError: says what is wrong without quoting any part that could be a password.
    """
    if not server:
        return
    if not url.well_formed:
        raise ValueError(
            "cannot be taken apart: write scheme://user:password@host:port/name, and percent-encode special "
            "characters of the password (@ is %40, / is %2F, : is %3A, # is %23, ? is %3F)"
        )
    port = re.search(r":(\d+)(?:/|\?|$)", url.reveal().split("://", 1)[1].rsplit("@", 1)[-1])
    if port is not None and not 0 < int(port[1]) < 65_536:
        raise ValueError(f"has the port {port[1]}; ports are 1 to 65535")


def _check_database(url: SecretUrl) -> None:
    backend, _, driver = url.scheme.partition("+")
    known = _DATABASES.get(backend)
    if known is None:
        raise ValueError(f"{_scheme_of(url)}; use postgresql:// or sqlite://")
    expected, check = known
    if driver and driver != expected:
        raise ValueError(f"names the driver {driver!r}; leave the driver out, or name {expected!r}")
    check(url)


def _check_server(url: SecretUrl) -> None:
    _check_parts(url, server=True)
    try:
        read = read_server_url(url.reveal())
        read.tls_argument()
    except ConfigurationError as error:
        raise ValueError(f"is refused. {error}") from None
    if read.database is None:
        raise ValueError("names no database after the host")


def _check_file(url: SecretUrl) -> None:
    if url.reveal().split("://", 1)[1].partition("?")[0].lstrip("/") in {"", ":memory:"}:
        raise ValueError("names no file, and an in-memory database cannot be shared between connections")


_DATABASES: dict[str, tuple[str, Callable[[SecretUrl], None]]] = {
    "postgresql": ("asyncpg", _check_server),
    "postgres": ("asyncpg", _check_server),
    "sqlite": ("aiosqlite", _check_file),
}
"""Scheme -> the driver that is used, and what a URL of it must be."""


def _check_broker(url: SecretUrl) -> None:
    if url.scheme not in _BROKERS:
        raise ValueError(f"{_scheme_of(url)}; use amqp://, amqps:// or memory://")
    _check_parts(url, server=url.scheme != "memory")


def _scheme_of(url: SecretUrl) -> str:
    return f"has the scheme {url.scheme!r}" if url.scheme else "has no scheme"


DatabaseUrl = Annotated[SecretUrl, _url_schema(_check_database)]
BrokerUrl = Annotated[SecretUrl, _url_schema(_check_broker)]


def _name(*, longest: int, empty: bool) -> AfterValidator:
    def check(value: str) -> str:
        if len(value) > longest:
            raise ValueError(f"has {len(value)} characters; at most {longest} fit")
        if _IDENTIFIER.fullmatch(value) is None and not (empty and not value):
            raise ValueError("is not a plain name; use a-z, 0-9 and _, and begin with a letter or _")
        return value

    return AfterValidator(check)


def _check_exchange(value: str) -> str:
    if not 0 < len(value.encode()) <= 127 or not value.isprintable() or value.startswith("amq."):
        raise ValueError("is not an exchange name; use 1 to 127 printable characters, not beginning with amq.")
    return value


# 63 bytes is PostgreSQL's limit; the longest name built on a prefix leaves it 24.
Identifier = Annotated[str, _name(longest=63, empty=False)]
Prefix = Annotated[str, _name(longest=24, empty=True)]
ExchangeName = Annotated[str, AfterValidator(_check_exchange)]


class ConnectionSettings(BaseSettings):
    """Which database and which broker, and how their calls are bounded."""

    database_url: DatabaseUrl | None = setting(
        None,
        "The database that holds the outbox and the inbox of this service.",
        example="postgresql+asyncpg://orders:password@localhost:5432/orders",
        unit="URL, postgresql:// or sqlite://",
        danger="Without `?sslmode=verify-full` somebody may stand in for the server (docs/operations.md). "
        "Two services that share a database need different table prefixes or schemas.",
    )
    database_direct_url: DatabaseUrl | None = setting(
        None,
        "The same database without the connection pooler in between, for the one connection that listens for the "
        "doorbell. Only needed where `SAGAPOST_DATABASE_URL` leads through PgBouncer in transaction mode.",
        example="postgresql+asyncpg://orders:password@db-primary:5432/orders",
        unit="URL, postgresql://",
        danger="Another database here means that the doorbell never rings and every event waits for the poll "
        "interval.",
    )
    database_schema: Identifier | None = setting(
        None,
        "Schema of sagapost's tables (PostgreSQL). Unset: the connection's search path.",
        example="messaging",
        unit="name: a-z, 0-9 and _",
        danger="Must be what the service itself passes as `OutboxTables(schema=...)`, or its events stay unread.",
    )
    table_prefix: Prefix = setting(
        "",
        "Put before the name of each of sagapost's tables.",
        example="orders_",
        unit="name: a-z, 0-9 and _",
        danger="Must be what the service itself passes as `OutboxTables(prefix=...)`, or its events stay unread.",
    )
    database_call_timeout: Duration = setting(
        timedelta(seconds=30),
        "How long one call of the relay to the database may take before its connection is given up.",
        example="30s",
        unit="duration",
        danger="Shorter than the slowest fetch: it reconnects for ever. Long: a half-open link is noticed late.",
        low=timedelta(seconds=1),
        high=timedelta(minutes=10),
    )
    database_connect_timeout: Duration = setting(
        timedelta(seconds=10),
        "How long opening a database connection may take.",
        example="10s",
        unit="duration",
        danger="Too short on a busy server: it is taken for unreachable.",
        low=timedelta(milliseconds=100),
        high=timedelta(minutes=5),
    )
    broker_url: BrokerUrl | None = setting(
        None,
        "The message broker. `memory://` lives inside one process: only `sagapost consume --with-relay` can use it.",
        example="amqp://orders:password@localhost:5672/",
        unit="URL, amqp://, amqps:// or memory://",
        danger="A path that is not just `/` names a virtual host, which must exist.",
    )
    exchange: ExchangeName = setting(
        "sagapost",
        "The topic exchange that events are published to and queues are bound to.",
        example="sagapost",
        unit="name, at most 127 characters",
        danger="Services that are to hear each other must agree on it.",
    )
    queue_type: Literal["quorum", "classic"] = setting(
        "quorum",
        "The kind of queue a consumer declares.",
        example="classic",
        unit="word",
        danger="A queue that exists keeps its type; another value here is refused at start. Classic queues live on "
        "one node of a cluster.",
    )
    broker_connect_timeout: Duration = setting(
        timedelta(seconds=10),
        "How long connecting to the broker, and declaring what is needed there, may take.",
        example="10s",
        unit="duration",
        danger="Too short on a busy broker: it is taken for unreachable.",
        low=timedelta(milliseconds=100),
        high=timedelta(minutes=5),
    )
    broker_confirm_timeout: Duration = setting(
        timedelta(seconds=30),
        "How long the broker may take to confirm a message before it counts as unknown and is published again, under "
        "the same id.",
        example="30s",
        unit="duration",
        danger="Shorter than the broker needs under load: duplicates, and a reconnect each time.",
        low=timedelta(seconds=1),
        high=timedelta(minutes=10),
    )
    broker_heartbeat: Duration = setting(
        timedelta(seconds=10),
        "Interval of the heartbeat on broker connections; a dead link is noticed after two of them.",
        example="10s",
        unit="duration",
        danger="Too short: a busy process loses its connections. Long: a dead link is noticed late.",
        low=timedelta(seconds=1),
        high=timedelta(minutes=10),
    )
    broker_max_message_bytes: ByteSize = setting(
        16 * 2**20,
        "Largest event that is sent; a larger one counts as refused by the broker.",
        example="16MiB",
        unit="bytes",
        danger="Above the broker's own `max_message_size` (16 MiB in RabbitMQ 4, 128 MiB before), it closes the "
        "channel over such a message.",
        low=1,
        high=2**31,
    )
    broker_max_buffered_bytes: ByteSize = setting(
        64 * 2**20,
        "Bodies received ahead of a slow consumer; past it the socket is not read.",
        example="64MiB",
        unit="bytes",
        danger="High: memory. Low with large messages: the consumer waits for the network.",
        low=1024,
        high=2**40,
    )
    broker_delivery_limit: int = setting(
        100,
        "How often the broker hands a message of a quorum queue out before it moves to the queue's dead-letter queue.",
        example="100",
        unit="deliveries",
        danger="Lost connections count, so a low limit turns an outage into dead letters. A queue that exists keeps "
        "its limit; another value here is refused at start.",
        low=1,
        high=1_000_000,
    )
    strangers_without_id: Literal["reject", "digest"] = setting(
        "reject",
        "Messages of other producers that carry no message id: `reject` parks them, `digest` derives an id from their "
        "content.",
        example="digest",
        unit="word",
        danger="With `digest`, two messages that were meant to be two but are equal byte for byte are handled once.",
    )
