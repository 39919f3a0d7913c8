"""`@event("orders.placed.v1")`: the event type, kept on the class itself and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sagapost.core.errors import ConfigurationError, UnnamedEventError

__all__ = ["event", "event_type_of", "has_event_type"]

_ATTRIBUTE = "__sagapost_event_type__"
_T = TypeVar("_T", bound=type[Any])

# TypedDict classes refuse attributes that are not annotations on some versions of Python, so the name is put into
# the class namespace with type.__setattr__, which every kind of class accepts.


def event(name: str) -> Callable[[_T], _T]:
    """Name the event type of a class, for example ``@event("payments.payment-taken.v1")``.

    The name is stored on the class: there is no registry to import or to collide in. Subclasses do not inherit it,
    since two classes with one name could not be told apart by a consumer.

    :raises ConfigurationError: if the name is empty, longer than 255 bytes, or contains white space.
    """
    if not name or len(name.encode()) > 255 or any(c.isspace() for c in name):
        raise ConfigurationError(
            f"{name!r} is not an event type. Use 1 to 255 characters without white space, "
            'for example "orders.order-placed.v1".'
        )

    def mark(cls: _T) -> _T:
        type.__setattr__(cls, _ATTRIBUTE, name)
        return cls

    return mark


def has_event_type(cls: type) -> bool:
    """Return whether `cls` itself (not a base class) was named with `@event`."""
    return _ATTRIBUTE in vars(cls)


def event_type_of(cls: type) -> str:
    """Return the event type of a class.

    :raises UnnamedEventError: if the class was not named with `@event`.
    """
    name = vars(cls).get(_ATTRIBUTE)
    if not isinstance(name, str):
        raise UnnamedEventError(cls)
    return name
