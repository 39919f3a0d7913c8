"""What an adapter says of itself, so that a URL is enough to use it.

An adapter of your own is a package with an entry point whose name is the scheme of its URLs:

    [project.entry-points."sagapost.brokers"]
    kafka = "acme_kafka:adapter"

    [project.entry-points."sagapost.databases"]
    cockroachdb = "acme_cockroach:adapter"

where `adapter` is a `BrokerAdapter` or a `DatabaseAdapter`. `sagapost relay` with SAGAPOST_BROKER_URL=kafka://... then
finds it, reads its settings from SAGAPOST_KAFKA_* by their declarations (`sagapost.core.settings`), and shows them in
`sagapost config`; with SAGAPOST_DATABASE_URL=cockroachdb://... every command speaks to that database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from sagapost.core.broker import Broker
from sagapost.core.foreign import ForeignMessages

if TYPE_CHECKING:
    # Not quick to import, and not needed to say what settings there are.
    from sqlalchemy import Connection, Table
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sagapost.core.databases import DatabaseKit
    from sagapost.core.findings import Diagnosis, Patience
    from sagapost.core.outbox_store import OutboxStore

__all__ = [
    "BROKERS",
    "DATABASES",
    "BrokerAdapter",
    "DatabaseAdapter",
    "EngineOptions",
    "MakeBroker",
    "MakeEngine",
    "MakeStore",
]

BROKERS: Final = "sagapost.brokers"
"""The group of entry points of brokers."""

DATABASES: Final = "sagapost.databases"
"""The group of entry points of databases."""


class MakeBroker(Protocol):
    """Makes a broker; opens nothing yet."""

    def __call__(self, url: str, settings: Any, *, foreign: ForeignMessages) -> Broker:
        """Return the broker at a URL.

        :param settings: an instance of the adapter's `settings`.
        :param foreign: how messages are read that are no CloudEvents, where a queue does not say so itself.
        :raises MissingExtraError: if its driver is not installed.
        :raises ConfigurationError: if the URL or a setting is not valid.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAdapter:
    """A broker."""

    name: str
    """In lower case: the prefix of its environment variables, and `messaging.system` of its metrics."""
    title: str
    """As it is called in sentences: RabbitMQ."""
    settings: type
    """Dataclass of what can be set, declared with `setting`; every field has a default."""
    make: MakeBroker
    example: str
    """A URL, with the password `password`."""
    check_url: Callable[[str], None] | None = None
    """Raises ValueError with what is wrong with a URL, as the rest of a sentence that begins with the variable; never
    quotes what may be a password."""
    examine: Callable[[Broker, Mapping[str, bool | None]], Awaitable[Sequence[Diagnosis]]] | None = None
    """Returns what is wrong with the broker, given the names of queues and whether each is ordered (None: unknown);
    declares and changes nothing. Raises like `Broker.depths`."""
    loggers: Mapping[str, int] = field(default_factory=dict[str, int])
    """Loggers of its driver, and the level below which they have nothing to say to an operator."""


class MakeStore(Protocol):
    """Makes the relay's side of the outbox; opens nothing yet."""

    def __call__(
        self,
        url: str,
        *,
        tables: Any,
        direct_url: str | None,
        connect_timeout: timedelta,
        call_timeout: timedelta,
    ) -> OutboxStore:
        """Return the store at a URL.

        :param tables: an `OutboxTables`.
        :param direct_url: of the same database without a pooler in between, for what has to listen.
        :param call_timeout: after so long a call counts as failed and its connection is dropped.
        :raises MissingExtraError: if its driver is not installed.
        :raises ConfigurationError: if a URL is not valid.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the connections of an engine are for."""

    connect_timeout: timedelta
    pool_size: int | None = None
    """Connections that are kept, and no more than these; None: each is opened when it is asked for and then closed."""
    call_timeout: timedelta | None = None
    """A single statement's; None: none, since whoever asks has one of its own, or time."""
    turn_timeout: timedelta | None = None
    """How long one writer waits for another where a database has one at a time; None: as the driver does."""
    name: str | None = None
    """What the connections are called at the server."""


class MakeEngine(Protocol):
    """Makes an engine for handlers and commands; opens nothing yet."""

    def __call__(self, url: str, options: EngineOptions) -> AsyncEngine:
        """Return an engine for a URL.

        :raises ModuleNotFoundError: if its driver is not installed.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseAdapter:
    """A database."""

    name: str
    """As SQLAlchemy calls its dialect: postgresql."""
    title: str
    """As it is called in sentences: PostgreSQL."""
    driver: str
    """The module that SQLAlchemy drives it with. A URL may name it (`postgresql+asyncpg://`) and no other."""
    extra: str | None
    """The extra of sagapost that installs the driver; None: it comes with the adapter's package."""
    kit: Callable[[], DatabaseKit]
    """Returns what differs from other databases in SQL."""
    url: Callable[[str], URL]
    """Returns a URL as SQLAlchemy shows it, with the driver."""
    make_store: MakeStore
    make_engine: MakeEngine
    examine_server: Callable[[Connection, Sequence[Table], Patience | None], Iterable[Diagnosis]] | None = None
    """Yields what is wrong with the server, as far as these tables suffer from it; reads catalogues, in the caller's
    transaction, and waits for no lock for long."""
    examine_outbox: Callable[[Connection, Table], Iterable[Diagnosis]] | None = None
    """Yields what is wrong with the rows of an outbox that only this database can have."""
    is_server: bool = True
    """Whether its URLs name a host, and not a file."""
    check_url: Callable[[str], None] | None = None
    """As for `BrokerAdapter`."""
    loggers: Mapping[str, int] = field(default_factory=dict[str, int])
    """As for `BrokerAdapter`."""
