"""Where the database and the broker are, and how calls to the database are bounded."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar

from sagapost.core.settings import check, setting
from sagapost.ops.masking import SecretUrl
from sagapost.ops.registry import UnknownSchemeError, brokers, database_adapter

__all__ = ["ConnectionSettings"]

_A = TypeVar("_A")

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*")


def _check_parts(url: SecretUrl) -> None:
    """Check the parts of a server's URL.

    :raises ValueError: says what is wrong without quoting any part that could be a password.
    """
    if not url.well_formed:
        raise ValueError(
            "cannot be taken apart: write scheme://user:password@host:port/name, and percent-encode special "
            "characters of the password (@ is %40, / is %2F, : is %3A, # is %23, ? is %3F)"
        )
    port = re.search(r":(\d+)(?:/|\?|$)", url.reveal().split("://", 1)[1].rsplit("@", 1)[-1])
    if port is not None and not 0 < int(port[1]) < 65_536:
        raise ValueError(f"has the port {port[1]}; ports are 1 to 65535")


def _check_database(url: SecretUrl) -> None:
    adapter = _found(database_adapter, url, example=_EXAMPLE_DATABASE)
    driver = url.scheme.partition("+")[2]
    if driver and driver != adapter.driver:
        raise ValueError(f"names the driver {driver!r}; leave the driver out, or name {adapter.driver!r}")
    if adapter.is_server:
        _check_parts(url)
    if adapter.check_url is not None:
        adapter.check_url(url.reveal())


def _check_broker(url: SecretUrl) -> None:
    adapter = _found(brokers.find, url, example=_EXAMPLE_BROKER)
    _check_parts(url)
    if adapter.check_url is not None:
        adapter.check_url(url.reveal())


def _found(find: Callable[[str], _A], url: SecretUrl, *, example: str) -> _A:
    if not url.scheme:
        raise ValueError(f"has no scheme; an example is {example}")
    try:
        return find(url.scheme)
    except UnknownSchemeError as error:
        raise ValueError(f"has the scheme {url.scheme!r}, which no adapter serves. {str(error).rstrip('.')}") from None


_EXAMPLE_DATABASE = "postgresql+asyncpg://orders:password@localhost:5432/orders"
_EXAMPLE_BROKER = "amqp://orders:password@localhost:5672/"


def _refused(check_url: Callable[[SecretUrl], None]) -> Callable[[SecretUrl], str | None]:
    def refuse(url: SecretUrl) -> str | None:
        try:
            check_url(url)
        except ValueError as error:
            return str(error)
        return None

    return refuse


def _refuse_name(*, longest: int, empty: bool) -> Callable[[str], str | None]:
    def refuse(value: str) -> str | None:
        if len(value) > longest:
            return f"has {len(value)} characters; at most {longest} fit"
        if _IDENTIFIER.fullmatch(value) is None and not (empty and not value):
            return "is not a plain name; use a-z, 0-9 and _, and begin with a letter or _"
        return None

    return refuse


# 63 bytes is PostgreSQL's limit; the longest name built on a prefix leaves it 24.
_refuse_schema = _refuse_name(longest=63, empty=False)
_refuse_prefix = _refuse_name(longest=24, empty=True)


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """Which database and which broker."""

    database_url: SecretUrl | None = setting(
        None,
        "The database that holds the outbox and the inbox of this service, `postgresql://`, `sqlite://` or that of an "
        "adapter that another package brings.",
        example=_EXAMPLE_DATABASE,
        unit="URL; its scheme chooses the adapter",
        danger="Without `?sslmode=verify-full` somebody may stand in for the server (docs/operations.md). "
        "Two services that share a database need different table prefixes or schemas.",
        refuse=_refused(_check_database),
    )
    database_direct_url: SecretUrl | None = setting(
        None,
        "The same database without the connection pooler in between, for the one connection that listens for the "
        "doorbell. Only needed where `SAGAPOST_DATABASE_URL` leads through PgBouncer in transaction mode.",
        example="postgresql+asyncpg://orders:password@db-primary:5432/orders",
        unit="URL",
        danger="Another database here means that the doorbell never rings and every event waits for the poll "
        "interval.",
        refuse=_refused(_check_database),
    )
    database_schema: str | None = setting(
        None,
        "Schema of sagapost's tables (PostgreSQL). Unset: the connection's search path.",
        example="messaging",
        unit="name: a-z, 0-9 and _",
        danger="Must be what the service itself passes as `OutboxTables(schema=...)`, or its events stay unread.",
        refuse=_refuse_schema,
    )
    table_prefix: str = setting(
        "",
        "Put before the name of each of sagapost's tables.",
        example="orders_",
        unit="name: a-z, 0-9 and _",
        danger="Must be what the service itself passes as `OutboxTables(prefix=...)`, or its events stay unread.",
        refuse=_refuse_prefix,
    )
    database_call_timeout: timedelta = setting(
        timedelta(seconds=30),
        "How long one call of the relay to the database may take before its connection is given up.",
        example="30s",
        unit="duration",
        danger="Shorter than the slowest fetch: it reconnects for ever. Long: a half-open link is noticed late.",
        low=timedelta(seconds=1),
        high=timedelta(minutes=10),
    )
    database_connect_timeout: timedelta = setting(
        timedelta(seconds=10),
        "How long opening a database connection may take.",
        example="10s",
        unit="duration",
        danger="Too short on a busy server: it is taken for unreachable.",
        low=timedelta(milliseconds=100),
        high=timedelta(minutes=5),
    )
    broker_url: SecretUrl | None = setting(
        None,
        "The message broker. `memory://` lives inside one process: only `sagapost consume --with-relay` can use it.",
        example=_EXAMPLE_BROKER,
        unit="URL; its scheme chooses the adapter",
        danger="On RabbitMQ a path that is not just `/` names a virtual host, which must exist.",
        refuse=_refused(_check_broker),
    )
    foreign_without_id: Literal["reject", "digest"] = setting(
        "reject",
        "Messages of other producers that carry no message id: `reject` parks them, `digest` derives an id from their "
        "content.",
        example="digest",
        unit="word",
        danger="With `digest`, two messages that were meant to be two but are equal byte for byte are handled once.",
    )

    def __post_init__(self) -> None:
        check(self)
