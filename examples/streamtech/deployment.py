"""The running services, wherever they run, as the demo sees them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

import anyio
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost import Service
from sagapost.core.broker import Broker
from sagapost.sagas.tracker import SagaView

Tracked: TypeAlias = Callable[[Collection[str]], Awaitable[Mapping[str, SagaView]]]
"""Says where these sagas are; leaves out those of which no event came."""


class Deployment(Protocol):
    """The running services, embedded in this process or as processes of their own."""

    services: tuple[Service, ...]
    broker: Broker

    def engine(self, service: str) -> AsyncEngine:
        """Return a service's database."""
        ...

    def tracking(self) -> AbstractAsyncContextManager[Tracked]:
        """Hear whatever is published inside the block, and yield what a tracker makes of it."""
        ...

    def check(self) -> None:
        """Fail if a service has ended by itself."""
        ...

    async def disturb(self) -> str | None:
        """Break something on purpose; returns what."""
        ...

    async def stop(self) -> None:
        """Let every service finish what it has in flight, and end."""
        ...

    async def in_queue(self, name: str) -> int:
        """Return how many messages a queue holds that nobody consumes."""
        ...


async def said(deployment: Deployment, *, patience: float = 20.0) -> bool:
    """Wait until the relays have published everything; False if something stays, which an audit then counts."""
    with anyio.move_on_after(patience):
        while True:
            left = 0
            for service in deployment.services:
                query = select(func.count()).select_from(service.outbox.tables.outbox)
                async with deployment.engine(service.name).connect() as connection:
                    left += (await connection.execute(query)).scalar_one()
            if not left:
                return True
            await anyio.sleep(0.05)
    return False
