"""What waits for a parked message of its key: parked in groups, first of each key found, however many there are."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.clock import SystemClock
from sagapost.core.databases import kit_of
from sagapost.core.identity import dedup_key
from sagapost.inbox import Context
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.declared.settings import DeadLetterPolicy
from sagapost.inbox.kept.dedup import Dedup
from sagapost.inbox.kept.parked_order import ParkedOrder
from sagapost.inbox.kept.parking import BEHIND, ParkingDecision, ParkingLot
from sagapost.inbox.kept.registry import register_consumer
from tests.inbox.harness import NEVER, OrderPlaced, Service, an_event, running, send

FAILED = ParkingDecision("waiting", "failed", "it failed", attempts=1, retry_in=timedelta(hours=1))
DEAD = ParkingDecision("dead", "failed", "it failed", attempts=9)


async def with_a_dead_letter(engine: AsyncEngine, broker: MemoryBroker, *, key: str) -> Service:
    """Return an ordered service that fails at orders called poison, and has given one of this key up."""
    service = Service(ordered=True)

    @service.inbox.on(OrderPlaced)
    async def reserve(event: OrderPlaced, ctx: Context) -> None:
        if event.order_id.startswith("poison"):
            raise ConnectionError
        await ctx.session.execute(service.write(event.order_id))

    await service.install(engine)
    await send(broker, service, an_event(OrderPlaced("poison"), key=key))
    async with running(service, engine, broker, retry=NEVER) as consumer:
        await consumer.settled(1)
    return service


async def test_what_must_wait_is_parked_with_the_group_that_is_handled(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """One transaction for those of a blocked key and those of others; nobody is run one by one."""
    service = await with_a_dead_letter(engine, broker, key="blocked")
    events = [an_event(OrderPlaced(f"{n:02}"), key=key) for n in range(20) for key in ("blocked", "free")]
    await send(broker, service, *events, events[0])
    async with running(service, engine, broker, retry=NEVER, batch=10, concurrency=1) as consumer:
        await consumer.settled(41)
        parked = consumer.seen.of(obs.Parked)
        assert [each.event_id for each in parked] == [event.id for event in events if event.partitionkey == "blocked"]
        assert {each.state for each in parked} == {"behind"}
        groups = consumer.seen.of(obs.GroupHandled)
        # A message that is alone when it is taken is no group.
        assert sum(sum(group.types.values()) for group in groups) + len(consumer.seen.of(obs.Handled)) == 20
        alone = {each.event_id for each in consumer.seen.of(obs.Started)}
        assert len(alone) <= 2
    assert await service.written(engine) == [f"{n:02}" for n in range(20)]
    rows = await service.parked(engine)
    assert [row.event_id for row in rows[1:]] == [each.event_id for each in parked]
    assert await service.count(engine, service.tables.seen) == 41


async def test_a_group_that_fails_parks_nobody_twice(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Undone with everything else in it; then each finds its own end."""
    service = await with_a_dead_letter(engine, broker, key="a")
    later = [("1", "a"), ("2", "b"), ("poison-2", "c"), ("3", "a"), ("4", "b")]
    await send(broker, service, *(an_event(OrderPlaced(order), key=key) for order, key in later))
    async with running(service, engine, broker, retry=NEVER, batch=5, concurrency=1) as consumer:
        await consumer.settled(5)
    assert await service.written(engine) == ["2", "4"]
    assert [(row.partitionkey, row.state) for row in await service.parked(engine)] == [
        ("a", "dead"),
        ("a", "behind"),
        ("c", "dead"),
        ("a", "behind"),
    ]


class Lot:
    """The parked messages of one consumer, without a consumer."""

    def __init__(self, service: Service, connection: Connection, *, on_dead: DeadLetterPolicy = "block") -> None:
        tables = service.tables
        number = register_consumer(connection, tables, service.inbox.name)
        moments = kit_of(connection).moments(SystemClock())
        dedup = Dedup(tables, moments.kit, consumer=number)
        self.order = ParkedOrder(tables, moments, consumer=number, on_dead=on_dead)
        self._lot = ParkingLot(tables, dedup, moments, self.order, consumer=number, ordered=True)
        self._connection = connection

    def park(self, key: str, parked: ParkingDecision) -> None:
        """Park a message."""
        event = an_event(OrderPlaced("1"), key=key)
        message = Message(event, event.type, dedup_key(event), (), None, key)
        if parked is BEHIND:
            self._lot.park_behind(self._connection, [message])
        else:
            assert self._lot.park(self._connection, message, parked) is not None


@pytest.mark.parametrize("on_dead", ["block", "skip"])
async def test_the_first_of_each_key_goes_and_no_other(engine: AsyncEngine, on_dead: DeadLetterPolicy) -> None:
    """By keys, and for all; a dead letter is the first unless it is skipped. Keys that no column takes as well."""
    service = Service(ordered=True)
    await service.install(engine)

    def work(connection: Connection) -> None:
        lot = Lot(service, connection, on_dead=on_dead)
        for key in ("a", "with a dead first", "waits already", "nul \x00 \udcff"):
            lot.park(key, {"with a dead first": DEAD, "waits already": FAILED}.get(key, BEHIND))
            lot.park(key, BEHIND)
            lot.park(key, BEHIND)
        keys = ["a", "with a dead first", "nul \x00 \udcff", "unknown", ""]
        firsts = lot.order.firsts(connection, keys)
        dead_is_first = 4 if on_dead == "block" else 5
        assert firsts == {"a": 1, "with a dead first": dead_is_first, "nul \x00 \udcff": 10}
        assert lot.order.promote(connection, ["a", "unknown"]) == 1
        assert lot.order.promote(connection, ["a"]) == 0
        assert lot.order.promote_all(connection) == (1 if on_dead == "block" else 2)
        parked = service.tables.parked
        waiting = connection.execute(parked.select().where(parked.c.state == "waiting").order_by(parked.c.id)).all()
        assert [row.id for row in waiting] == [1, 7, 10] if on_dead == "block" else [1, 5, 7, 10]

    async with engine.begin() as connection:
        await connection.run_sync(work)


async def test_looking_for_firsts_does_not_compare_all_that_is_parked(postgresql_engine: AsyncEngine) -> None:
    """A look at all reads each row once; a look at some keys reads what an index has of each.

    Also while the planner knows nothing of a table that has just grown.
    """
    service = Service(ordered=True)
    await service.install(postgresql_engine)
    plans: list[str] = []

    def listen(_connection: object, message: object) -> None:
        plans.append(str(message))

    def fill(connection: Connection) -> None:
        Lot(service, connection).park("k1", BEHIND)
        connection.execute(
            text(
                """
                INSERT INTO inbox_parked (consumer, key, state, reason, error, ordered, topic, partitionkey, envelope,
                                          data)
                SELECT consumer, decode(md5(n::text), 'hex'), state, reason, error, ordered, topic, 'k' || n % 20,
                       envelope, data
                FROM inbox_parked, generate_series(1, 5000) AS n
                """
            )
        )

    def look(connection: Connection) -> None:
        connection.execute(text("LOAD 'auto_explain'"))
        for setting, value in (
            ("log_min_duration", "0"),
            ("log_analyze", "on"),
            ("log_timing", "off"),
            ("log_level", "notice"),
        ):
            connection.execute(text(f"SET auto_explain.{setting} = {value}"))
        connection.execute(text("SET client_min_messages = notice"))
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.add_log_listener(listen)
        order = Lot(service, connection).order
        assert order.promote_all(connection) == 20
        assert order.promote(connection, [f"k{n}" for n in range(20)]) == 0

    async with postgresql_engine.begin() as connection:
        await connection.run_sync(fill)
    async with postgresql_engine.begin() as connection:
        await connection.run_sync(look)
    updates = [plan for plan in plans if "UPDATE inbox_parked" in plan]
    assert len(updates) == 2, plans
    for plan in updates:
        assert "Rows Removed by Join Filter" not in plan, plan
        # Once for each key at most.
        assert max(map(int, re.findall(r"loops=(\d+)", plan))) <= 20, plan
