"""RabbitMQ honours the broker port, with quorum and with classic queues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import aiormq
import anyio
import pytest
from pamqp import commands

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Broker
from tests.conformance.broker import LIMIT, BrokerConformance, word

pytestmark = pytest.mark.servers


class TestRabbitMQ(BrokerConformance):
    """The suite on a real RabbitMQ, an exchange per test."""

    max_message_bytes = 2 * 1024 * 1024

    @pytest.fixture(params=["quorum", "classic"])
    def broker(self, request: pytest.FixtureRequest, amqp_url: str) -> RabbitMQBroker:
        """Return a broker with an exchange of the test's own."""
        queue_type: Literal["quorum", "classic"] = request.param
        self.exchange = word()
        self.url = amqp_url
        return RabbitMQBroker(
            amqp_url, exchange=self.exchange, queue_type=queue_type, max_message_bytes=self.max_message_bytes
        )

    async def dead_letters(self, broker: Broker, queue: str, count: int) -> list[bytes]:
        """Get them from the dead-letter queue, which is filled in the background."""
        bodies: list[bytes] = []
        async with aiormq.Connection(self.url) as connection:
            channel = await connection.channel()
            with anyio.fail_after(LIMIT):
                while len(bodies) < count:
                    message = await channel.basic_get(f"{queue}.dead", no_ack=True)
                    if isinstance(message.delivery, commands.Basic.GetOk):
                        bodies.append(message.body)
        return bodies

    async def publish_raw(self, broker: Broker, topic: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Publish with the driver alone."""
        async with aiormq.Connection(self.url) as connection:
            channel = await connection.channel()
            properties = commands.Basic.Properties(headers=dict(headers))
            await channel.basic_publish(body, exchange=self.exchange, routing_key=topic, properties=properties)
