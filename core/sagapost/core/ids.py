"""Identifiers: UUIDv7 (RFC 9562), time-ordered so that indexes on them stay compact."""

from __future__ import annotations

import os
import sys
from typing import NewType
from uuid import UUID

__all__ = ["CorrelationId", "EventId", "new_id", "new_uuid"]

EventId = NewType("EventId", str)
"""CloudEvents `id`: unique within a `source`. Ours are UUIDv7 in canonical text form."""

CorrelationId = NewType("CorrelationId", str)
"""Identifies one saga; every event of the saga carries it."""

if sys.version_info >= (3, 14):
    from uuid import uuid7 as new_uuid
else:
    from uuid_utils import reseed_rng
    from uuid_utils.compat import uuid7 as _uuid7

    if sys.platform != "win32":
        # Forked workers inherit the state of their parent's generator, and would all go on to give out the same ids.
        os.register_at_fork(after_in_child=reseed_rng)

    def new_uuid() -> UUID:
        """Return a fresh UUIDv7."""
        return _uuid7()


def new_id() -> EventId:
    """Return a fresh UUIDv7 in canonical text form."""
    return EventId(str(new_uuid()))
