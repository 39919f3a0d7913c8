"""RabbitMQ honours the broker port, with quorum and with classic queues."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

import aio_pika
import aiormq
import anyio
import anyio.to_thread
import pytest
from pamqp import commands

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Broker
from tests.conformance.broker import LIMIT, BrokerConformance, word
from tests.servers.rabbitmq_admin import AdministeredRabbitMQ

if TYPE_CHECKING:
    from tests.servers.brokers import RabbitMQServer
    from tests.servers.fixtures import OwnRabbitMQ
    from tests.servers.rabbitmq import PrivateRabbitMQ


@pytest.mark.usefixtures("nothing_left_behind")
class TestRabbitMQ(BrokerConformance):
    """The suite on a real RabbitMQ, a virtual host per test."""

    max_message_bytes = 2 * 1024 * 1024

    server: PrivateRabbitMQ | None = None
    """The node of the one test that restarts it; the others share one."""

    @pytest.fixture(params=["quorum", "classic"])
    def broker(self, request: pytest.FixtureRequest) -> RabbitMQBroker:
        """Return a broker with an exchange of the test's own."""
        queue_type: Literal["quorum", "classic"] = request.param
        if request.node.originalname == "test_messages_survive_a_restart_of_the_broker":
            own_rabbitmq: OwnRabbitMQ = request.getfixturevalue("own_rabbitmq")
            self.server = own_rabbitmq()
            self.url = self.server.amqp_url()
        else:
            self.url = request.getfixturevalue("amqp_url")
            self.shared: RabbitMQServer = request.getfixturevalue("rabbitmq")
            self.cut: Callable[[], Awaitable[None]] = request.getfixturevalue("cut_connections")
        self.exchange = word()
        return RabbitMQBroker(
            self.url, exchange=self.exchange, queue_type=queue_type, max_message_bytes=self.max_message_bytes
        )

    async def drop_connections(self, broker: Broker) -> None:
        """Kill them inside the server."""
        await self.cut()

    async def forbid(self, broker: Broker, topic: str) -> None:
        """Let the tests' user publish under all topics but this one."""
        await self._set_topic_right(f"^(?!{topic}$)")

    async def allow(self, broker: Broker, topic: str) -> None:
        """Let it publish under all topics again."""
        await self._set_topic_right(None)

    async def _set_topic_right(self, write: str | None) -> None:
        if not isinstance(self.shared, AdministeredRabbitMQ):
            pytest.skip("needs a broker of the run's own, to set rights inside it")
        parts = urlsplit(self.url)
        assert parts.username is not None
        where = (parts.username, unquote(parts.path[1:]), self.exchange)
        await anyio.to_thread.run_sync(self.shared.set_topic_right, *where, write)

    async def restart(self, broker: Broker) -> None:
        """Stop and start the node."""
        assert self.server is not None
        await anyio.to_thread.run_sync(self.server.restart)

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


class TestLentConnection(TestRabbitMQ):
    """The suite through one connection that the test has made with aio-pika, and keeps."""

    need_another_connection = (
        "test_a_lost_connection_ends_the_publisher",
        "test_a_lost_connection_ends_the_subscription",
        "test_a_lost_connection_is_noticed_without_sending",
        "test_messages_survive_a_restart_of_the_broker",
    )

    @pytest.fixture
    async def broker(
        self, request: pytest.FixtureRequest, amqp_url: str, rabbitmq: RabbitMQServer
    ) -> AsyncGenerator[RabbitMQBroker]:
        """Lend one connection to all publishers and consumers of the test."""
        if request.node.originalname in self.need_another_connection:
            pytest.skip("a connection that was lent is not opened again: see test_borrowed.py")
        self.url, self.shared, self.exchange = amqp_url, rabbitmq, word()
        connection = await aio_pika.connect(amqp_url)
        yield RabbitMQBroker(connection=connection, exchange=self.exchange, max_message_bytes=self.max_message_bytes)
        assert connection.transport is not None
        assert not connection.transport.connection.is_closed, "the connection was closed, and it is not ours"
        assert not connection.transport.connection.channels, "channels were left open on it"
        await connection.close()
