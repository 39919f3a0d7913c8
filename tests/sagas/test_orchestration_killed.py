"""An island whose process is killed again and again: every step has one effect, and every run ends."""

from __future__ import annotations

import os
import random
from collections import Counter

import anyio
import anyio.to_thread

from tests.inbox.harness import BOUND
from tests.processes.shared import running_module
from tests.sagas.fulfilment import OrderPaid
from tests.sagas.island_victim import island_of, service_of
from tests.sagas.recovery import Warehouse, an_event

LONG = os.environ.get("SAGAPOST_TEST_CHAOS") == "long"
KILLS = 12 if LONG else 3
ORDERS = 120 if LONG else 30


async def test_runs_survive_kills_with_one_effect_for_each_step(postgresql_url: str, amqp_url: str) -> None:
    """SIGKILL at random moments while orders are fulfilled, fail, and are rolled back from outside: at the end each
    order is either shipped, with every step done once, or undone, with every effect taken back once.
    """
    seed = int(os.environ.get("SAGAPOST_TEST_SEED", "0")) or random.randrange(2**32)
    print(f"SAGAPOST_TEST_SEED={seed}")
    rng = random.Random(seed)
    service = service_of(postgresql_url, amqp_url)
    island_of(service)
    await service.install()
    orders = [f"order-{n}" for n in range(ORDERS)]
    cancelled = orders[2::7]
    await service.send(*(an_event(OrderPaid(order), saga=order, key=order) for order in orders))
    for kill in range(KILLS + 1):
        with running_module("tests.sagas.island_victim", postgresql_url, amqp_url) as printed:
            with anyio.fail_after(BOUND):
                assert await anyio.to_thread.run_sync(printed.readline, abandon_on_cancel=True)
            if kill == 1:
                await _cancel(service, cancelled)
            if kill < KILLS:
                # At a random moment of its work, which is what is being tested.
                await anyio.sleep(rng.uniform(0.05, 0.6))
            else:
                await _until_all_ended(service, orders, cancelled)
    await _check(service, orders, cancelled)
    await service.engine.dispose()


async def _cancel(service: Warehouse, sagas: list[str]) -> None:
    for saga in sagas:
        async with service.sessions.begin() as session:
            await service.sagas.begin_rollback(session, saga, reason="the customer cancelled", cause=None)


async def _until_all_ended(service: Warehouse, orders: list[str], cancelled: list[str]) -> None:
    runs, states = service.saga_tables.islands.runs, service.saga_tables.states
    outbox = service.outbox.tables
    with anyio.fail_after(2 * BOUND):
        while True:
            ended = {row.saga for row in await service.rows(runs) if row.state in {"completed", "rolled_back"}}
            over = {row.saga for row in await service.rows(states) if row.state == "rolled_back"}
            handled = {row.saga for row in await service.rows(states)}
            # A cancelled order may never have been started.
            if (
                over == set(cancelled)
                and handled == set(orders)
                and ended >= set(orders) - over
                and not await service.rows(outbox.outbox)
                and not await service.rows(outbox.scheduled)
            ):
                return
            await anyio.sleep(0.1)


async def _check(service: Warehouse, orders: list[str], cancelled: list[str]) -> None:
    effects = Counter(await service.effects_had())
    assert not await service.rows(service.tables.parked)
    assert set(effects.values()) == {1}, [what for what, count in effects.items() if count > 1]
    states = {row.saga: row.state for row in await service.rows(service.saga_tables.islands.runs)}

    def had(order: str) -> set[str]:
        return {what.partition(" ")[0] for what in effects if what.partition(" ")[2] == order}

    forward, back = {"PickItems", "PrintLabel", "Insure"}, {"PutItemsBack", "VoidLabel", "CancelInsurance"}
    undoing = {"PickItems": "PutItemsBack", "PrintLabel": "VoidLabel", "Insure": "CancelInsurance"}
    for order in orders:
        done = had(order)
        if states.get(order) == "completed":
            assert order not in cancelled
            assert int(order.rpartition("-")[2]) % 5 != 0
            assert done == forward | {"BookCourier"}
        else:
            assert order in cancelled or int(order.rpartition("-")[2]) % 5 == 0, (order, states.get(order))
            assert {undoing[what] for what in done & forward} == done & back, (order, done)
