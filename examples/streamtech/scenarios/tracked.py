"""What a tracker says of each saga, beside what the services themselves have: the two must be the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from examples.streamtech import customers, orders
from examples.streamtech.deployment import Deployment
from sagapost.sagas.tracker import SagaState, SagaView

_ENDS = {orders.Status.COMPLETED: SagaState.COMPLETED, orders.Status.CANCELLED: SagaState.ROLLED_BACK}


async def disagreements(
    deployment: Deployment, views: Mapping[str, SagaView], *, earlier: Collection[str] = ()
) -> list[str]:
    """Compare every saga's end, and every compensation in the ledgers; empty if nothing differs.

    :param earlier: sagas of which the tracker knows nothing, since it did not listen yet.
    """
    found: list[str] = []
    for saga, expected in (await ends(deployment)).items():
        if saga in earlier:
            continue
        state = views[saga].state if saga in views else None
        if state is not expected:
            found.append(f"saga {saga}: the service has {expected or 'no end'}, the tracker says {state}.")
    for saga, undone in (await _undone(deployment)).items():
        if saga in earlier:
            continue
        rollbacks = views[saga].rollbacks if saga in views else ()
        told = Counter((rollback.service, name) for rollback in rollbacks for name in rollback.done)
        if told != undone:
            found.append(f"saga {saga}: the ledgers have undone {dict(undone)}, the tracker says {dict(told)}.")
    return found


async def ends(deployment: Deployment) -> dict[str, SagaState | None]:
    """Return how each saga has ended, by the service that began it; None if it has not."""
    found: dict[str, SagaState | None] = {}
    for service in deployment.services:
        async with AsyncSession(deployment.engine(service.name)) as session:
            if service.name == "orders":
                for order in await session.scalars(select(orders.Order)):
                    found[str(order.id)] = _ENDS.get(order.status)
            elif service.name == "customers":
                for customer in await session.scalars(select(customers.Customer)):
                    found[str(customer.id)] = SagaState.COMPLETED if customer.enrolled else SagaState.ROLLED_BACK
    return found


async def _undone(deployment: Deployment) -> dict[str, Counter[tuple[str, str]]]:
    """Return what each service has undone, by saga, from the compensation ledgers."""
    undone: dict[str, Counter[tuple[str, str]]] = {}
    for service in deployment.services:
        ledger = service.sagas.tables.compensations
        done = select(ledger.c.saga, ledger.c.name).where(ledger.c.state == "done")
        async with deployment.engine(service.name).connect() as connection:
            for saga, name in await connection.execute(done):
                undone.setdefault(saga, Counter())[service.name, name] += 1
    return undone
