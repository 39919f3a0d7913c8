"""The wake-up: a look at the newest position, often and cheaply.

SQLite tells nobody about a commit. Reading `max(position)` is one step down the right edge of a tree that is in
memory, a few dozen microseconds, and it sees the writers of this process and of every other.
"""

from __future__ import annotations

import sqlite3

import anyio
from sqlalchemy import Table

from sagapost.adapters.sqlite.connection import SQLiteLink
from sagapost.adapters.sqlite.rows import quoted

__all__ = ["PositionDoorbell"]

_SHORTEST = 0.002
_LONGEST = 0.025
_GROWTH = 1.05
"""Seconds between two looks: short while more may be about to come, longest after half a second of silence, when the
looks cost less than one percent of a core."""


class PositionDoorbell:
    """`Doorbell` on SQLite."""

    def __init__(self, link: SQLiteLink, outbox: Table) -> None:
        self._link = link
        self._newest = f"SELECT coalesce(max(position), 0) FROM {quoted(outbox)}"
        self._seen = 0

    async def arm(self) -> None:
        """Remember the newest row there is; a later one rings."""
        self._seen = await self._link.read(self._look)

    async def wait(self, timeout: float) -> bool:
        """Sleep until there is a newer row, or timed out."""
        interval = _SHORTEST
        with anyio.move_on_after(timeout):
            # AUTOINCREMENT: a position never comes back, so deletions in between cannot hide a new row.
            while await self._link.read(self._look) <= self._seen:
                await anyio.sleep(interval)
                interval = min(interval * _GROWTH, _LONGEST)
            return True
        return False

    async def disarm(self) -> None:
        """Nothing to take back: writers are not asked for anything."""

    def _look(self, connection: sqlite3.Connection) -> int:
        (newest,) = connection.execute(self._newest).fetchone()
        return int(newest)
