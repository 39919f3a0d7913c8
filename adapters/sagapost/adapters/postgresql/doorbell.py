"""The wake-up: LISTEN on a connection of its own, and the lock that asks writers to ring.

The writer's side is the statement trigger in `sagapost.outbox.doorbell`.
"""

from __future__ import annotations

from typing import Any

from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.core.life import Signal
from sagapost.outbox.tables import OutboxTables, doorbell_channel, doorbell_lock

__all__ = ["PostgreSQLDoorbell"]

_TRIES = 5
"""A writer holds the lock for a moment, to find out whether it is free."""
# A connection whose other end is lost holds the lock, and every commit rings, until the server gives it up.
_SHORT_LIVED = """
    SELECT set_config('tcp_keepalives_idle', '20', false), set_config('tcp_keepalives_interval', '5', false),
           set_config('tcp_keepalives_count', '4', false), set_config('tcp_user_timeout', '40000', false)"""


# A snapshot names the open transactions before the last one that has ended. Ending one of its own after the lock was
# taken makes it name every writer that found the lock free: those will not ring, and the fetch that follows must know.
_ARM = "SELECT pg_try_advisory_lock_shared($1), pg_current_xact_id()"


class PostgreSQLDoorbell:
    """`Doorbell` by LISTEN/NOTIFY.

    asyncpg reads the listening connection whenever data arrives, so unread notifications never pile up in the server.
    The end of the connection counts as a ring: a relay that slept on would receive nothing until its next poll.
    """

    def __init__(self, link: PostgreSQLLink, tables: OutboxTables) -> None:
        self._link = link
        self._channel = doorbell_channel(tables.outbox)
        self._lock = doorbell_lock(tables.outbox)
        self._rung = Signal()
        self._known = 0
        """The connection (by `Link.opened`) that was told to be short-lived."""

    async def arm(self) -> None:
        """Listen, then ask writers to ring: all that commit while a relay holds the lock."""
        # What rang while nobody slept is no reason to wake.
        await self._rung.wait(0)
        # Repeated for a connection that replaced another; LISTEN itself is sent once for each.
        if not await self._link.listen(self._channel, self._on_ring):
            return
        if self._known != self._link.opened:
            await self._link.fetch(_SHORT_LIVED)
            self._known = self._link.opened
        for _ in range(_TRIES):
            row = await self._link.fetchrow(_ARM, self._lock)
            if row is not None and row[0]:
                return

    async def wait(self, timeout: float) -> bool:
        """Sleep until rung or timed out."""
        return await self._rung.wait(timeout)

    async def disarm(self) -> None:
        """Tell writers that this relay is awake. Nobody else uses the connection."""
        if self._link.is_open:
            await self._link.fetch("SELECT pg_advisory_unlock_all()")

    def _on_ring(self, *_: Any) -> None:
        self._rung.set()
