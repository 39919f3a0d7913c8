"""What the tests of the RabbitMQ adapter share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio.to_thread
import pytest

from tests.adapters.rabbitmq.users import Users
from tests.conformance.broker import word
from tests.servers.brokers import RabbitMQServer
from tests.servers.rabbitmq import PrivateRabbitMQ
from tests.servers.rabbitmq_admin import AdministeredRabbitMQ


@pytest.fixture
async def nothing_left_behind() -> AsyncGenerator[None]:
    """Fail a test after which a task of the driver still runs: a connection was not closed for good."""
    yield
    left = [task for task in asyncio.all_tasks() if {"aiormq", "aio_pika"} & set(_file_of(task).split("/"))]
    assert not left, f"still running: {left}"


def _file_of(task: asyncio.Task[Any]) -> str:
    code = getattr(task.get_coro(), "cr_code", None)
    return code.co_filename if code is not None else ""


@pytest.fixture(autouse=True)
def quiet_driver(caplog: pytest.LogCaptureFixture) -> None:
    """The driver logs every lost connection with a traceback; the adapter reports it by raising."""
    caplog.set_level(logging.CRITICAL, logger="aiormq")
    caplog.set_level(logging.CRITICAL, logger="aio_pika")


@pytest.fixture
def cut_connections(rabbitmq: RabbitMQServer, amqp_url: str) -> Callable[[], Awaitable[None]]:
    """A function that ends every connection to the test's virtual host without a goodbye."""
    if not isinstance(rabbitmq, PrivateRabbitMQ):
        pytest.skip("needs a broker of the run's own, to kill connections inside it")
    vhost = unquote(urlsplit(amqp_url).path[1:])
    expression = (
        "[exit(P, kill) || P <- rabbit_networking:connections(), "
        f'catch (rabbit_reader:info(P, [vhost]) =:= [{{vhost, <<"{vhost}">>}}])]'
    )

    async def cut() -> None:
        await anyio.to_thread.run_sync(rabbitmq.evaluate, expression)

    return cut


@pytest.fixture
async def user(rabbitmq: RabbitMQServer, amqp_url: str) -> AsyncGenerator[Users]:
    """Users with fewer rights, each a new one, deleted after the test."""
    if not isinstance(rabbitmq, AdministeredRabbitMQ):
        pytest.skip("needs a broker of the run's own, to set rights inside it")
    parts, made = urlsplit(amqp_url), list[str]()

    async def make(*, write: str = ".*", read: str = ".*", configure: str = ".*") -> str:
        vhost, name = unquote(parts.path[1:]), word()
        made.append(name)
        await anyio.to_thread.run_sync(
            lambda: rabbitmq.create_user(name, vhost, configure=configure, write=write, read=read)
        )
        return parts._replace(netloc=f"{name}:{name}@{parts.netloc.rpartition('@')[2]}").geturl()

    yield make
    for name in made:
        await anyio.to_thread.run_sync(rabbitmq.delete_user, name)
