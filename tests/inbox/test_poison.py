"""Messages that can never be handled end parked with a reason a person understands, while the rest flows."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sagapost.adapters.memory import MemoryBroker
from sagapost.inbox import Context
from sagapost.inbox.declared import observations as obs
from tests.inbox.harness import OrderPlaced, Service, an_event, running, send
from tests.inbox.killing import Victim
from tests.servers.fixtures import OwnPostgreSQL


async def test_poison_is_parked_and_the_rest_flows(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """One always failing, one undecodable and one too old among a hundred: three reasons, ninety-seven effects."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if event.order_id == "fails":
            raise ZeroDivisionError("no shelf")
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    events = [an_event(OrderPlaced(f"{n:03}")) for n in range(97)]
    events[10:10] = [
        an_event(OrderPlaced("fails")),
        an_event({"wrong": 1}, type="orders.order-placed.v1"),
        an_event(OrderPlaced("old"), time=datetime.now(UTC) - timedelta(days=8)),
    ]
    await send(broker, service, *events)
    async with running(service, engine, broker) as consumer:
        await consumer.settled(100)
    assert sorted(await service.written(engine)) == [f"{n:03}" for n in range(97)]
    reasons = {row.reason: row.error for row in await service.parked(engine)}
    assert reasons.keys() == {"failed", "undecodable", "too-old"}
    assert "ZeroDivisionError: no shelf" in reasons["failed"]
    assert "order_id" in reasons["undecodable"]
    assert "before the dedup window of 7 days" in reasons["too-old"]


async def test_a_message_that_deadlocks_every_time_is_parked(
    postgresql_engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Deadlocks are tried again at once, a few times; one that always comes back is parked as such; others flow."""
    service = Service()
    engine = postgresql_engine
    rival = create_async_engine(engine.url)

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if event.order_id != "deadlock":
            await ctx.session.execute(service.write(event.order_id))
            return
        first, second = (select(service.effects).where(service.effects.c.order_id == name) for name in ("a", "b"))
        await ctx.session.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
        await ctx.session.execute(first.with_for_update())
        async with rival.connect() as other, anyio.create_task_group() as tasks:
            await other.execute(text("SET LOCAL deadlock_timeout = '10s'"))
            await other.execute(second.with_for_update())
            tasks.start_soon(other.execute, first.with_for_update())
            # The rival waits for us before we wait for it, so it is ours that is chosen.
            while not await _someone_waits(engine):  # noqa: ASYNC110 - the server has no signal for it
                await anyio.sleep(0.005)
            try:
                await ctx.session.execute(second.with_for_update())
            finally:
                tasks.cancel_scope.cancel()

    await service.install(engine)
    async with engine.begin() as connection:
        for name in ("a", "b"):
            await connection.execute(service.write(name))
    await send(broker, service, an_event(OrderPlaced("deadlock")), an_event(OrderPlaced("fine")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(2)
        tries = consumer.seen.of(obs.HandlerFailed)
    await rival.dispose()
    assert len(tries) == 6
    assert all("40P01" in failed.error for failed in tries)
    (parked,) = await service.parked(engine)
    assert parked.reason == "conflict"
    assert "deadlock or serialisation failure" in parked.error
    assert await service.written(engine) == ["a", "b", "fine"]


async def _someone_waits(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        waiting = await connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        return bool(waiting.scalar_one())


async def test_a_serialisation_failure_is_tried_again(postgresql_url: str, broker: MemoryBroker) -> None:
    """Under SERIALIZABLE two handlers that read what the other writes: one is undone, tried again, and done."""
    engine = create_async_engine(postgresql_url, isolation_level="SERIALIZABLE", pool_size=15)
    service = Service()
    gathered = 0
    both = anyio.Event()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        nonlocal gathered
        await ctx.session.execute(select(service.effects))
        gathered += 1
        if gathered == 2:
            both.set()
        await both.wait()
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("a")), an_event(OrderPlaced("b")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(2)
        assert consumer.statistics.handled == 2
        assert [failed.error for failed in consumer.seen.of(obs.HandlerFailed)]
    assert sorted(await service.written(engine)) == ["a", "b"]
    await engine.dispose()


async def test_duplicates_are_recognised_whatever_the_server_speaks(
    own_postgresql: OwnPostgreSQL, broker: MemoryBroker
) -> None:
    """On a server whose messages are German, a duplicate is a duplicate and a constraint violation a failure."""
    locales = (await anyio.run_process(["locale", "-a"], check=False)).stdout.decode().lower()
    if "de_de.utf8" not in locales:
        pytest.skip("this machine has no German locale")
    server = own_postgresql(settings={"lc_messages": "de_DE.UTF-8"})
    engine = create_async_engine(server.url())
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.effects.insert().values(id=1, order_id=event.order_id))

    await service.install(engine)
    first = an_event(OrderPlaced("o-1"))
    await send(broker, service, first, first, an_event(OrderPlaced("o-2")))
    async with running(service, engine, broker, concurrency=1) as consumer:
        await consumer.settled(3)
        assert consumer.statistics.duplicates == 1
    (parked,) = await service.parked(engine)
    assert parked.reason == "failed"
    await engine.dispose()


# --- a message that kills the process ---


async def test_a_message_that_kills_the_process_is_parked_after_three_deaths(
    postgresql_url: str, amqp_url: str
) -> None:
    """The process dies with it three times, then lives: the killer is parked, everybody else handled exactly once."""
    victim = Victim(postgresql_url, amqp_url, script="killer")
    await victim.prepare([f"{n:02}" for n in range(20)] + ["kill"] + [f"{n:02}" for n in range(20, 40)])
    deaths = 0
    while (status := await victim.run()) != 0:
        assert status == -signal.SIGKILL
        deaths += 1
        assert deaths <= 3, "it should have been parked by now"
    assert deaths == 3
    assert sorted(await victim.written()) == [f"{n:02}" for n in range(40)]
    (parked,) = await victim.parked()
    assert (parked.state, parked.reason) == ("dead", "killed-process")
    assert "died 3 times" in parked.error
    assert await victim.attempts_on_record() == 0


async def test_a_parked_message_that_kills_the_process_is_recognised_as_well(
    postgresql_url: str, amqp_url: str
) -> None:
    """It fails first and is parked; its rounds then kill the process three times; the innocent beside it are done."""
    victim = Victim(postgresql_url, amqp_url, script="late-killer")
    await victim.prepare(["retry-1", "kill", "retry-2"])
    deaths = 0
    while (status := await victim.run()) != 0:
        assert status == -signal.SIGKILL
        deaths += 1
        assert deaths <= 3
    assert deaths == 3
    assert sorted(await victim.written()) == ["retry-1", "retry-2"]
    (parked,) = await victim.parked()
    assert (parked.state, parked.reason, parked.crashes) == ("dead", "killed-process", 3)


# --- a message that kills the database's process ---


async def test_a_message_that_crashes_the_database_each_time_is_counted_and_parked(
    own_postgresql: OwnPostgreSQL, broker: MemoryBroker
) -> None:
    """Its statement takes the server down, which comes back: after two times it is its own failure, and parked.

    Those that shared its group, or were in flight beside it, and lost their connections too, are handled exactly once
    and never parked.
    """
    server = own_postgresql(durable=True)
    engine = create_async_engine(server.url(), pool_size=15)
    service = Service()
    crashes = 0

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        nonlocal crashes
        await ctx.session.execute(service.write(event.order_id))
        if event.order_id == "crash":
            crashes += 1
            os.kill((await ctx.session.execute(text("SELECT pg_backend_pid()"))).scalar_one(), signal.SIGKILL)
            await ctx.session.execute(text("SELECT pg_sleep(30)"))

    await service.install(engine)
    orders = [f"{n:02}" for n in range(20)]
    await send(broker, service, *(an_event(OrderPlaced(order)) for order in [*orders[:10], "crash", *orders[10:]]))
    async with running(service, engine, broker, max_crashes=2, batch=5) as consumer:
        await consumer.settled(21)
        assert len(consumer.seen.of(obs.Parked)) == 1
    assert crashes == 2
    assert sorted(await service.written(engine)) == orders
    (parked,) = await service.parked(engine)
    assert (parked.state, parked.reason) == ("dead", "failed")
    assert "lost 2 times in a row" in parked.error
    await engine.dispose()
