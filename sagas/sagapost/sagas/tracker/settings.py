"""What can be set on a tracker, validated when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sagapost.core.errors import ConfigurationError

__all__ = ["TrackerSettings"]


@dataclass(frozen=True, slots=True)
class TrackerSettings:
    """Settings of one tracker.

    :raises ConfigurationError: if one is out of range; names it.
    """

    keys: tuple[str, ...] = ()
    """Fields of payloads by which sagas can be found, for example ``order_id``. Their values are kept."""
    ends: tuple[str, ...] = ()
    """Event types after which a saga is over, beside those of the choreography."""
    max_events: int = 1_000
    """Events kept of one saga, the newest. Each fold rewrites the history: large ones make it slow."""
    retention: timedelta = timedelta(days=30)
    """How long a saga is kept after its end."""
    silent_retention: timedelta = timedelta(days=180)
    """How long a saga that never ended is kept after its last event. Older events of unknown sagas are ignored."""
    cached_sagas: int = 20_000
    """Histories kept in memory between batches; a few kilobytes each."""
    timeout: timedelta = timedelta(seconds=30)
    """How long one call to the database may take."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.max_events < 1 or self.cached_sagas < 0:
            raise ConfigurationError("TrackerSettings: max_events is at least 1, cached_sagas at least 0.")
        if not timedelta(0) < self.retention <= self.silent_retention:
            raise ConfigurationError("TrackerSettings: silent_retention is at least retention, which is positive.")
