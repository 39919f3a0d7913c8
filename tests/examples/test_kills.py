"""StreamTech while its processes are killed: every order has its end, and no cent, record or point is off."""

from __future__ import annotations

import os
import random
from collections import Counter

import anyio
import anyio.to_thread
import pytest
from sqlalchemy import func, select

from examples.streamtech import bank, orders
from examples.streamtech.processes import Processes, Site, processes
from examples.streamtech.scenarios.books import Opening, complaints
from examples.streamtech.scenarios.scenario import settled, tracked
from examples.streamtech.scenarios.stage import Stage
from examples.streamtech.services import FULFILMENT

LONG = os.environ.get("SAGAPOST_TEST_CHAOS") == "long"
ORDERS, KILLS = (200, 10) if LONG else (24, 3)
PATIENCE = 120.0
ITEMS = ("plenty", "plenty", "plenty", "scarce", "misplaced")
"""What is ordered: mostly what is there; some that runs out; some that nobody finds on the shelf."""
CUSTOMERS = ("rich", "rich", "rich", "poor")


async def stock_up(stage: Stage) -> None:
    """Enough of one item, too little of the second, and of the third only the books know."""
    await stage.stock("plenty", 10 * ORDERS)
    await stage.stock("scarce", max(2, ORDERS // 20))
    await stage.stock("misplaced", 10 * ORDERS, on_shelf=max(1, ORDERS // 40))
    await stage.account("rich", ORDERS * 100_00)
    await stage.account("poor", ORDERS * 3_00)
    await bank.leave_unanswered("rich", ORDERS // 4)
    await stage.courier(10 * ORDERS)


async def place(stage: Stage, rng: random.Random, kill: anyio.Event) -> None:
    """Place orders; say when it is time for each kill: never before there is work in flight."""
    for number in range(ORDERS):
        async with stage.session("orders") as session, session.begin():
            await orders.place_order(
                session,
                rng.choice(ITEMS),
                rng.randint(1, 2),
                customer=rng.choice(CUSTOMERS),
                cents=rng.randint(1_00, 50_00),
            )
        if number == ORDERS // 8:
            kill.set()
        await anyio.sleep(rng.uniform(0, 0.1))


async def shoot(deployment: Processes, rng: random.Random, ready: anyio.Event) -> None:
    """SIGKILL one process after the other, chosen at random, each with a successor at once."""
    await ready.wait()
    for _ in range(KILLS):
        run = rng.choice(deployment.runs)
        role = rng.choice(run.roles)
        print(f"SIGKILL {run.name} {role}")
        await anyio.to_thread.run_sync(run.replace, role)
        await anyio.sleep(rng.uniform(0.3, 1.5))


async def ended(deployment: Processes) -> Counter[str]:
    """Wait until every order has its end; return how many have which."""
    by_status = select(orders.Order.status, func.count()).group_by(orders.Order.status)
    found = Counter[str]()
    with anyio.move_on_after(PATIENCE):
        while found["completed"] + found["cancelled"] < ORDERS:
            deployment.check()
            await anyio.sleep(0.1)
            async with deployment.engine("orders").connect() as connection:
                found = Counter({str(row[0]): row[1] for row in await connection.execute(by_status)})
    return found


@pytest.mark.chaos
@pytest.mark.servers
@pytest.mark.timeout(600)
async def test_orders_survive_the_killing_of_any_process(site: Site) -> None:
    """Processes of any service and the tracker are killed at random while orders succeed and fail.

    In the end the books of all agree, and the tracker with them.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    async with processes(site, FULFILMENT, together=not LONG) as deployment:
        before = Opening.empty()
        stage = Stage(deployment, print, before)
        await stock_up(stage)
        ready = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shoot, deployment, random.Random(rng.random()), ready)
            tasks.start_soon(place, stage, random.Random(rng.random()), ready)
        found = await ended(deployment)
        assert found.total() == found["completed"] + found["cancelled"] == ORDERS, found
        assert await settled(deployment) == []
        assert await complaints(deployment, before) == []
        assert min(found["completed"], found["cancelled"]) > 0, found
        async with deployment.tracking() as tracker:
            views, different = await tracked(deployment, tracker)
        assert different == []
        assert len(views) == ORDERS
        await deployment.stop()
