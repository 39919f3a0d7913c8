"""A RabbitMQ as tests see it: an address, and virtual hosts where it lets us make them."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor

import aiormq
import aiormq.exceptions

__all__ = ["RabbitMQServer", "answers"]

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
        """The name of a new virtual host, deleted with all its queues after the test or after the run.

        None where the broker is not ours and lets us make none.
        """


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
