"""The main job under fire: orders through two services while relays and consumers are killed and servers restart.

Every role is a process of its own, as deployed. The verdict comes from reading both services' databases and comparing
them with what the writers know they committed and rolled back.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import UUID

import anyio
import anyio.to_thread
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from examples.streamtech import orders, warehouse
from examples.streamtech.services import COUNTER, unhandled
from sagapost.adapters.rabbitmq import RabbitMQBroker
from tests.processes.command import environment
from tests.processes.nursery import Child, Nursery
from tests.servers.postgresql import PrivatePostgreSQL
from tests.servers.rabbitmq import PrivateRabbitMQ

__all__ = ["Plan", "Verdict", "run"]

ITEMS = ("blue-train", "kind-of-blue", "giant-steps")
WRITERS = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to the services."""

    orders: int = 1_000
    kills: int = 10
    """SIGKILLs of relays, and as many of consumers."""
    restarts: bool = False
    """Also restart RabbitMQ twice and PostgreSQL once."""
    patience: float = 180.0
    """Seconds after the last fault until every order must have its answer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the databases say in the end; every count but `orders` and the faults must be 0."""

    orders: int
    lost: int
    """Orders without an answer, or confirmed without a reservation, or the other way round."""
    doubled: int
    """Units of stock taken more than once."""
    unexpected: int
    """Effects of orders whose transaction was rolled back."""
    pending: int
    """Events still in an outbox."""
    parked: int
    """Messages an inbox could not handle."""
    kills: int
    restarts: int
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether every promise held."""
        return not (self.lost or self.doubled or self.unexpected or self.pending or self.parked)


@dataclass(slots=True)
class _Roles:
    """The processes of one service, each replaced when it is killed."""

    name: str
    url: str
    amqp: str
    nursery: Nursery
    home: Path
    logs: Path
    running: dict[str, Child] = field(default_factory=dict[str, Child])

    def start(self, role: str) -> None:
        arguments = [role] if role != "consume" else [role, f"examples.streamtech.{self.name}:service"]
        settings = {
            "SAGAPOST_DATABASE_URL": self.url,
            "SAGAPOST_BROKER_URL": self.amqp,
            # Short leases: a killed relay's successor takes over within a second.
            "SAGAPOST_RELAY_LEASE_TTL": "1s",
            "SAGAPOST_RELAY_OPTIONAL": ",".join(sorted(unhandled(COUNTER))),
        }
        with (self.logs / f"{self.name}-{role}.log").open("ab") as log:
            self.running[role] = self.nursery.start(
                "sagapost", *arguments, environment=environment(settings), folder=self.home, output=log
            )

    def upgrade(self) -> None:
        settings = {"SAGAPOST_DATABASE_URL": self.url}
        self.nursery.run(
            "sagapost", "db", "upgrade", environment=environment(settings), folder=self.home
        ).check_returncode()

    def replace(self, role: str) -> None:
        """SIGKILL, and a successor at once."""
        process = self.running[role]
        process.kill()
        process.wait()
        self.start(role)


async def run(
    plan: Plan,
    postgresql: PrivatePostgreSQL,
    rabbitmq: PrivateRabbitMQ,
    *,
    rng: random.Random,
    logs: Path,
    say: Callable[[str], None],
) -> Verdict:
    """Run the plan on servers that nobody else uses; the verdict is for the caller to judge."""
    started = time.monotonic()
    async with _services(plan, postgresql, rabbitmq, logs) as (services, engines):
        kept: set[UUID] = set()
        undone: set[UUID] = set()
        faults = _Faults(plan, services, postgresql, rabbitmq, rng, say)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(faults.run)
            for writer in range(WRITERS):
                seed = rng.randrange(2**32)
                share = plan.orders // WRITERS + (writer < plan.orders % WRITERS)
                tasks.start_soon(_write, engines[0], share, random.Random(seed), kept, undone, faults.over)
        say(f"{len(kept)} orders committed, {len(undone)} rolled back; the last fault is over")
        with anyio.move_on_after(plan.patience):
            while await _unfinished(engines):  # noqa: ASYNC110 - asks databases of other processes
                await anyio.sleep(0.2)
        return await _judge(engines, kept, undone, plan, time.monotonic() - started)


class _Faults:
    """Kills and restarts at random moments while orders are written."""

    def __init__(
        self,
        plan: Plan,
        services: tuple[_Roles, _Roles],
        postgresql: PrivatePostgreSQL,
        rabbitmq: PrivateRabbitMQ,
        rng: random.Random,
        say: Callable[[str], None],
    ) -> None:
        self._rng = rng
        self._services = services
        self._say = say
        self.over = anyio.Event()
        self._faults: list[tuple[str, Callable[[], None]]] = []
        for _ in range(plan.kills):
            for role in ("relay", "consume"):
                service = rng.choice(services)
                self._faults.append((f"SIGKILL {service.name} {role}", partial(service.replace, role)))
        if plan.restarts:
            self._faults.append(("restart PostgreSQL", postgresql.restart))
            self._faults += [("restart RabbitMQ", rabbitmq.restart)] * 2
        rng.shuffle(self._faults)

    async def run(self) -> None:
        for name, fault in self._faults:
            await anyio.sleep(self._rng.uniform(0.2, 1.5))
            self._say(name)
            await anyio.to_thread.run_sync(fault)
        self.over.set()


async def _write(
    engine: AsyncEngine, count: int, rng: random.Random, kept: set[UUID], undone: set[UUID], over: anyio.Event
) -> None:
    """Place orders, every tenth transaction rolled back, spread over the time of the faults."""
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    written = 0
    while written < count:
        if not over.is_set():
            await anyio.sleep(rng.uniform(0, 0.1))
        item, quantity = rng.choice(ITEMS), rng.randint(1, 2)
        try:
            async with sessions() as session:
                order = await orders.place_order(session, item, quantity)
                await session.flush()
                if rng.random() < 0.1:
                    await session.rollback()
                    undone.add(order.id)
                    continue
                known = order.id
                try:
                    await session.commit()
                except (DBAPIError, OSError):
                    # The connection broke during the commit: only the database knows. Ask it.
                    if await _exists(engine, known):
                        kept.add(known)
                        written += 1
                    else:
                        undone.add(known)
                    continue
            kept.add(known)
            written += 1
        except (DBAPIError, OSError):
            # PostgreSQL is being restarted: the transaction is gone, and so is its event.
            await anyio.sleep(0.1)


async def _exists(engine: AsyncEngine, order: UUID) -> bool:
    while True:
        try:
            async with async_sessionmaker(engine)() as session:
                return await session.get(orders.Order, order) is not None
        except (DBAPIError, OSError):
            await anyio.sleep(0.1)


async def _unfinished(engines: tuple[AsyncEngine, AsyncEngine]) -> bool:
    async with engines[0].connect() as connection:
        waiting = select(func.count()).select_from(orders.Order).where(orders.Order.status == orders.Status.PLACED)
        if (await connection.execute(waiting)).scalar_one():
            return True
        left = select(func.count()).select_from(orders.service.outbox.tables.outbox)
        return bool((await connection.execute(left)).scalar_one())


async def _judge(
    engines: tuple[AsyncEngine, AsyncEngine], kept: set[UUID], undone: set[UUID], plan: Plan, seconds: float
) -> Verdict:
    async with async_sessionmaker(engines[0])() as session:
        status = {row.id: row.status for row in await session.execute(select(orders.Order.id, orders.Order.status))}
        pending = await session.scalar(select(func.count()).select_from(orders.service.outbox.tables.outbox)) or 0
        parked = await session.scalar(select(func.count()).select_from(orders.service.inbox.tables.parked)) or 0
    async with async_sessionmaker(engines[1])() as session:
        reservations = {r.order_id: r for r in await session.scalars(select(warehouse.Reservation))}
        stock = {s.item: s.available for s in await session.scalars(select(warehouse.Stock))}
        pending += await session.scalar(select(func.count()).select_from(warehouse.service.outbox.tables.outbox)) or 0
        parked += await session.scalar(select(func.count()).select_from(warehouse.service.inbox.tables.parked)) or 0
    confirmed = {id_ for id_, is_ in status.items() if is_ == orders.Status.CONFIRMED}
    cancelled = {id_ for id_, is_ in status.items() if is_ == orders.Status.CANCELLED}
    taken: dict[str, int] = dict.fromkeys(ITEMS, 0)
    for reservation in reservations.values():
        taken[reservation.item] += reservation.quantity
    return Verdict(
        orders=len(kept),
        lost=len(kept - confirmed - cancelled) + len(confirmed ^ (reservations.keys() & kept)),
        doubled=sum(abs(_stock_of(plan) - stock[item] - taken[item]) for item in ITEMS),
        unexpected=len((reservations.keys() | status.keys()) - kept) + len(undone & reservations.keys()),
        pending=pending,
        parked=parked,
        kills=2 * plan.kills,
        restarts=3 if plan.restarts else 0,
        seconds=seconds,
    )


def _stock_of(plan: Plan) -> int:
    """Enough of each item for most orders, not for all."""
    return plan.orders // 3


@asynccontextmanager
async def _services(
    plan: Plan, postgresql: PrivatePostgreSQL, rabbitmq: PrivateRabbitMQ, logs: Path
) -> AsyncGenerator[tuple[tuple[_Roles, _Roles], tuple[AsyncEngine, AsyncEngine]], None]:
    made: list[_Roles] = []
    engines: list[AsyncEngine] = []
    home = postgresql.home.parent
    async with AsyncExitStack() as stack:
        nursery = stack.enter_context(Nursery(home, orders.__name__, warehouse.__name__))
        for name, base in (("orders", orders.Base), ("warehouse", warehouse.Base)):
            postgresql.create_database(name)
            roles = _Roles(name, postgresql.url(name), rabbitmq.amqp_url(), nursery, home, logs)
            roles.upgrade()
            engine = create_async_engine(roles.url, pool_pre_ping=True)
            stack.push_async_callback(engine.dispose)
            engines.append(engine)
            async with engine.begin() as connection:
                await connection.run_sync(base.metadata.create_all)
            made.append(roles)
        async with async_sessionmaker(engines[1]).begin() as session:
            units = _stock_of(plan)
            session.add_all(warehouse.Stock(item=item, available=units, on_shelf=units) for item in ITEMS)
        # As a deployment does (`sagapost declare`): an order placed before Warehouse's first start is for it, too.
        broker = RabbitMQBroker(rabbitmq.amqp_url())
        for inbox in (orders.service.inbox, warehouse.service.inbox):
            await broker.declare(inbox.queue)
        for roles in made:
            roles.start("relay")
            roles.start("consume")
        yield (made[0], made[1]), (engines[0], engines[1])
