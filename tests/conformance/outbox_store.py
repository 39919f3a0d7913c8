"""What every `OutboxStore` must do, whatever the database.

An adapter's test module subclasses `OutboxStoreConformance` and provides one fixture, `store_factory`; what the
adapter does not declare in its capabilities is skipped. Expected values are written out by hand.

::

    class TestMyStore(OutboxStoreConformance):
        @pytest.fixture
        async def store_factory(self) -> AsyncGenerator[StoreFactory, None]:
            ...  # create a database, install the tables
            yield StoreFactory(open=..., engine=..., tables=..., open_empty=...)
"""

from __future__ import annotations

from tests.conformance.outbox.bed import StoreFactory
from tests.conformance.outbox.fetch import FetchConformance
from tests.conformance.outbox.life import LifeConformance
from tests.conformance.outbox.ownership import OwnershipConformance
from tests.conformance.outbox.schedule import ScheduleConformance
from tests.conformance.outbox.settle import SettleConformance

__all__ = ["OutboxStoreConformance", "StoreFactory"]


class OutboxStoreConformance(
    FetchConformance, SettleConformance, OwnershipConformance, ScheduleConformance, LifeConformance
):
    """The whole suite."""
