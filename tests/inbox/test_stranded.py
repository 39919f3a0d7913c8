"""Connections that are lost without anybody being told, in the middle of a transaction."""

from __future__ import annotations

from datetime import timedelta

import anyio
import asyncpg
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.identity import dedup_key
from sagapost.inbox import Context
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.kept.registry import register_consumer
from tests.faults.proxy import FaultProxy
from tests.inbox.harness import FAST, OrderPlaced, Running, Service, an_event, running, send
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


async def test_every_connection_of_the_pool_is_stranded_and_work_goes_on(
    own_postgresql: OwnPostgreSQL, broker: MemoryBroker
) -> None:
    """All connections become half-open under load, again and again: one effect each, and the stop is in time."""
    server = own_postgresql(settings={"idle_in_transaction_session_timeout": "1s"})
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))

    direct = create_async_engine(server.url())
    await service.install(direct)
    await send(broker, service, *(an_event(OrderPlaced(f"{n:03}")) for n in range(300)))
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        url = server.url().replace(f":{server.port}/", f":{proxy.port}/")
        # Two for the transactions and three for the rest: a slot that leaked would be missed at once.
        engine = create_async_engine(url, pool_size=5, max_overflow=0)
        async with running(
            service, engine, broker, retry=FAST, concurrency=2, handler_timeout=_SHORT, database_timeout=_SHORT
        ) as consumer:
            for handled in (20, 60, 100):
                await consumer.seen.until_true(lambda least=handled: consumer.statistics.handled >= least)  # type: ignore[misc]
                proxy.strand()
            # Not what was acknowledged: a message whose connection was lost in its handler is parked, and comes again.
            await consumer.seen.until_true(lambda: len(_done(consumer)) == 300)
            proxy.strand()
            began = anyio.current_time()
        assert anyio.current_time() - began < 15
        assert isinstance(engine.pool, QueuePool)
        assert engine.pool.checkedout() == 0
        # A goodbye to a server that is out of reach is waited for without end.
        with anyio.move_on_after(2):
            await engine.dispose()
    assert sorted(await service.written(direct)) == [f"{n:03}" for n in range(300)]
    await direct.dispose()


def _done(consumer: Running) -> set[str]:
    """The events that were handled; of some only the next try finds out that the commit had worked."""
    handled = {each.event_id for each in consumer.seen.of(obs.Handled)}
    return handled | {each.event_id for each in consumer.seen.of(obs.Duplicate)}
