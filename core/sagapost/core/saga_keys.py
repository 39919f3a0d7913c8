"""Business keys of a saga on its events: how somebody who knows the order's number finds the saga.

They travel as the CloudEvents extension `sagakeys`, in the form of W3C baggage: ``order=4711,customer=ada``, names and
values percent-encoded. Written by what starts the saga, read by trackers; every event may carry them, one is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, unquote

from sagapost.core.envelope import Event
from sagapost.core.errors import InvalidEventError

__all__ = ["SAGA_KEYS", "encode_keys", "keys_of"]

SAGA_KEYS = "sagakeys"
"""Name of the extension attribute."""

_MAX_CHARACTERS = 255


def encode_keys(keys: Mapping[str, object]) -> str:
    """Return the attribute's value; values are taken as text.

    :raises InvalidEventError: if a name or value is empty or over 255 characters.
    """
    for name, value in keys.items():
        if not name or not 0 < len(str(value)) <= _MAX_CHARACTERS or len(name) > _MAX_CHARACTERS:
            raise InvalidEventError(
                attribute=SAGA_KEYS,
                value=f"{name}={value}",
                reason=f"names and values of business keys have 1 to {_MAX_CHARACTERS} characters.",
            )
    return ",".join(f"{quote(name, safe='')}={quote(str(value), safe='')}" for name, value in keys.items())


def keys_of(event: Event) -> dict[str, str]:
    """Return the business keys an event carries; what is not of their form, in a foreign message, is left out."""
    pairs = (entry.partition("=") for entry in event.extensions.get(SAGA_KEYS, "").split(","))
    return {
        unquote(name.strip()): unquote(value.strip()) for name, equals, value in pairs if equals and name and value
    }
