"""Which adapter serves which scheme of URLs: ours, and those that other packages bring by an entry point."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from sagapost.core.adapters import BROKERS, BrokerAdapter
from sagapost.core.errors import ConfigurationError, SagapostError

__all__ = ["UnknownSchemeError", "broker_adapter", "find_adapter", "other_schemes", "our_brokers"]

_OURS: Final[Mapping[str, str]] = {
    "amqp": "sagapost.adapters.rabbitmq.adapter:adapter",
    "amqps": "sagapost.adapters.rabbitmq.adapter:adapter",
    "memory": "sagapost.adapters.memory.adapter:adapter",
}


class UnknownSchemeError(ConfigurationError):
    """No adapter serves the scheme of a URL."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an adapter is."""

    value: str
    """`module:attribute`."""
    package: str
    """The distribution that brings it."""


def our_brokers() -> list[BrokerAdapter]:
    """Return the adapters of this package, for the page of settings."""
    return [find_adapter(scheme, {scheme: [_Place(_OURS[scheme], "sagapost")]}) for scheme in ("amqp", "memory")]


def other_schemes() -> Sequence[str]:
    """Return the schemes that adapters of other packages serve; imports none of them."""
    return sorted(set(_places()) - set(_OURS))


def broker_adapter(scheme: str) -> BrokerAdapter:
    """Return the adapter for a scheme.

    :raises UnknownSchemeError: if there is none; names those there are, the nearest first.
    :raises ConfigurationError: if there are two, or the one cannot be imported or is no adapter.
    :raises MissingExtraError: if it says that something is not installed.
    """
    return find_adapter(scheme, _places())


def _places() -> Mapping[str, Sequence[_Place]]:
    return _places_on(tuple(sys.path))


@cache
def _places_on(_path: tuple[str, ...]) -> Mapping[str, Sequence[_Place]]:
    """Look through the metadata of all that is installed, which takes a while; once for each state of the path."""
    found: dict[str, list[_Place]] = {scheme: [_Place(value, "sagapost")] for scheme, value in _OURS.items()}
    for point in entry_points(group=BROKERS):
        place = _Place(point.value, _package_of(point))
        # One package that is on the path twice is no second adapter.
        if place not in found.setdefault(point.name.lower(), []):
            found[point.name.lower()].append(place)
    return found


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "a package without a name"


def find_adapter(scheme: str, places: Mapping[str, Sequence[_Place]]) -> BrokerAdapter:
    """Return the adapter for a scheme from these places; else as `broker_adapter`."""
    there = places.get(scheme, ())
    if not there:
        near = difflib.get_close_matches(scheme, places, n=1)
        order = [*near, *(name for name in sorted(places) if name not in near)]
        hint = f"Did you mean {near[0]}://? " if near else ""
        raise UnknownSchemeError(f"{hint}There are adapters for {', '.join(f'{name}://' for name in order)}.")
    if len(there) > 1:
        named = " and ".join(f"{place.value} of the package {place.package}" for place in there)
        raise ConfigurationError(f"Two adapters serve {scheme}://: {named}. Uninstall one of the packages.")
    return _load(scheme, there[0])


def _load(scheme: str, place: _Place) -> BrokerAdapter:
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
    if not isinstance(adapter, BrokerAdapter):
        raise ConfigurationError(f"{where} is a {type(adapter).__qualname__}, not a BrokerAdapter.")
    return adapter
