"""Which services StreamTech has, and which of them are run together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase

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
from sagapost.core.naming import event_type_of
from sagapost.core.schema import install_schema
from sagapost.inbox import Inbox
from sagapost.outbox import Outbox
from sagapost.sagas import Sagas, events, manifest_of
from sagapost.sagas.choreography import Choreography


@dataclass(frozen=True, slots=True)
class Service:
    """A service: its database and its queue have its name; its module declares what it does."""

    name: str
    module: str
    base: type[DeclarativeBase]
    outbox: Outbox
    inbox: Inbox
    sagas: Sagas

    @property
    def path(self) -> str:
        """What `sagapost consume` is given."""
        return f"{self.module}:inbox"


ORDERS = Service("orders", orders.__name__, orders.Base, orders.outbox, orders.inbox, orders.sagas)
WAREHOUSE = Service(
    "warehouse", warehouse.__name__, warehouse.Base, warehouse.outbox, warehouse.inbox, warehouse.sagas
)
WAREHOUSE_ISLAND = Service(
    "warehouse",
    warehouse_island.__name__,
    warehouse.Base,
    warehouse.outbox,
    warehouse_island.inbox,
    warehouse_island.sagas,
)
PAYMENT = Service("payment", payment.__name__, payment.Base, payment.outbox, payment.inbox, payment.sagas)
LOYALTY = Service("loyalty", loyalty.__name__, loyalty.Base, loyalty.outbox, loyalty.inbox, loyalty.sagas)
LOYALTY_AFTER_DISPATCH = Service(
    "loyalty",
    loyalty_after_dispatch.__name__,
    loyalty.Base,
    loyalty.outbox,
    loyalty_after_dispatch.inbox,
    loyalty_after_dispatch.sagas,
)
NOTIFICATION = Service(
    "notification",
    notification.__name__,
    notification.Base,
    notification.outbox,
    notification.inbox,
    notification.sagas,
)
CUSTOMERS = Service(
    "customers", customers.__name__, customers.Base, customers.outbox, customers.inbox, customers.sagas
)
ENROLMENTS = Service(
    "enrolments", enrolments.__name__, enrolments.Base, enrolments.outbox, enrolments.inbox, enrolments.sagas
)

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
    return Choreography(manifest_of(service.inbox, service.sagas) for service in services)


def unheard(services: Iterable[Service]) -> frozenset[str]:
    """Return the event types that none of these services listens to, for `SAGAPOST_RELAY_OPTIONAL`.

    The relay holds an event that no queue is bound for until somebody listens. Here nobody will: what they say beside
    the events of their own business is for a tracker.
    """
    deployed = tuple(services)
    heard = {topic for service in deployed for topic in service.inbox.queue.topics}
    lifecycle = {event_type_of(getattr(events, name)) for name in events.__all__}
    return frozenset((choreography(deployed).said().keys() | lifecycle) - heard)


async def install(engine: AsyncEngine, service: Service) -> None:
    """Create the tables of sagapost, as `sagapost db upgrade` does, and the service's own."""
    parts = [service.outbox.tables.part, service.inbox.tables.part, service.sagas.tables.part]
    async with engine.begin() as connection:
        await connection.run_sync(install_schema, service.outbox.tables.versions, parts)
        await connection.run_sync(service.base.metadata.create_all)
