"""Which of the library's own events are for observers alone: what became of a saga, told to whoever follows it.

The others, requests, are for the services they are addressed to, like any event.
"""

from __future__ import annotations

__all__ = ["is_announcement"]

_LIFECYCLE = "sagapost.saga."
_REQUESTED = "-requested.v1"


def is_announcement(event_type: str) -> bool:
    """Return whether an event of this type has reached whom it is for once an observer has it."""
    return event_type.startswith(_LIFECYCLE) and not event_type.endswith(_REQUESTED)
