"""What an adapter says of itself, so that a URL is enough to use it.

An adapter of your own is a package with an entry point whose name is the scheme of its URLs:

    [project.entry-points."sagapost.brokers"]
    kafka = "acme_kafka:adapter"

where `adapter` is a `BrokerAdapter`. `sagapost relay` with SAGAPOST_BROKER_URL=kafka://... then finds it, reads its
settings from SAGAPOST_KAFKA_* by their declarations (`sagapost.core.settings`), and shows them in `sagapost config`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeAlias

from sagapost.core.broker import Broker

__all__ = ["BROKERS", "BrokerAdapter", "ForeignPolicy", "MakeBroker"]

BROKERS: Final = "sagapost.brokers"
"""The group of entry points."""

ForeignPolicy: TypeAlias = Literal["reject", "digest"]
"""What becomes of foreign messages without an id: parked, or given an id derived from their content."""


class MakeBroker(Protocol):
    """Makes a broker; opens nothing yet."""

    def __call__(self, url: str, settings: Any, *, without_id: ForeignPolicy) -> Broker:
        """Return the broker at a URL.

        :param settings: an instance of the adapter's `settings`.
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
    loggers: Mapping[str, int] = field(default_factory=dict[str, int])
    """Loggers of its driver, and the level below which they have nothing to say to an operator."""
