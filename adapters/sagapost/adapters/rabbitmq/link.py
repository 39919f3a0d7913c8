"""What publishers, consumers and the topology need of a connection, be it opened here or lent by the service.

Connections, channels, exchanges, queues and consumers are aio-pika's plain objects; the frames that come by the
thousand (publishes, confirms, deliveries, acks) are written and read beneath them. None of its Robust classes is
used: one state ("open until it is lost"), one owner, and a topology that nobody replays behind the operator's back.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

import aio_pika
import anyio
from aio_pika.abc import AbstractConnection
from aiormq.exceptions import AMQPError, ChannelInvalidStateError

from sagapost.adapters.rabbitmq.errors import closed_error
from sagapost.adapters.rabbitmq.transport import ChannelListener, CloseReason
from sagapost.core.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from aiormq.abc import AbstractConnection as AMQPConnection

    from sagapost.adapters.rabbitmq.settings import BrokerEndpoint

__all__ = ["CLOSE_TIMEOUT", "DRIVER_ERRORS", "BrokerLink", "number_of", "quietly"]

_log = logging.getLogger("sagapost.rabbitmq")
_T = TypeVar("_T")

CLOSE_TIMEOUT = 3.0
"""Seconds for the goodbye; a broker that is gone or blocks does not answer it."""

_CHANNEL_CLOSE = bytes((0, 0, 0, 11, 0, 20, 0, 40, 0, 200, 0, 0, 0, 0, 0, 0xCE))
"""A frame behind its type and channel: reply code 200, no text, no method that is to blame."""

# What the driver and the transport raise when a connection or an RPC fails; everything else is a bug and stays one.
DRIVER_ERRORS = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError, EOFError)


class BrokerLink(ABC):
    """An open connection: raw writing, a tap for reading, and RPCs through aio-pika."""

    def __init__(self, connection: AbstractConnection, driver: AMQPConnection, settings: BrokerEndpoint) -> None:
        self._connection = connection
        self._driver = driver
        self._settings = settings
        self._timeout = settings.connect_timeout.total_seconds()
        self._blocked_since: float | None = None
        self._blocked_total = 0.0
        self._loop = asyncio.get_running_loop()
        self._left: WeakSet[aio_pika.Channel] = WeakSet()
        self._block_listeners: list[Callable[[], None]] = []
        self._lost_listeners: list[Callable[[CloseReason], None]] = []

    # --- state ---

    @property
    def address(self) -> str:
        """Where it leads, without credentials."""
        return self._settings.address

    @property
    def frame_max(self) -> int:
        """Largest frame both sides agreed on, in bytes; 0: unlimited."""
        return self._driver.connection_tune.frame_max

    @property
    @abstractmethod
    def lost(self) -> CloseReason | None:
        """Why the connection is gone; None while it is there."""

    @property
    def blocked(self) -> bool:
        """Whether the broker has stopped taking in messages (a resource alarm)."""
        return self._blocked_since is not None

    def clock(self) -> float:
        """Return seconds during which the broker was ready to take messages.

        Time limits for the broker's answers run on this clock: under a resource alarm it reads nothing and answers
        nothing, and takes in later what was sent, so giving up and sending again would only double it.
        """
        now = self._loop.time()
        return (now if self._blocked_since is None else self._blocked_since) - self._blocked_total

    def _note_blocked(self, why: str | None) -> None:
        """Take note that the broker began to block publishers, and why, or ended to."""
        now = self._loop.time()
        if why is not None:
            self._blocked_since = self._blocked_since or now
            _log.warning("the broker at %s blocks publishers: %s", self.address, why)
        elif self._blocked_since is not None:
            self._blocked_total += now - self._blocked_since
            _log.warning("the broker at %s takes messages again after %.1f s", self.address, now - self._blocked_since)
            self._blocked_since = None
        for told in self._block_listeners:
            told()

    def on_blocked(self, told: Callable[[], None]) -> None:
        """Have `told` called whenever the broker begins or ends to block publishers."""
        self._block_listeners.append(told)

    def on_lost(self, told: Callable[[CloseReason], None]) -> None:
        """Have `told` called once the connection is gone."""
        self._lost_listeners.append(told)

    def _note_lost(self, reason: CloseReason) -> None:
        for told in self._lost_listeners:
            told(reason)

    # --- writing ---

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Append whole frames to what is to be written. Frames of one call stay together.

        On a connection that is being closed it does nothing: whoever waits for answers learns of its end.
        """

    @property
    @abstractmethod
    def write_paused(self) -> bool:
        """Whether so much waits to be written that a writer should wait for `drain`."""

    @abstractmethod
    async def drain(self, timeout: float) -> bool:
        """Wait until the peer has taken enough of what was written; False: not within `timeout` seconds.

        A lost connection counts as drained: whoever waits for answers learns of it elsewhere.
        """

    @abstractmethod
    def drop(self, why: str) -> None:
        """End it at once."""

    # --- reading ---

    @abstractmethod
    def listen(self, channel: aio_pika.Channel, listener: ChannelListener) -> None:
        """Hand the frames of a channel to `listener`."""

    @abstractmethod
    def unlisten(self, channel: aio_pika.Channel) -> None:
        """Hand the frames of a channel to aio-pika again."""

    @abstractmethod
    def hold_reading(self, hold: bool) -> None:
        """Stop or go on reading, where the connection is not shared."""

    # --- RPCs ---

    async def channel(self, *, confirms: bool = False) -> aio_pika.Channel:
        """Open a channel.

        :raises BrokerUnavailableError: if the connection is lost or the broker does not answer in time.
        """
        return await self.call(self._open_channel(confirms), "opening a channel")

    async def _open_channel(self, confirms: bool) -> aio_pika.Channel:
        # Made here and not by the connection: a robust one would make a channel that reopens itself.
        channel = aio_pika.Channel(self._connection, publisher_confirms=confirms)
        try:
            await channel.initialize()
        except RuntimeError as error:
            if not self._driver.is_closed:
                raise
            # The one call of the driver's that says so with a class of no meaning: lost since it was opened.
            raise ConnectionError("the connection is closed") from error
        return channel

    def leave(self, channel: aio_pika.Channel) -> None:
        """Ask the broker to close a channel, without waiting for its answer, which the driver takes.

        Said beneath the driver: its own call, when it is cancelled, asks twice, and over that the broker ends the
        connection.
        """
        if channel not in self._left and not channel.is_closed:
            self._left.add(channel)
            self.write(b"\x01" + number_of(channel).to_bytes(2, "big") + _CHANNEL_CLOSE)

    async def close_channel(self, channel: aio_pika.Channel) -> None:
        """Close a channel.

        :raises BrokerUnavailableError: if the connection is lost or the broker does not answer in time.
        """
        self.leave(channel)
        await self.call(channel.closed(), "closing a channel")

    async def call(self, rpc: Awaitable[_T], what: str) -> _T:
        """Await an RPC within the time limit; `what` it is, for the error.

        :raises BrokerUnavailableError: if it fails, the connection is lost, or the broker does not answer in time.
        """
        try:
            return await self.rpc(rpc)
        except DRIVER_ERRORS as error:
            if self.lost is not None:
                raise closed_error(self.address, self.lost, what) from error
            limit = f" within {self._timeout:g} s" if isinstance(error, TimeoutError) else ""
            raise BrokerUnavailableError(
                f"The broker at {self.address} did not complete {what}{limit} ({type(error).__name__}). "
                "Open the connection again."
            ) from error

    async def rpc(self, rpc: Awaitable[_T]) -> _T:
        """Await an RPC within the time limit.

        :raises: `DRIVER_ERRORS`, for a caller that knows better what they mean here.
        """
        try:
            with anyio.fail_after(self._timeout):
                return await rpc
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The driver ends what waits on a closed connection by cancelling it: not our caller's cancellation.
            raise ConnectionError("the connection was closed during the call") from None

    @abstractmethod
    async def aclose(self) -> None:
        """Give up what was opened here, within a time limit."""


def number_of(channel: aio_pika.Channel) -> int:
    """Return the number of an open channel."""
    assert channel.number is not None  # noqa: S101 - it was initialised; for the type checker
    return channel.number


async def quietly(closing: Awaitable[object]) -> None:
    """Await a goodbye that may fail: its receiver may be gone."""
    try:
        await closing
    except DRIVER_ERRORS:
        _log.debug("a goodbye to the broker failed", exc_info=True)
