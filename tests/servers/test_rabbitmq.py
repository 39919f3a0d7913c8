"""A private RabbitMQ does what tests of the library need of it: die, come back, stand still, raise an alarm."""

from __future__ import annotations

from collections.abc import Generator

import aiormq
import aiormq.exceptions
import anyio
import anyio.to_thread
import pytest
from aiormq.abc import AbstractConnection

from tests.servers.brokers import RabbitMQServer, answers
from tests.servers.errors import ServerFailedError
from tests.servers.fixtures import OwnRabbitMQ, present
from tests.servers.rabbitmq import PrivateRabbitMQ
from tests.servers.servers import Servers
from tests.servers.waiting import poll

_SECONDS = 60
_PERSISTENT = aiormq.spec.Basic.Properties(delivery_mode=2)


@pytest.fixture(scope="module")
def node(servers: Servers) -> Generator[PrivateRabbitMQ, None, None]:
    """One node for the tests of this module, each of which leaves it running."""
    node = present(servers.own_rabbitmq(config=["heartbeat = 7"]))
    yield node
    node.discard()


async def _publish(connection: AbstractConnection, queue: str, body: bytes) -> None:
    channel = await connection.channel(publisher_confirms=True)
    await channel.queue_declare(queue, durable=True)
    with anyio.fail_after(_SECONDS):
        await channel.basic_publish(body, routing_key=queue, properties=_PERSISTENT)


async def _get(url: str, queue: str) -> bytes:
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        message = await channel.basic_get(queue, no_ack=True, timeout=_SECONDS)
        return message.body
    finally:
        await connection.close()


@pytest.mark.parametrize("crash", [False, True])
async def test_persistent_message_survives(node: PrivateRabbitMQ, *, crash: bool) -> None:
    """A confirmed persistent message is there after a restart and after a SIGKILL, under the same address."""
    url = node.amqp_url()
    connection = await aiormq.connect(url)
    lost = connection.closing
    await _publish(connection, "survivor", b"still here")
    if crash:
        node.kill()
        assert not node.running
        assert not answers(url)
        await anyio.to_thread.run_sync(node.start)
    else:
        await anyio.to_thread.run_sync(node.restart)
    with anyio.fail_after(_SECONDS), pytest.raises(aiormq.exceptions.AMQPError):
        await lost
    assert node.amqp_url() == url
    assert await _get(url, "survivor") == b"still here"


async def test_memory_alarm_blocks_publishers(node: PrivateRabbitMQ) -> None:
    """While the alarm is raised no publish is confirmed; when it is cleared, those that waited are."""
    connection = await aiormq.connect(node.amqp_url())
    try:
        node.set_memory_alarm(on=True)
        async with anyio.create_task_group() as tasks:
            confirmed = anyio.Event()

            async def publish() -> None:
                await _publish(connection, "blocked", b"waiting")
                confirmed.set()

            tasks.start_soon(publish)
            with anyio.move_on_after(0.3) as patience:
                await confirmed.wait()
            assert patience.cancelled_caught
            node.set_memory_alarm(on=False)
    finally:
        await connection.close()
    assert await _get(node.amqp_url(), "blocked") == b"waiting"


async def test_paused_node_keeps_connections(node: PrivateRabbitMQ) -> None:
    """While paused it takes a question and does not answer; after `resume` the same connection goes on."""
    connection = await aiormq.connect(node.amqp_url())
    try:
        node.pause()
        async with anyio.create_task_group() as tasks:
            answered = anyio.Event()

            async def ask() -> None:
                await connection.channel()
                answered.set()

            tasks.start_soon(ask)
            with anyio.move_on_after(0.2) as patience:
                await answered.wait()
            assert patience.cancelled_caught
            node.resume()
    finally:
        await connection.close()


def test_config_of_the_test_is_in_force(node: PrivateRabbitMQ) -> None:
    """A line of rabbitmq.conf from the test reaches the node."""
    assert node.evaluate("application:get_env(rabbit, heartbeat)") == "{ok, 7}"


def test_virtual_hosts_are_apart(node: PrivateRabbitMQ) -> None:
    """A virtual host is made, entered and deleted, and then nobody gets in any more; its name may be anything."""
    with node.fresh_vhost() as name:
        assert answers(node.amqp_url(name))
        assert name in node.rabbitmqctl("list_vhosts", "--quiet").splitlines()
    assert poll(lambda: None if answers(node.amqp_url(name)) else True, seconds=_SECONDS)
    strange = 'a"; "b>>/%2F'
    node.create_vhost(strange)
    assert strange in node.rabbitmqctl("list_vhosts", "--quiet").splitlines()
    node.delete_vhost(strange)


def test_node_can_be_asked_in_erlang(node: PrivateRabbitMQ) -> None:
    """Any Erlang can be evaluated inside the node, and what fails there is an error here."""
    assert node.evaluate("1 + 2") == "3"
    with pytest.raises(ServerFailedError, match="badarith"):
        node.evaluate("1 / 0")
    with pytest.raises(ServerFailedError, match="no_such_word"):
        node.rabbitmqctl("no_such_word")


def test_failure_to_start_shows_the_log(own_rabbitmq: OwnRabbitMQ) -> None:
    """A node that does not start says why in the error, instead of a timeout later."""
    with pytest.raises(ServerFailedError, match="no_such_setting"):
        own_rabbitmq(config=["no_such_setting = 1"])


async def test_url_fixture_is_an_empty_virtual_host(amqp_url: str, rabbitmq: RabbitMQServer) -> None:
    """Nothing of any other test is in it: the queue of this name does not exist."""
    if not rabbitmq.controllable:
        pytest.skip("somebody else's broker has the virtual hosts that it has")
    connection = await aiormq.connect(amqp_url)
    try:
        channel = await connection.channel()
        with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
            await channel.queue_declare("survivor", passive=True)
    finally:
        await connection.close()
