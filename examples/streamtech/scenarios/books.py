"""The books of all services together: no cent, no record and no point too many or too few, whatever has happened."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from examples.streamtech import bank, loyalty, notification, orders, payment, warehouse
from examples.streamtech.deployment import Deployment
from sagapost import Service


@dataclass(slots=True)
class Opening:
    """What there was before the first order: what must be there in the end, wherever it has gone."""

    cents: int
    promised: Counter[str]
    """Units of each item that could be promised."""
    shelved: Counter[str]
    """Units of each item that were on the shelf."""

    @classmethod
    def empty(cls) -> Opening:
        """Nothing."""
        return cls(0, Counter(), Counter())


async def opening(deployment: Deployment) -> Opening:
    """Read what there is; call it while no order is on its way."""
    async with _session(deployment, "warehouse") as session:
        stock = list(await session.scalars(select(warehouse.Stock)))
        kept = list(await session.scalars(select(warehouse.Reservation)))
    promised = Counter({each.item: each.available for each in stock})
    shelved = Counter({each.item: each.on_shelf for each in stock})
    for reservation in kept:
        promised[reservation.item] += reservation.quantity
        if reservation.state is not warehouse.State.RESERVED:
            shelved[reservation.item] += reservation.quantity
    return Opening(sum((await bank.balances()).values()), promised, shelved)


async def complaints(deployment: Deployment, before: Opening) -> list[str]:
    """Compare the services with each other, order by order; empty if everything agrees."""
    found: list[str] = []

    def must(agree: bool, sentence: str) -> None:
        if not agree:
            found.append(sentence)

    async with _session(deployment, "orders") as session:
        placed = list(await session.scalars(select(orders.Order)))
    async with _session(deployment, "payment") as session:
        paid = {each.order_id: each for each in await session.scalars(select(payment.Payment))}
    async with _session(deployment, "warehouse") as session:
        goods = {each.order_id: each for each in await session.scalars(select(warehouse.Reservation))}
    async with _session(deployment, "loyalty") as session:
        awards = {each.order_id: each for each in await session.scalars(select(loyalty.Award))}
        members = list(await session.scalars(select(loyalty.Member)))
    async with _session(deployment, "notification") as session:
        mails = Counter((each.order_id, each.subject) for each in await session.scalars(select(notification.Mail)))

    # --- each order, in every service ---
    for order in placed:
        taken = order.id in paid and paid[order.id].state is payment.State.TAKEN
        sent = order.id in goods and goods[order.id].state is warehouse.State.DISPATCHED
        awarded = order.id in awards and not awards[order.id].revoked
        confirmed, cancelled, parcel = (
            mails[order.id, subject] for subject in ("We are packing", "Your order is cancelled", "On its way")
        )
        name = f"order {order.id} ({order.status}, {order.reason})"
        match order.status:
            case orders.Status.COMPLETED:
                must(taken and sent and awarded, f"{name}: paid {taken}, dispatched {sent}, points {awarded}.")
                must((confirmed, cancelled, parcel) == (1, 0, 1), f"{name}: the mails are not the two that are due.")
                must(order.points == awards[order.id].points if awarded else False, f"{name}: shows other points.")
            case orders.Status.CANCELLED:
                must(not taken, f"{name}: the money was kept.")
                must(order.id not in goods, f"{name}: the goods are still put aside.")
                must(not awarded, f"{name}: the points were kept.")
                must(confirmed == cancelled and not parcel, f"{name}: a mail was not followed up.")
            case _:
                must(False, f"{name}: has no end.")
    known = {order.id for order in placed}
    for what, ids in (("payments", paid.keys()), ("reservations", goods.keys()), ("awards", awards.keys())):
        must(ids <= known, f"{len(ids - known)} {what} of orders that nobody placed.")

    # --- sums ---
    balances, charged = await bank.balances(), await bank.charges()
    kept = {str(id_): each.cents for id_, each in paid.items() if each.state is payment.State.TAKEN}
    must(sum(balances.values()) == before.cents, f"{before.cents} cents have become {sum(balances.values())}.")
    must(balances[bank.SHOP] == sum(kept.values()), f"The bank has {balances[bank.SHOP]} cents for the shop.")
    must(charged == kept, f"The bank and Payment differ about {len(charged.items() ^ kept.items())} charges.")
    after = await opening(deployment)
    must(after.promised == before.promised, f"Stock that can be promised: {before.promised} became {after.promised}.")
    must(after.shelved == before.shelved, f"Stock on the shelves: {before.shelved} became {after.shelved}.")
    points = Counter[str]()
    for award in awards.values():
        points[award.customer] += 0 if award.revoked else award.points
    for member in members:
        must(member.points == points[member.customer], f"{member.customer} has {member.points} points.")
    return found


async def leftovers(deployment: Deployment) -> list[str]:
    """Return what has not come to its end: events, messages, rollbacks."""
    found: list[str] = []
    for service in deployment.services:
        for what, count in (await _waiting(deployment, service)).items():
            if count:
                found.append(f"{service.name} still has {count} {what}.")
    return found


async def _waiting(deployment: Deployment, service: Service) -> dict[str, int]:
    outbox, inbox, states = service.outbox.tables, service.inbox.tables, service.sagas.tables.states
    undecided = select(func.count()).select_from(states).where(states.c.state.in_(("rolling_back", "stuck")))
    queries = {
        "events in its outbox": select(func.count()).select_from(outbox.outbox),
        "dead events": select(func.count()).select_from(outbox.dead),
        "scheduled events": select(func.count()).select_from(outbox.scheduled),
        "parked messages": select(func.count()).select_from(inbox.parked),
        "sagas whose rollback has no end": undecided,
    }
    async with deployment.engine(service.name).connect() as connection:
        return {what: (await connection.execute(query)).scalar_one() for what, query in queries.items()}


def _session(deployment: Deployment, service: str) -> AsyncSession:
    return AsyncSession(deployment.engine(service))
