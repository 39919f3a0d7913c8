"""What plays a part in a run: the servers, the proxies before them, relays and consumers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import aiormq
import anyio
import anyio.to_thread
import asyncpg
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.schema import install_schema
from tests.chaos import inbox_service as service
from tests.chaos.inbox_plan import CONSUMER, RELAY, Plan
from tests.chaos.inbox_processes import ConsumerProcesses
from tests.chaos.relay_processes import RelayProcesses
from tests.chaos.writers import install_writers
from tests.faults.proxy import FaultProxy
from tests.processes.nursery import Nursery
from tests.servers.postgresql import PrivatePostgreSQL
from tests.servers.rabbitmq import PrivateRabbitMQ

__all__ = ["READERS", "WRITERS", "Stage", "Way", "prepare", "running"]

WRITERS, READERS = "writers", "accounts"
"""Databases, on one server."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a process reaches the servers."""

    database: FaultProxy
    broker: FaultProxy

    def settings(self, postgresql: PrivatePostgreSQL, rabbitmq: PrivateRabbitMQ, database: str) -> dict[str, str]:
        """Return the URLs that lead this way."""
        return {
            "SAGAPOST_DATABASE_URL": _through(self.database, postgresql.url(database)),
            "SAGAPOST_BROKER_URL": _through(self.broker, rabbitmq.amqp_url()),
        }


@dataclass(frozen=True)
class Stage:
    """Everything that runs."""

    postgresql: PrivatePostgreSQL
    rabbitmq: PrivateRabbitMQ
    nursery: Nursery
    relays: RelayProcesses
    consumers: ConsumerProcesses
    shared: Way
    """The relays' way."""
    own: Sequence[Way]
    """The consumers' ways, one each."""

    async def handled(self) -> int:
        """How many events have come to their end."""
        return await self.ask(
            READERS, "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM inbox_parked WHERE state = 'dead')"
        )

    async def ask(self, database: str, statement: str) -> int:
        """Ask a database for a number."""
        connection = await asyncpg.connect(self.postgresql.dsn(database))
        try:
            return int(str(await connection.fetchval(statement)))
        finally:
            await connection.close()

    async def stuck(self) -> list[str]:
        """The parked messages that should have gone first, one of each key."""
        connection = await asyncpg.connect(self.postgresql.dsn(READERS))
        try:
            rows = await connection.fetch(
                """
                SELECT DISTINCT ON (partitionkey) partitionkey, id, state, reason, attempts, crashes, claimed,
                       next_attempt_at - clock_timestamp() AS due_in, count(*) OVER (PARTITION BY partitionkey) AS rows
                FROM inbox_parked WHERE state <> 'dead' ORDER BY partitionkey, id LIMIT 20
                """
            )
        finally:
            await connection.close()
        return [", ".join(f"{name} {value}" for name, value in row.items()) for row in rows]

    async def queues(self) -> dict[str, int]:
        """How many messages wait in the service's queue, and in that of its dead letters at the broker."""
        name = service.ordered.name
        connection = await aiormq.connect(self.rabbitmq.amqp_url())
        try:
            channel = await connection.channel()
            queue = await channel.queue_declare(name, passive=True)
            dead = await channel.queue_declare(f"{name}.dead", passive=True)
        finally:
            await connection.close()
        return {"queue": queue.message_count or 0, "broker's dead letters": dead.message_count or 0}


async def prepare(plan: Plan, postgresql: PrivatePostgreSQL, rabbitmq: PrivateRabbitMQ) -> None:
    """Create the databases and the queue."""
    for name in (WRITERS, READERS):
        await anyio.to_thread.run_sync(postgresql.create_database, name)
    await install_writers(postgresql.url(WRITERS))
    engine = create_async_engine(postgresql.url(READERS))
    async with engine.begin() as connection:
        parts = [service.outbox.tables.part, service.tables.part]
        await connection.run_sync(install_schema, service.tables.versions, parts)
        await connection.run_sync(lambda sync: service.effects.create(sync))
    await engine.dispose()
    inbox = service.ordered if plan.mode == "ordered" else service.unordered
    await RabbitMQBroker(rabbitmq.amqp_url()).declare(inbox.queue)


@asynccontextmanager
async def running(
    plan: Plan, postgresql: PrivatePostgreSQL, rabbitmq: PrivateRabbitMQ, *, logs: Path
) -> AsyncGenerator[Stage]:
    """Start relays and consumers behind their proxies; all are gone after the block."""
    async with AsyncExitStack() as stack:
        ways = [
            Way(
                await stack.enter_async_context(FaultProxy("127.0.0.1", postgresql.port)),
                await stack.enter_async_context(FaultProxy("127.0.0.1", rabbitmq.port)),
            )
            for _ in range(1 + plan.consumers)
        ]
        home = postgresql.home.parent
        nursery = stack.enter_context(Nursery(home, service.__name__))
        settings = {**ways[0].settings(postgresql, rabbitmq, WRITERS), **RELAY}
        relays = RelayProcesses(settings, nursery=nursery, home=home, logs=logs)
        common = {**CONSUMER, "SAGAPOST_CONSUMER_BATCH": str(plan.batch)}
        each = [{**way.settings(postgresql, rabbitmq, READERS), **common} for way in ways[1:]]
        consumers = ConsumerProcesses(plan.mode, each, nursery=nursery, home=home, logs=logs)
        for _ in range(plan.relays):
            relays.start()
        consumers.start_all()
        yield Stage(postgresql, rabbitmq, nursery, relays, consumers, ways[0], ways[1:])


def _through(proxy: FaultProxy, url: str) -> str:
    parts = urlsplit(url)
    credentials, _, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{credentials}@{proxy.host}:{proxy.port}"))
