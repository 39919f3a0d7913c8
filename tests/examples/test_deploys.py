"""StreamTech while each service is replaced by its next version: old and new side by side, sagas in flight."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

import anyio
import anyio.to_thread
import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from examples.streamtech import bank, customers, enrolments, loyalty, orders, warehouse
from examples.streamtech.processes import DemoError, Processes, ServiceProcesses, Site, processes
from examples.streamtech.scenarios.books import Opening, complaints
from examples.streamtech.scenarios.scenario import settled
from examples.streamtech.scenarios.stage import Stage
from examples.streamtech.services import ENROLMENT, FULFILMENT, unhandled
from tests.examples import next_versions
from tests.examples.next_versions import NEXT

LONG = os.environ.get("SAGAPOST_TEST_CHAOS") == "long"
ORDERS, CUSTOMERS, WRITERS = (1_700, 300, 4) if LONG else (24, 4, 2)
"""Together, the sagas that are in flight."""
PATIENCE = 900.0 if LONG else 120.0
SIDE_BY_SIDE = (2.0, 6.0) if LONG else (0.2, 1.0)
"""Seconds that both versions of a service run beside both of the one before."""
ITEMS = ("plenty", "plenty", "plenty", "scarce", "misplaced")
BUYERS = ("rich", "rich", "rich", "poor")


def path_of(name: str) -> str:
    """Return what `sagapost` is given for a service of the next versions."""
    return f"{next_versions.__name__}:{name}"


@dataclass(slots=True)
class Counterparty:
    """Places the orders and verifies the customers, evenly over the whole deployment."""

    stage: Stage
    rng: random.Random
    placed: int = 0
    enrolled: set[UUID] = field(default_factory=set[UUID])
    """Customers whose enrolment can be closed."""
    withdrawn: set[UUID] = field(default_factory=set[UUID])
    """Customers who are to be as if nothing had happened."""

    async def order(self, count: int, pause: Callable[[], float]) -> None:
        """Place orders; mostly of what is there, some that run out, some that nobody finds on the shelf."""
        for _ in range(count):
            async with self.stage.session("orders") as session, session.begin():
                await orders.place_order(
                    session,
                    self.rng.choice(ITEMS),
                    self.rng.randint(1, 2),
                    customer=self.rng.choice(BUYERS),
                    cents=self.rng.randint(1_00, 50_00),
                )
            self.placed += 1
            await anyio.sleep(pause())

    async def verify(self, count: int, pause: Callable[[], float]) -> None:
        """Verify customers, of whom every fourth has withdrawn meanwhile."""
        for number in range(count):
            async with self.stage.session("customers") as session, session.begin():
                customer = await customers.sign_up(session, f"customer {number}")
                id_ = customer.id
            if number % 4:
                async with self.stage.session("enrolments") as session, session.begin():
                    session.add(enrolments.PendingEnrolment(customer_id=id_))
            async with self.stage.session("customers") as session, session.begin():
                await customers.verify(session, id_)
            (self.enrolled if number % 4 else self.withdrawn).add(id_)
            await anyio.sleep(pause())


async def stock_up(stage: Stage) -> None:
    """Enough of one item, too little of the second, and of the third only the books know. No courier comes."""
    await stage.stock("plenty", 10 * ORDERS)
    await stage.stock("scarce", max(2, ORDERS // 20))
    await stage.stock("misplaced", 10 * ORDERS, on_shelf=max(1, ORDERS // 40))
    await stage.account("rich", ORDERS * 100_00)
    await stage.account("poor", ORDERS * 3_00)
    await bank.leave_unanswered("rich", ORDERS // 10)
    await stage.courier(0)


class Deployer:
    """Replaces the services one by one: asks first, starts the new one, and ends the old one a while later."""

    def __init__(self, deployment: Processes, rng: random.Random) -> None:
        self._deployment = deployment
        self._rng = rng
        self._optional = ",".join(sorted(unhandled(NEXT)))
        self._old = {run.name: run for run in deployment.runs}

    async def deploy_all(self) -> None:
        """Replace every service. Each old one runs on until two others have begun to be replaced."""
        leaving: list[ServiceProcesses] = []
        for service in NEXT:
            await self._start(service.name, service.name)
            leaving.append(self._old[service.name])
            await anyio.sleep(self._rng.uniform(*SIDE_BY_SIDE))
            if len(leaving) == 3:
                await anyio.to_thread.run_sync(leaving.pop(0).stop, "consume")
        for each in leaving:
            await anyio.to_thread.run_sync(each.stop, "consume")

    async def _start(self, name: str, attribute: str) -> None:
        new = self._old[name].beside(attribute, SAGAPOST_RELAY_OPTIONAL=self._optional)
        await anyio.to_thread.run_sync(new.run, "saga", "check", path_of(attribute))
        print(f"deploying {attribute}")
        new.start("consume", "--with-relay", path_of(attribute))
        self._deployment.runs.append(new)

    async def may_deploy(self, name: str, attribute: str) -> bool:
        """Whether `sagapost saga check` lets a version be deployed."""
        gate = self._old[name].beside(f"{attribute}-gate-{self._rng.randrange(2**32)}")
        try:
            await anyio.to_thread.run_sync(gate.run, "saga", "check", path_of(attribute))
        except DemoError as refused:
            print(refused)
            return False
        return True

    async def replace_loyalty(self) -> None:
        """Deploy the version that has no compensation any more, and end the one that has."""
        before = next(run for run in self._deployment.runs if run.name == "loyalty-loyalty")
        await self._start("loyalty", "loyalty_without_revoking")
        await anyio.to_thread.run_sync(before.stop, "consume")


async def until(deployment: Processes, reached: Callable[[], Awaitable[object]], what: str) -> None:
    """Wait until the databases say so.

    :raises TimeoutError: if they do not in time.
    """
    with anyio.move_on_after(PATIENCE):
        while not await reached():
            deployment.check()
            await anyio.sleep(0.1)
        return
    raise TimeoutError(f"After {PATIENCE:.0f} s: {what}")


async def by_status(deployment: Processes) -> Counter[str]:
    """Return how many orders stand where."""
    query = select(orders.Order.status, func.count()).group_by(orders.Order.status)
    async with deployment.engine("orders").connect() as connection:
        return Counter({str(row[0]): row[1] for row in await connection.execute(query)})


async def waiting_for_courier(deployment: Processes) -> int:
    """Return how many orders are packed, and wait for a courier."""
    query = select(func.count()).where(warehouse.Reservation.state == warehouse.State.PACKED)
    async with deployment.engine("warehouse").connect() as connection:
        return (await connection.execute(query)).scalar_one()


async def enrolment_complaints(deployment: Processes, party: Counterparty) -> list[str]:
    """Compare what both halves of an enrolment say about each customer."""
    async with AsyncSession(deployment.engine("customers")) as session:
        found = {each.id: each for each in await session.scalars(select(customers.Customer))}
    async with AsyncSession(deployment.engine("enrolments")) as session:
        pending = set(await session.scalars(select(enrolments.PendingEnrolment.customer_id)))
    wrong = [
        f"customer {id_} is {found[id_].status}, enrolled {found[id_].enrolled}, pending {id_ in pending}"
        for id_ in party.enrolled | party.withdrawn
        if (found[id_].status is customers.Status.VERIFIED and found[id_].enrolled) is not (id_ in party.enrolled)
    ]
    return wrong + [f"enrolment {id_} was opened again" for id_ in pending]


@pytest.mark.chaos
@pytest.mark.servers
@pytest.mark.timeout(3_000 if LONG else 400)
async def test_pitfall_35_every_service_is_replaced_while_its_sagas_are_in_flight(site: Site) -> None:
    """Each saga is completed or undone, no event or message is dead, and the gate knows when a compensation may go.

    The next versions publish another version of an event, have handlers and compensations of other names, a
    compensation with one more argument, a step that comes later, and in the end one compensation fewer.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    async with processes(site, (*FULFILMENT, *ENROLMENT), together=True) as deployment:
        before = Opening.empty()
        stage = Stage(deployment, print, before)
        await stock_up(stage)
        party = Counterparty(stage, random.Random(rng.random()))
        deployer = Deployer(deployment, random.Random(rng.random()))

        async def awarded() -> int:
            async with AsyncSession(deployment.engine("loyalty")) as session:
                return (await session.scalar(select(func.count()).select_from(loyalty.Award))) or 0

        # --- some sagas were begun, and points given, by the versions of today ---
        await party.order(ORDERS // 4, lambda: 0)
        await until(deployment, awarded, "no points were given for any order")
        assert not await deployer.may_deploy("loyalty", "loyalty_without_revoking")

        # --- the others while the services are replaced ---
        pause = (7 * (SIDE_BY_SIDE[0] + SIDE_BY_SIDE[1] + 4) / 2) / ORDERS * WRITERS
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deployer.deploy_all)
            tasks.start_soon(party.verify, CUSTOMERS, lambda: rng.uniform(0, 2 * pause * ORDERS / CUSTOMERS / WRITERS))
            for _ in range(WRITERS):
                tasks.start_soon(party.order, (ORDERS - ORDERS // 4) // WRITERS, lambda: rng.uniform(0, 2 * pause))

        # --- nothing has come to its end but what was undone; then the courier comes ---
        async def waiting() -> bool:
            stand = await by_status(deployment)
            return stand["cancelled"] + await waiting_for_courier(deployment) == party.placed

        await until(deployment, waiting, "orders are neither undone nor waiting for the courier")
        packed = await waiting_for_courier(deployment)
        assert (await by_status(deployment))["completed"] == 0 < packed
        print(f"{packed} of {party.placed} orders wait for the courier while all services are replaced")
        await stage.courier(10 * ORDERS)
        await stage.days_pass(1)

        async def ended() -> bool:
            stand = await by_status(deployment)
            return stand["completed"] + stand["cancelled"] == party.placed

        await until(deployment, ended, "orders have no end")
        assert await settled(deployment) == []

        # --- the compensation that nothing has recorded any more may go ---
        assert await deployer.may_deploy("loyalty", "loyalty_without_revoking")
        await deployer.replace_loyalty()
        await party.order(ORDERS // 8, lambda: 0)
        await until(deployment, ended, "orders have no end after the last deployment")
        assert await settled(deployment) == []

        # The points are given last, for an event that is in a queue when all else has ended.
        async def agreed() -> bool:
            return await complaints(deployment, before) == []

        await until(deployment, agreed, "the services do not agree about every order")
        assert await enrolment_complaints(deployment, party) == []
        stand = await by_status(deployment)
        print(f"{dict(stand)}, {len(party.enrolled)} enrolled, {len(party.withdrawn)} withdrawn")
        assert min(stand["completed"], stand["cancelled"], len(party.withdrawn)) > 0
        await deployment.stop()
