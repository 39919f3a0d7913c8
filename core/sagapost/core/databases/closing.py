"""Closing an engine: imported without the ORM, which a relay's process does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["dispose"]


async def dispose(engine: AsyncEngine) -> None:
    """Close an engine's connections, within five seconds: nobody answers a goodbye on a half-open one."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(5):
        await engine.dispose()
