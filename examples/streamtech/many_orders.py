"""What the demo does, wherever the services run: place orders, disturb, send again, wait, count."""

from __future__ import annotations

import random
from typing import Protocol
from uuid import UUID

import anyio
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from examples.streamtech import orders, warehouse
from examples.streamtech.audit import Audit, Placed, audit
from examples.streamtech.deployment import Deployment, said
from examples.streamtech.witness import Witness

ITEMS = ("blue-train", "kind-of-blue", "a-love-supreme", "giant-steps")
RESENT = 20
_PATIENCE = 60.0
"""Seconds without any progress after which the rest is given up, and counted as lost."""


class Reporter(Protocol):
    """Where progress is shown."""

    def say(self, text: str) -> None:
        """Show a line."""
        ...

    def advance(self, what: str, steps: int) -> None:
        """Move the bar of `what`."""
        ...


async def play(deployment: Deployment, count: int, rng: random.Random, report: Reporter) -> Audit:
    """Place `count` orders in a running deployment, stop it, and return the balance."""
    # Two units an order on average, so that about 6 orders of 10 can be served.
    stock = max(1, round(count * 2 * 0.6 / len(ITEMS)))
    async with AsyncSession(deployment.engine("warehouse")) as session, session.begin():
        session.add_all(warehouse.Stock(item=item, available=stock, on_shelf=stock) for item in ITEMS)
    witness = Witness(deployment.broker)
    till = Till(deployment.engine("orders"), rng, report)
    answers = Answers(deployment, report)
    async with anyio.create_task_group() as tasks:
        await tasks.start(witness.run)
        tasks.start_soon(answers.run)
        await till.place(1)
        # The whole way was gone once: everybody is there, so what is disturbed next is at work.
        if not await answers.reached(1):
            report.say("the first order is not answered; going on, to count what is lost")
        await till.place(count // 2)
        if (disturbed := await deployment.disturb()) is not None:
            report.say(disturbed)
        await till.place(count * 3 // 4)
        await witness.repeat(RESENT)
        report.say(f"sent {RESENT} events a second time, under their old ids")
        # These queue up behind the copies: when they are answered, the copies were delivered.
        await till.place(count)
        if not await answers.reached(count):
            report.say("nothing moves any more; counting what is there")
        await said(deployment, patience=min(_PATIENCE, 20))
        await deployment.stop()
        await witness.end()
        tasks.cancel_scope.cancel()
    placed = Placed(frozenset(till.placed), frozenset(till.undone), stock)
    left = [await deployment.in_queue(inbox.name) for inbox in (orders.service.inbox, warehouse.service.inbox)]
    return await audit(deployment.engine("orders"), deployment.engine("warehouse"), placed, witness, sum(left))


class Till:
    """Where orders are placed; about every tenth transaction fails after the event was published into it."""

    def __init__(self, engine: AsyncEngine, rng: random.Random, report: Reporter) -> None:
        self._engine = engine
        self._rng = rng
        self._report = report
        self.placed: set[UUID] = set()
        self.undone: set[UUID] = set()

    async def place(self, until: int) -> None:
        """Place orders until there are so many."""
        while len(self.placed) < until:
            item, quantity, fails = self._rng.choice(ITEMS), self._rng.randint(1, 3), self._rng.random() < 0.1
            async with AsyncSession(self._engine) as session:
                order = await orders.place_order(session, item, quantity)
                order_id = order.id
                await session.flush()
                if fails:
                    await session.rollback()
                    self.undone.add(order_id)
                else:
                    await session.commit()
                    self.placed.add(order_id)
                    self._report.advance("orders placed", 1)


class Answers:
    """Watches orders come to their end, by asking the database of orders."""

    def __init__(self, deployment: Deployment, report: Reporter) -> None:
        self._deployment = deployment
        self._report = report
        self._count = 0
        self._moved = anyio.Event()

    async def run(self) -> None:
        """Ask again and again, until cancelled."""
        query = select(func.count()).select_from(orders.Order).where(orders.Order.status != orders.Status.PLACED)
        while True:
            self._deployment.check()
            async with self._deployment.engine("orders").connect() as connection:
                count = (await connection.execute(query)).scalar_one()
            if count > self._count:
                self._report.advance("orders answered", count - self._count)
                self._count = count
                self._moved.set()
            await anyio.sleep(0.1)

    async def reached(self, count: int) -> bool:
        """Wait until so many orders are answered; False if nothing moves any more."""
        while self._count < count:
            self._moved = anyio.Event()
            with anyio.move_on_after(_PATIENCE) as waited:
                await self._moved.wait()
            if waited.cancelled_caught:
                return False
        return True
