"""A service with an outbox, relays that run for a block, and a watch over what they report."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import anyio
import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.core.backoff import Backoff
from sagapost.core.broker import Broker, Queue
from sagapost.core.envelope import Event
from sagapost.core.life import Server, ServerLost
from sagapost.core.observer import Observation
from sagapost.outbox import Outbox, OutboxTables
from sagapost.outbox.relay import Relay, RelaySettings
from sagapost.outbox.relay import observations as obs

__all__ = ["EVERYTHING", "FAST", "SOON", "Shop", "Watch", "received", "numbers", "running"]

EVERYTHING = Queue("everything", frozenset({"#"}))
SOON = Backoff(base=timedelta(milliseconds=20), cap=timedelta(milliseconds=20))
FAST = RelaySettings(retry=SOON, reconnect=SOON, lease_ttl=timedelta(seconds=2), poll_interval=timedelta(seconds=30))


@dataclass
class Watch:
    """Collects what relays report, and waits for it."""

    events: list[Observation] = field(default_factory=list[Observation])
    changed: anyio.Event = field(default_factory=anyio.Event)

    def notify(self, event: Observation, /) -> None:
        self.events.append(event)
        self.changed.set()

    async def until(self, holds: Callable[[], bool], *, within: float = 20) -> None:
        """Wait until a condition holds; checked after every report."""
        with anyio.fail_after(within):
            while not holds():
                self.changed = anyio.Event()
                await self.changed.wait()

    def count(self, kind: type[Observation]) -> int:
        return sum(isinstance(event, kind) for event in self.events)

    def lost(self, server: Server) -> int:
        """Attempts to reach a server that failed."""
        return sum(isinstance(event, ServerLost) and event.server == server for event in self.events)

    @property
    def settled(self) -> int:
        return sum(event.rows for event in self.events if isinstance(event, obs.Settled))


class Shop:
    """A database with an outbox, and a writer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.dsn = url.replace("+asyncpg", "")
        self.tables = OutboxTables()
        self.outbox = Outbox(source="https://shop.example", tables=self.tables)
        self.engine: AsyncEngine = create_async_engine(url)

    async def say(self, *numbers: int, key: str | None = "k", type_: str = "shop.said.v1") -> None:
        """Commit one event for each number in one transaction."""
        async with self.engine.begin() as connection:
            await self.say_in(connection, *numbers, key=key, type_=type_)

    async def say_in(
        self, connection: AsyncConnection, *numbers: int, key: str | None = "k", type_: str = "shop.said.v1"
    ) -> None:
        """The same, in the caller's transaction."""
        await self.outbox.publish_all(connection, [{"n": number} for number in numbers], key=key, type=type_)

    async def one(self, sql: str) -> object:
        connection = await asyncpg.connect(self.dsn)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    def relay(self, broker: Broker, watch: Watch, settings: RelaySettings = FAST) -> Relay:
        return Relay(PostgreSQLOutboxStore(self.url, tables=self.tables), broker, settings=settings, observer=watch)


@asynccontextmanager
async def running(*relays: Relay) -> AsyncGenerator[None, None]:
    """Run relays for the block, then stop them and wait for their end."""
    async with anyio.create_task_group() as tasks:
        for relay in relays:
            tasks.start_soon(relay.run)
        yield
        for relay in relays:
            relay.stop()


async def received(broker: Broker, count: int, queue: Queue = EVERYTHING) -> list[Event]:
    """Consume `count` events."""
    events: list[Event] = []
    with anyio.fail_after(20):
        async with broker.subscribe(queue, prefetch=100) as deliveries:
            async for delivery in deliveries:
                assert isinstance(delivery.content, Event)
                events.append(delivery.content)
                await deliveries.ack(delivery)
                if len(events) == count:
                    break
    return events


def numbers(events: Sequence[Event]) -> list[int]:
    return [int(event.data.decode().removeprefix('{"n":').removesuffix("}")) for event in events]
