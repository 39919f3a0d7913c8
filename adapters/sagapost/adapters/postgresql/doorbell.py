"""The wake-up: LISTEN on a connection of its own, and the flag that asks writers to ring.

The writer's side is the statement trigger in `sagapost.outbox.tables`.
"""

from __future__ import annotations

from typing import Any

from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.adapters.postgresql.rows import qualified
from sagapost.core.life import Signal
from sagapost.core.outbox_store import RelayId
from sagapost.outbox.tables import OutboxTables, doorbell_channel

__all__ = ["PostgreSQLDoorbell"]


class PostgreSQLDoorbell:
    """`Doorbell` by LISTEN/NOTIFY.

    asyncpg reads the listening connection whenever data arrives, so unread notifications never pile up in the server.
    The end of the connection counts as a ring: a relay that slept on would receive nothing until its next poll.
    """

    def __init__(self, link: PostgreSQLLink, tables: OutboxTables, relay: RelayId) -> None:
        self._link = link
        self._relay = relay
        self._channel = doorbell_channel(tables.outbox)
        self._rung = Signal()
        relays = qualified(tables.relays)
        self._set_idle = f"UPDATE {relays} SET idle = $2 WHERE relay = $1"

    async def arm(self) -> None:
        """Listen, then ask writers to ring."""
        # What rang while nobody slept is no reason to wake.
        await self._rung.wait(0)
        # Repeated for a connection that replaced another; LISTEN itself is sent once for each.
        await self._link.listen(self._channel, self._on_ring)
        await self._link.fetch(self._set_idle, self._relay, 1)

    async def wait(self, timeout: float) -> bool:
        """Sleep until rung or timed out."""
        return await self._rung.wait(timeout)

    async def disarm(self) -> None:
        """Tell writers that nobody sleeps."""
        await self._link.fetch(self._set_idle, self._relay, 0)

    def _on_ring(self, *_: Any) -> None:
        self._rung.set()
