"""Which services StreamTech has, and which of them are run together."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.ext.asyncio import AsyncEngine

from examples.streamtech import (
    customers,
    enrolments,
    loyalty,
    loyalty_after_dispatch,
    notification,
    orders,
    payment,
    warehouse,
    warehouse_island,
)
from sagapost import Service
from sagapost.core.naming import event_type_of
from sagapost.sagas import events
from sagapost.sagas.choreography import Choreography

ORDERS = orders.service
PAYMENT = payment.service
WAREHOUSE = warehouse.service
WAREHOUSE_ISLAND = warehouse_island.service
LOYALTY = loyalty.service
LOYALTY_AFTER_DISPATCH = loyalty_after_dispatch.service
NOTIFICATION = notification.service
CUSTOMERS = customers.service
ENROLMENTS = enrolments.service

_MODULES = {
    module.service: module.__name__
    for module in (
        orders,
        payment,
        warehouse,
        warehouse_island,
        loyalty,
        loyalty_after_dispatch,
        notification,
        customers,
        enrolments,
    )
}

COUNTER = (ORDERS, WAREHOUSE)
"""Enough to promise goods and to run out of them: what the demo does two hundred times."""
FULFILMENT = (ORDERS, PAYMENT, WAREHOUSE, LOYALTY, NOTIFICATION)
"""The whole order fulfilment."""
REORDERED = (ORDERS, PAYMENT, WAREHOUSE, LOYALTY_AFTER_DISPATCH, NOTIFICATION)
"""The same with points awarded last."""
ISLAND = (ORDERS, PAYMENT, WAREHOUSE_ISLAND, LOYALTY, NOTIFICATION)
"""The same with packing and dispatch led by a coordinator inside Warehouse."""
ENROLMENT = (CUSTOMERS, ENROLMENTS)
"""A customer is verified, over two services."""


def choreography(services: Iterable[Service]) -> Choreography:
    """Return what the services declare, as one."""
    return Choreography(service.manifest for service in services)


def path_of(service: Service) -> str:
    """Return what `sagapost consume` is given: its database and its queue have the service's name."""
    return f"{_MODULES[service]}:service"


def unhandled(services: Iterable[Service]) -> frozenset[str]:
    """Return the event types that none of these services listens to, for `SAGAPOST_RELAY_OPTIONAL`.

    The relay holds an event that no queue is bound for until one is. Here none will be: what they publish besides the
    events of their own business is for a tracker.
    """
    deployed = tuple(services)
    handled = {topic for service in deployed for topic in service.inbox.queue.topics}
    lifecycle = {event_type_of(getattr(events, name)) for name in events.__all__}
    return frozenset((choreography(deployed).emitted().keys() | lifecycle) - handled)


async def install(engine: AsyncEngine, service: Service) -> None:
    """Create the tables of sagapost, as `sagapost db upgrade` does, and the service's own."""
    async with engine.begin() as connection:
        await connection.run_sync(service.tables.install)
        await connection.run_sync(service.metadata.create_all)
