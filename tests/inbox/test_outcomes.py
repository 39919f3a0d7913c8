"""Every way a handler can end, and what becomes of the message and of what the handler did."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core import Backoff
from sagapost.core.errors import ConfigurationError
from sagapost.inbox import BusinessFailure, Context, Reject, Retry, RetryPolicy, Snooze
from sagapost.inbox.declared import observations as obs
from tests.inbox.harness import FAST, OrderPlaced, Service, StockReserved, StockShort, an_event, running, send


async def test_a_business_failure_publishes_its_event_and_undoes_the_rest(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """The failure event goes out under the message's key and saga; the handler's work is gone; nothing is retried."""
    service = Service()

    @service.inbox.on(OrderPlaced, emits=[StockReserved, StockShort])
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        await ctx.publish(StockReserved(event.order_id))
        raise BusinessFailure(StockShort(event.order_id))

    await service.install(engine)
    placed = an_event(OrderPlaced("o-1"), key="o-1", correlationid="saga-1")
    await send(broker, service, placed, placed)
    async with running(service, engine, broker) as consumer:
        await consumer.settled(2)
        assert consumer.statistics.business_failures == 1
        assert consumer.statistics.duplicates == 1
    assert await service.written(engine) == []
    (failure,) = await service.rows(engine, service.outbox.tables.outbox)
    assert (failure.type, failure.partitionkey) == ("warehouse.stock-short.v1", "o-1")
    assert (failure.correlationid, failure.causationid) == ("saga-1", placed.id)
    assert await service.parked(engine) == []


async def test_a_business_failure_after_a_database_error_still_publishes(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """The handler's transaction may be beyond use: the failure event does not depend on it."""
    service = Service()

    @service.inbox.on(OrderPlaced, emits=[StockShort])
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        try:
            await ctx.session.execute(service.effects.insert().values(order_id=None))
        except Exception as error:
            raise BusinessFailure(StockShort(event.order_id), key="other") from error

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1"), key="o-1"))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    (failure,) = await service.rows(engine, service.outbox.tables.outbox)
    assert (failure.type, failure.partitionkey) == ("warehouse.stock-short.v1", "other")


async def test_retry_waits_as_long_as_the_handler_asks(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """`Retry(after=)` is acknowledged at once and comes back by itself; its attempts count up."""
    service = Service()
    attempts: list[int] = []

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        await ctx.session.execute(service.write(event.order_id))
        if len(attempts) < 3:
            raise Retry(after=timedelta(milliseconds=30), reason="the shelf is being counted")

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker, retry=FAST) as consumer:
        waits = [parked.retry_in for parked in await consumer.seen.until(obs.Parked, 2)]
        await consumer.seen.until(obs.Handled)
    assert waits == [0.03, 0.03]
    assert attempts == [1, 2, 3]
    assert await service.written(engine) == ["o-1"]
    assert await service.parked(engine) == []


async def test_reject_is_a_dead_letter_at_once(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The reason is kept for the operator, nothing the handler did remains, and others flow."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        if event.order_id == "bad":
            raise Reject("no such product")

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("bad")), an_event(OrderPlaced("good")))
    async with running(service, engine, broker, retry=FAST) as consumer:
        await consumer.settled(2)
    (parked,) = await service.parked(engine)
    assert (parked.state, parked.reason, parked.error) == ("dead", "rejected", "no such product")
    assert await service.written(engine) == ["good"]


@pytest.mark.parametrize(
    ("kind", "state", "reason"),
    [(Retry, "waiting", "retry"), (Snooze, "waiting", "snoozed"), (Reject, "dead", "rejected")],
)
async def test_an_outcome_of_your_own_need_not_call_the_constructor(
    kind: type[Exception], state: str, reason: str, engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """A class derived from an outcome and made without its constructor has the defaults of the outcome."""
    service = Service()

    class Mine(kind):  # type: ignore[misc,valid-type]  # one of three
        def __init__(self) -> None:
            """Leave everything out."""

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        raise Mine

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    policy = RetryPolicy(quick=0, backoff=Backoff(base=timedelta(hours=1), cap=timedelta(hours=1)))
    async with running(service, engine, broker, retry=policy) as consumer:
        (parked,) = await consumer.seen.until(obs.Parked)
    assert (parked.state, parked.reason) == (state, reason)


async def test_a_technical_failure_is_tried_at_once_then_parked_then_dead(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """Two quick tries in the process, then three rounds in all, then a dead letter with the traceback."""
    service = Service()
    policy = RetryPolicy(
        quick=2,
        quick_backoff=Backoff(base=timedelta(milliseconds=1), cap=timedelta(milliseconds=2)),
        attempts=3,
        backoff=Backoff(base=timedelta(milliseconds=1), cap=timedelta(milliseconds=2)),
    )
    tries = 0

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        nonlocal tries
        tries += 1
        await ctx.session.execute(service.write(event.order_id))
        raise ConnectionError("the label printer is off")

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker, retry=policy) as consumer:
        await consumer.seen.until(obs.Parked, 1, lambda parked: parked.state == "dead")
        states = [(parked.state, parked.attempts) for parked in consumer.seen.of(obs.Parked)]
        assert consumer.statistics.failed_tries == 9
    assert states == [("waiting", 1), ("waiting", 2), ("dead", 3)]
    assert tries == 9
    (parked,) = await service.parked(engine)
    assert parked.error == "The handler raised ConnectionError: the label printer is off (round 3 of 3)"
    assert "in reserve" in parked.traceback
    assert await service.written(engine) == []


async def test_policies_follow_the_exception_and_the_handler(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """The most derived declared exception decides, then the handler's policy, then the consumer's."""
    service = Service()
    patient = RetryPolicy(quick=0, attempts=7, backoff=Backoff(base=timedelta(hours=1), cap=timedelta(hours=1)))

    @service.inbox.on(
        OrderPlaced, retry=patient, errors={LookupError: "reject", KeyError: FAST, ArithmeticError: "reject"}
    )
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        raise {"index": IndexError, "key": KeyError, "zero": ZeroDivisionError, "other": OSError}[event.order_id]("x")

    await service.install(engine)
    names = ["index", "key", "zero", "other"]
    await send(broker, service, *(an_event(OrderPlaced(name), id=name) for name in names))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(4)
        first = {parked.event_id: parked for parked in reversed(consumer.seen.of(obs.Parked))}
    assert (first["index"].state, first["index"].reason) == ("dead", "rejected")
    assert (first["zero"].state, first["zero"].reason) == ("dead", "rejected")
    assert first["key"].state == "waiting"
    assert (first["key"].retry_in or 1) < 0.01
    assert first["other"].state == "waiting"
    assert (first["other"].retry_in or 0) >= 1800


async def test_a_handler_over_its_time_limit_counts_as_failed(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """It is interrupted, its transaction undone, and the reason says which setting to change; the next one is fine."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(event.order_id))
        if event.order_id == "slow":
            await anyio.sleep_forever()

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("slow")), an_event(OrderPlaced("quick")))
    async with running(
        service, engine, broker, handler_timeout=timedelta(milliseconds=300), concurrency=1
    ) as consumer:
        await consumer.settled(2)
    (parked,) = await service.parked(engine)
    assert (parked.state, parked.reason) == ("dead", "failed")
    assert "did not return within 0.3 seconds" in parked.error
    assert await service.written(engine) == ["quick"]


async def test_publishing_without_an_outbox_says_what_to_do(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """An inbox made without an outbox cannot publish a failure; the parked message says how to give it one."""
    service = Service()
    service.inbox.outbox = None

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        raise BusinessFailure(StockShort(event.order_id))

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
    (parked,) = await service.parked(engine)
    assert parked.reason == "broke-contract"
    assert "Inbox(..., outbox=" in parked.error


def test_a_retry_cannot_lie_in_the_past() -> None:
    """A negative wait is a mistake of the handler's author, said where it is made."""
    with pytest.raises(ConfigurationError, match="a time to wait"):
        Retry(after=timedelta(seconds=-1))


async def test_observations_never_quote_the_message(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """An exception may quote what it choked on: observers get its kind and code, the parked row gets the text."""
    service = Service()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        raise ValueError(event.note)

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("o-1", note="4111 1111 1111 1111")))
    async with running(service, engine, broker) as consumer:
        await consumer.settled(1)
        assert "4111" not in repr(consumer.seen.events)
    (parked,) = await service.parked(engine)
    assert "4111" in parked.error


async def test_a_slow_retry_holds_up_no_other(postgresql_engine: AsyncEngine, broker: MemoryBroker) -> None:
    """One parked message is stuck in its handler; fifty others that are due meanwhile are handled all the same."""
    service = Service()
    release = anyio.Event()

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ConnectionError
        await ctx.session.execute(service.write(event.order_id))
        if event.order_id == "stuck":
            await release.wait()

    await service.install(postgresql_engine)
    await send(broker, service, *(an_event(OrderPlaced(name)) for name in ["stuck", *(f"{n:02}" for n in range(50))]))
    async with running(service, postgresql_engine, broker, retry=FAST, concurrency=3) as consumer:
        await consumer.seen.until(obs.Handled, 50)
        assert consumer.statistics.handled == 50
        release.set()
        await consumer.seen.until(obs.Handled, 51)
