"""What a scenario has at hand: goods, money, orders, days that pass, an operator, and the services' own data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias
from uuid import UUID

import anyio
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from examples.streamtech import bank, loyalty, notification, orders, payment, warehouse
from examples.streamtech.deployment import Deployment
from examples.streamtech.scenarios.books import Opening
from examples.streamtech.scenarios.calendar import pass_days
from sagapost import Service
from sagapost.sagas.task_desk import TaskDesk

PATIENCE = 100.0
"""Seconds to wait for something to become so."""

Facts: TypeAlias = Mapping[str, object]
Ask: TypeAlias = Callable[[], Awaitable[Facts]]


class Stage:
    """One scenario's hands on a running deployment.

    Several scenarios may play one after the other on one deployment: each has customers and items of its own.
    """

    def __init__(self, deployment: Deployment, say: Callable[[str], None], before: Opening) -> None:
        self.deployment = deployment
        self.say = say
        self._before = before
        self.saga: str | None = None
        """The saga the scenario is about."""
        self.expected: dict[str, object] = {}
        self.found: dict[str, object] = {}

    def session(self, service: str) -> AsyncSession:
        """Return a session on a service's database."""
        return AsyncSession(self.deployment.engine(service), expire_on_commit=False)

    # --- what is there before the order ---

    async def stock(self, item: str, available: int, *, on_shelf: int | None = None) -> None:
        """Fill a shelf; with `on_shelf`, with fewer than the books say."""
        async with self.session("warehouse") as session, session.begin():
            shelf = available if on_shelf is None else on_shelf
            session.add(warehouse.Stock(item=item, available=available, on_shelf=shelf))
        self._before.promised[item] += available
        self._before.shelved[item] += shelf
        missing = "" if on_shelf is None else f", of which {available - on_shelf} are not really there"
        self.say(f"the warehouse has {available} of {item}{missing}")

    async def account(self, customer: str, cents: int) -> None:
        """Give a customer money."""
        await bank.pay_in(customer, cents)
        self._before.cents += cents
        self.say(f"{customer} has {euros(cents)}")

    async def courier(self, room: int) -> None:
        """Say how many parcels the courier takes from now on."""
        async with self.session("warehouse") as session, session.begin():
            await session.merge(warehouse.Courier(name="van", room=room))

    # --- what happens ---

    async def order(self, item: str, *, customer: str, quantity: int = 1, cents: int = 2000) -> UUID:
        """Place an order."""
        async with self.session("orders") as session, session.begin():
            placed = await orders.place_order(session, item, quantity, customer=customer, cents=cents)
        self.saga = str(placed.id)
        self.say(f"{customer} orders {quantity} of {item} for {euros(cents)}")
        return placed.id

    async def days_pass(self, days: int) -> None:
        """Let everything that waits for a time be that much closer to it."""
        await pass_days(self.deployment, days)
        self.say(f"{days} days pass" if days > 1 else "a day passes")

    async def decide(self, service: str, task: str, outcome: str, *, by: str, note: str) -> None:
        """Wait until a task asks a person, and decide, as `sagapost tasks resolve` does."""
        desk = self._desk(service)

        async def ask() -> list[str]:
            return [each.name for each in await desk.list(saga=self.saga)]

        await self.ask_until(f"what {service} asks a person", ask, [task])
        (open_task,) = await desk.list(saga=self.saga)
        self.say(f"{service} asks a person: {open_task.title}; {' or '.join(open_task.outcomes)}?")
        await desk.resolve(open_task.id, outcome, by=by, note=note)
        self.say(f"{by} decides: {outcome}, since {note}")

    def _service(self, name: str) -> Service:
        return next(each for each in self.deployment.services if each.name == name)

    def _desk(self, name: str) -> TaskDesk:
        service = self._service(name)
        return TaskDesk(
            self.deployment.engine(name),
            sagas=service.sagas.tables,
            outbox=service.outbox.tables,
            inbox=service.inbox.tables,
        )

    async def ask_until(self, what: str, ask: Callable[[], Awaitable[object]], wanted: object) -> None:
        """Wait until the answer is what is wanted.

        :raises TimeoutError: if it is not in time; says what it was.
        """
        answer: object = None
        with anyio.move_on_after(PATIENCE):
            while (answer := await ask()) != wanted:
                self.deployment.check()
                await anyio.sleep(0.03)
            return
        raise TimeoutError(f"{what}: expected {wanted!r}, and after {PATIENCE:.0f} s it is {answer!r}")

    async def ends(self, expected: Facts, ask: Ask) -> None:
        """Wait until the services' own data says what is expected; what it publishes in the end is judged later."""
        self.expected.update(expected)
        found: Facts = {}
        with anyio.move_on_after(PATIENCE):
            while any(name not in found or found[name] != value for name, value in expected.items()):
                self.deployment.check()
                await anyio.sleep(0.03)
                found = await ask()
        self.found.update({name: value for name, value in found.items() if name in expected})

    async def order_ends(self, order_id: UUID, expected: Facts) -> None:
        """Wait until every service has what is expected about an order."""

        async def ask() -> Facts:
            return await self.facts(order_id)

        await self.ends(expected, ask)

    async def order_is(self, order_id: UUID, name: str, value: object) -> None:
        """Wait until one fact about an order is so."""

        async def ask() -> object:
            return (await self.facts(order_id))[name]

        await self.ask_until(name, ask, value)

    async def is_parked(self, service: str, saga: str) -> None:
        """Wait until a service has put a message of the saga off."""
        parked = self._service(service).inbox.tables.parked

        async def ask() -> bool:
            waiting = select(parked.c.id).where(parked.c.correlationid == saga, parked.c.state == "waiting")
            async with self.session(service) as session:
                return (await session.execute(waiting)).first() is not None

        await self.ask_until(f"{service} puts a message off", ask, wanted=True)
        self.say(f"{service} tries again later")

    async def is_scheduled(self, service: str, saga: str) -> None:
        """Wait until a service has put an event of the saga off."""
        scheduled = self._service(service).outbox.tables.scheduled

        async def ask() -> bool:
            async with self.session(service) as session:
                waiting = select(scheduled.c.id).where(scheduled.c.correlationid == saga)
                return (await session.execute(waiting)).first() is not None

        await self.ask_until(f"{service} puts an event off", ask, wanted=True)
        self.say(f"{service} tries again later")

    async def has_rolled_back(self, service: str, saga: str) -> None:
        """Wait until a service has undone its part of the saga."""
        states = self._service(service).sagas.tables.states

        async def ask() -> str | None:
            state = select(states.c.state).where(states.c.service == service, states.c.saga == saga)
            async with self.session(service) as session:
                return await session.scalar(state)

        await self.ask_until(f"the saga in {service}", ask, "rolled_back")

    # --- what the services have ---

    async def facts(self, order_id: UUID) -> Facts:
        """Read what every service has about an order, from its own tables."""
        async with self.session("orders") as session:
            order = await session.get_one(orders.Order, order_id)
            records = select(orders.Record.what).filter_by(order_id=order_id)
            undone = sorted(await session.scalars(records))
        async with self.session("payment") as session:
            paid = await session.get(payment.Payment, order_id)
        async with self.session("warehouse") as session:
            reservation = await session.get(warehouse.Reservation, order_id)
            stock = await session.get(warehouse.Stock, order.item)
        async with self.session("loyalty") as session:
            member = await session.get(loyalty.Member, order.customer)
        async with self.session("notification") as session:
            mails = select(notification.Mail.subject).filter_by(order_id=order_id).order_by(notification.Mail.id)
            written = list(await session.scalars(mails))
        balance = (await bank.balances())[order.customer]
        return {
            "order": str(order.status),
            "why": order.reason,
            "overdue": order.overdue,
            "payment": str(paid.state) if paid is not None else None,
            "customer has": euros(balance),
            "goods": str(reservation.state) if reservation is not None else None,
            "can be promised": stock.available if stock is not None else None,
            "on the shelf": stock.on_shelf if stock is not None else None,
            "points": member.points if member is not None else 0,
            "mails": ", ".join(written),
            "on record": ", ".join(undone),
        }


def euros(cents: int) -> str:
    """Return an amount as people write it."""
    return f"EUR {cents // 100}.{cents % 100:02}"
