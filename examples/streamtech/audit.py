"""What happened, read from the databases of both services and from the witness; no log line is counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Table, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from examples.streamtech import orders, warehouse
from examples.streamtech.witness import Witness


@dataclass(frozen=True, slots=True)
class Placed:
    """What the demo did."""

    orders: frozenset[UUID]
    """Committed."""
    undone: frozenset[UUID]
    """Rolled back on purpose, after the event was published into the transaction."""
    stock: int
    """Units of each item that the warehouse began with."""


@dataclass(frozen=True, slots=True)
class Audit:
    """The balance."""

    orders: int
    confirmed: int
    cancelled: int
    undone: int
    published: int
    """Distinct events that reached the broker."""
    handled: int
    """How often an event took effect in a service, by the dedup records of both."""
    suppressed: int
    """Copies that reached a service and did nothing."""
    waiting: int
    """What has not reached its end: rows in an outbox, dead letters, parked messages, messages in a queue."""
    lost: frozenset[UUID]
    """Orders without an end, or whose end is not what the warehouse has: confirmed without a reservation, or not
    confirmed with one."""
    doubled: int
    """Units that left the shelf without a reservation to show for it, and reservations that nobody ordered."""
    ghosts: int
    """Orders that were rolled back and of which an event or a row exists all the same."""

    @property
    def complaints(self) -> list[str]:
        """What should not be, in sentences; empty if all is well."""
        found: list[str] = []
        if self.lost:
            some = ", ".join(sorted(map(str, self.lost))[:3])
            found.append(f"{len(self.lost)} orders have no end, or one that the warehouse does not share: {some} ...")
        if self.doubled:
            found.append(f"{self.doubled} units or reservations too many: an event took effect twice.")
        if self.ghosts:
            found.append(f"{self.ghosts} orders were rolled back and left something.")
        # One event for each order, which both services handle, and one answer to it.
        if (self.published, self.handled) != (2 * self.orders, 3 * self.orders):
            found.append(
                f"{2 * self.orders} events were due, {self.published} published; to be handled {3 * self.orders} "
                f"times, and were {self.handled}."
            )
        return found


async def audit(
    orders_engine: AsyncEngine, warehouse_engine: AsyncEngine, placed: Placed, witness: Witness, in_queues: int
) -> Audit:
    """Compare what both services have, order by order."""
    async with AsyncSession(orders_engine) as session:
        status = {row.id: row.status for row in await session.execute(select(orders.Order.id, orders.Order.status))}
        handled = await _count(session, orders.service.inbox.tables.seen)
        waiting = await _waiting(session, orders.service.outbox.tables.outbox, orders.service.outbox.tables.dead)
        parked = await _count(session, orders.service.inbox.tables.parked)
    async with AsyncSession(warehouse_engine) as session:
        reserved = {row.order_id: row for row in await session.scalars(select(warehouse.Reservation))}
        shelves = {row.item: row.available for row in await session.scalars(select(warehouse.Stock))}
        handled += await _count(session, warehouse.service.inbox.tables.seen)
        waiting += await _waiting(
            session, warehouse.service.outbox.tables.outbox, warehouse.service.outbox.tables.dead
        )
        parked += await _count(session, warehouse.service.inbox.tables.parked)
    confirmed = {order for order, is_ in status.items() if is_ is orders.Status.CONFIRMED}
    cancelled = {order for order, is_ in status.items() if is_ is orders.Status.CANCELLED}
    taken = Counter[str]()
    for reservation in reserved.values():
        taken[reservation.item] += reservation.quantity
    gone = sum(abs(placed.stock - available - taken[item]) for item, available in shelves.items())
    consumers = Counter([*orders.service.inbox.queue.topics, *warehouse.service.inbox.queue.topics])
    known = {order for order in placed.undone if str(order) in witness.keys}
    return Audit(
        orders=len(placed.orders),
        confirmed=len(confirmed),
        cancelled=len(cancelled),
        undone=len(placed.undone),
        published=len(witness.copies),
        handled=handled,
        # The witness takes each copy once; so does each service whose queue is bound to its type.
        suppressed=sum(witness.copies[id_] * consumers[type_] for id_, type_ in witness.types.items())
        - handled
        - parked
        - in_queues,
        waiting=waiting + parked + in_queues,
        lost=frozenset((placed.orders - confirmed - cancelled) | ((confirmed ^ reserved.keys()) & placed.orders)),
        doubled=gone + len(reserved.keys() - placed.orders - placed.undone),
        ghosts=len(known | ((status.keys() | reserved.keys()) & placed.undone)),
    )


async def _waiting(session: AsyncSession, *tables: Table) -> int:
    return sum([await _count(session, table) for table in tables])


async def _count(session: AsyncSession, table: Table) -> int:
    return (await session.execute(select(func.count()).select_from(table))).scalar_one()
