"""Which adapter serves which scheme of URLs: ours, and those that other packages bring by an entry point."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Generic, TypeVar

from sagapost.core.adapters import BROKERS, DATABASES, BrokerAdapter, DatabaseAdapter
from sagapost.core.errors import ConfigurationError, SagapostError

__all__ = ["Registry", "UnknownSchemeError", "brokers", "database_adapter", "databases"]

A = TypeVar("A", bound=BrokerAdapter | DatabaseAdapter)


class UnknownSchemeError(ConfigurationError):
    """No adapter serves the scheme of a URL."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an adapter is."""

    value: str
    """`module:attribute`."""
    package: str
    """The distribution that brings it."""


class Registry(Generic[A]):
    """The adapters of one kind.

    :param group: of the entry points by which other packages bring theirs.
    :param kind: what an adapter is an instance of.
    :param ours: by scheme, `module:attribute` of those in this package.
    """

    def __init__(self, group: str, kind: type[A], ours: Mapping[str, str]) -> None:
        self._group = group
        self._kind = kind
        self._ours = {scheme: _Place(value, "sagapost") for scheme, value in ours.items()}

    def ours(self) -> list[A]:
        """Return the adapters of this package, for the page of settings."""
        firsts = {place: scheme for scheme, place in reversed(self._ours.items())}
        return [self._load(firsts[place], place) for place in dict.fromkeys(self._ours.values())]

    def others(self) -> Sequence[str]:
        """Return the schemes that adapters of other packages serve; imports none of them."""
        return sorted(set(self._places()) - set(self._ours))

    def find(self, scheme: str) -> A:
        """Return the adapter for a scheme.

        :raises UnknownSchemeError: if there is none; names those there are, the nearest first.
        :raises ConfigurationError: if there are two, or the one cannot be imported or is no adapter.
        :raises MissingExtraError: if it says that something is not installed.
        """
        places = self._places()
        there = places.get(scheme, ())
        if not there:
            near = difflib.get_close_matches(scheme, places, n=1)
            order = [*near, *(name for name in sorted(places) if name not in near)]
            hint = f"Did you mean {near[0]}://? " if near else ""
            raise UnknownSchemeError(f"{hint}There are adapters for {', '.join(f'{name}://' for name in order)}.")
        if len(there) > 1:
            named = " and ".join(f"{place.value} of the package {place.package}" for place in there)
            raise ConfigurationError(f"Two adapters serve {scheme}://: {named}. Uninstall one of the packages.")
        return self._load(scheme, there[0])

    def _places(self) -> Mapping[str, Sequence[_Place]]:
        found = {scheme: [place] for scheme, place in self._ours.items()}
        for scheme, place in _brought(self._group, tuple(sys.path)):
            # One package that is on the path twice is no second adapter.
            if place not in found.setdefault(scheme, []):
                found[scheme].append(place)
        return found

    def _load(self, scheme: str, place: _Place) -> A:
        where = f"The adapter for {scheme}://, {place.value} of the package {place.package},"
        module, _, attribute = place.value.partition(":")
        try:
            adapter = getattr(import_module(module), attribute)
        except SagapostError:
            # It says itself what is missing.
            raise
        except Exception as error:
            raise ConfigurationError(
                f"{where} cannot be imported: {type(error).__name__}: {error}. Reinstall or upgrade the package."
            ) from error
        if not isinstance(adapter, self._kind):
            raise ConfigurationError(f"{where} is a {type(adapter).__qualname__}, not a {self._kind.__name__}.")
        return adapter


@cache
def _brought(group: str, _path: tuple[str, ...]) -> Sequence[tuple[str, _Place]]:
    """Look through the metadata of all that is installed, which takes a while; once for each state of the path."""
    return [(point.name.lower(), _Place(point.value, _package_of(point))) for point in entry_points(group=group)]


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "a package without a name"


brokers: Final = Registry(
    BROKERS,
    BrokerAdapter,
    {
        "amqp": "sagapost.adapters.rabbitmq.adapter:adapter",
        "amqps": "sagapost.adapters.rabbitmq.adapter:adapter",
        "memory": "sagapost.adapters.memory.adapter:adapter",
    },
)
databases: Final = Registry(
    DATABASES,
    DatabaseAdapter,
    {
        "postgresql": "sagapost.adapters.postgresql.adapter:adapter",
        "postgres": "sagapost.adapters.postgresql.adapter:adapter",
        "sqlite": "sagapost.adapters.sqlite.adapter:adapter",
    },
)


def database_adapter(scheme: str) -> DatabaseAdapter:
    """Return the adapter for the scheme of a database's URL, which may name a driver. Raises like `Registry.find`."""
    return databases.find(scheme.partition("+")[0])
