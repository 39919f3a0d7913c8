"""Connections that are lost without anybody being told, in the middle of a transaction."""

from __future__ import annotations

from datetime import timedelta

import anyio
import asyncpg
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.adapters.memory import MemoryBroker
from sagapost.inbox import Context
from sagapost.inbox.arriving.keys import dedup_key
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.kept.registry import register_consumer
from tests.faults.proxy import FaultProxy
from tests.inbox.harness import FAST, OrderPlaced, Service, an_event, running, send
from tests.servers.fixtures import OwnPostgreSQL

_SHORT = timedelta(seconds=1)


async def test_pitfall_50_a_transaction_that_a_lost_client_left_in_the_middle_of_a_statement_is_ended(
    own_postgresql: OwnPostgreSQL, broker: MemoryBroker
) -> None:
    """A replica is lost between Parse and Bind while it holds a dedup key: no server setting ends that, we do."""
    server = own_postgresql(settings={"idle_in_transaction_session_timeout": "1s", "statement_timeout": "1s"})
    engine = create_async_engine(server.url(), pool_size=15)
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    async with engine.begin() as connection:
        number = await connection.run_sync(register_consumer, service.tables, service.inbox.name)
    event = an_event(OrderPlaced("o-1"))
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        lost = await asyncpg.connect(server.dsn().replace(f":{server.port}/", f":{proxy.port}/"))
        await lost.execute("BEGIN")
        await lost.execute(
            "INSERT INTO inbox_seen (consumer, key, seen_at) VALUES ($1, $2, now())", number, dedup_key(event)
        )
        await lost.prepare("SELECT 1")
        proxy.strand()
        await send(broker, service, event)
        async with running(
            service, engine, broker, retry=FAST, handler_timeout=_SHORT, database_timeout=_SHORT
        ) as consumer:
            with anyio.fail_after(15):
                (ended,) = await consumer.seen.until(obs.StrandedEnded)
                # A commit whose answer comes too late is found to be done by the next try.
                await consumer.seen.until_true(
                    lambda: bool(consumer.seen.of(obs.Handled) or consumer.seen.of(obs.Duplicate))
                )
        lost.terminate()
    assert ended.connections == 1
    assert await service.written(engine) == ["o-1"]
    await engine.dispose()
