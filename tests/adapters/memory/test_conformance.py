"""The in-process broker honours the broker port."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.broker import Broker
from tests.conformance.broker import BrokerConformance


class TestMemoryBroker(BrokerConformance):
    """The suite on `MemoryBroker`."""

    @pytest.fixture
    def broker(self) -> MemoryBroker:
        """Return a broker of the test's own."""
        return MemoryBroker()

    async def drop_connections(self, broker: Broker) -> None:
        """Pull the broker's own lever."""
        assert isinstance(broker, MemoryBroker)
        broker.disconnect()

    async def forbid(self, broker: Broker, topic: str) -> None:
        """Pull the broker's own lever."""
        assert isinstance(broker, MemoryBroker)
        broker.forbid(topic)

    async def allow(self, broker: Broker, topic: str) -> None:
        """Pull the broker's own lever."""
        assert isinstance(broker, MemoryBroker)
        broker.allow(topic)

    async def dead_letters(self, broker: Broker, queue: str, count: int) -> list[bytes]:
        """Look into the broker."""
        assert isinstance(broker, MemoryBroker)
        return broker.dead_letters(queue)

    async def publish_raw(self, broker: Broker, topic: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Pull the broker's own lever."""
        assert isinstance(broker, MemoryBroker)
        assert broker.inject(topic, body, headers=headers) == 1
