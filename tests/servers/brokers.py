"""A RabbitMQ as tests see it: an address, and virtual hosts where it lets us make them."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlsplit, urlunsplit

import aiormq
import aiormq.exceptions

__all__ = ["GivenRabbitMQ", "RabbitMQServer", "answers"]

_CONNECT_SECONDS = 10.0


class RabbitMQServer(ABC):
    """A broker. All methods block; from async code call them through `anyio.to_thread`."""

    @property
    @abstractmethod
    def controllable(self) -> bool:
        """Whether it is ours to stop, kill, pause and restart (then it is a `PrivateRabbitMQ`)."""

    @abstractmethod
    def amqp_url(self, vhost: str | None = None) -> str:
        """`amqp://...` of one virtual host; without a name the default one."""

    @abstractmethod
    def fresh_vhost(self) -> contextlib.AbstractContextManager[str | None]:
        """The name of a new virtual host, deleted with all its queues on the way out.

        None, meaning the default one, where the broker is not ours: so give queues and exchanges unique names even
        in a fresh virtual host.
        """


class GivenRabbitMQ(RabbitMQServer):
    """A broker that somebody else runs."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)

    @property
    def controllable(self) -> bool:
        """Never: this run did not start it."""
        return False

    def amqp_url(self, vhost: str | None = None) -> str:
        """The given address, with another virtual host when one is named."""
        parts = self._parts if vhost is None else self._parts._replace(path=f"/{quote(vhost, safe='')}")
        return urlunsplit(parts)

    def fresh_vhost(self) -> contextlib.AbstractContextManager[str | None]:
        """The one of the given address: AMQP itself cannot make another."""
        return contextlib.nullcontext()


def answers(url: str) -> bool:
    """Whether the broker lets us into this virtual host; False while it starts, when it is down, or refuses."""

    async def work() -> bool:
        async with asyncio.timeout(_CONNECT_SECONDS):
            connection = await aiormq.connect(url)
            await connection.close()
        return True

    # In a thread of its own, since the caller's may be running an event loop already.
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            return thread.submit(asyncio.run, work()).result()
        except (OSError, TimeoutError, aiormq.exceptions.AMQPError):
            return False
