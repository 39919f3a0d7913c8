"""A time limit for what runs on a database connection: it ends the statement on the server too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

__all__ = ["Limit", "time_limit"]

_GRACE = 5.0
"""Seconds in which drivers may tell the server to give a statement up, and users' code may clean up."""


class Limit:
    """Whether a time limit is over."""

    __slots__ = ("_scope", "_timeout")

    def __init__(self, scope: anyio.CancelScope | None = None, timeout: asyncio.Timeout | None = None) -> None:
        self._scope = scope
        self._timeout = timeout

    def expired(self) -> bool:
        """Return whether the block was cancelled because its time was up."""
        if self._timeout is not None and self._timeout.expired():
            return True
        return self._scope is not None and self._scope.cancel_called


@asynccontextmanager
async def time_limit(seconds: float, *, once: bool) -> AsyncGenerator[Limit]:
    """Cancel the block after `seconds`.

    :param once: cancel it once, and only after a grace again and again. A cancel scope cancels at every await, and so
        also the driver's request to the server to give up the statement that is being waited for. The server would go
        on with it, wait behind a lock for instance, and keep all that its transaction has locked: the dedup key of the
        message, which could then not even be parked. Not for a driver whose statements must be shielded.
    :raises TimeoutError: if the block was cancelled by this.
    """
    if not once:
        with anyio.fail_after(seconds) as scope:
            yield Limit(scope)
        return
    with anyio.fail_after(seconds + _GRACE) as scope:
        async with asyncio.timeout(seconds) as timeout:
            yield Limit(scope, timeout)
