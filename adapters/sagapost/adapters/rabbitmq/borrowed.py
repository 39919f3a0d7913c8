"""A connection that the service already has and lends: its channels are ours, the connection is not.

There is no way to the socket of an open connection, so frames are taken one level higher: out of the queue through
which the driver hands each channel its frames, and into the queue from which it writes. That costs its decoding and
encoding of every frame, which a connection of our own saves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import aio_pika
import anyio
import pamqp.frame
from aio_pika.abc import AbstractConnection
from aiormq.abc import ChannelFrame
from pamqp import commands
from pamqp.header import ContentHeader

from sagapost.adapters.rabbitmq.link import CLOSE_TIMEOUT, BrokerLink, number_of
from sagapost.adapters.rabbitmq.transport import ChannelListener, CloseReason
from sagapost.core.errors import BrokerUnavailableError, ConfigurationError

if TYPE_CHECKING:
    from sagapost.adapters.rabbitmq.settings import BrokerEndpoint

__all__ = ["borrow"]

_LOOK = 0.25
"""Seconds between looks at whether the broker blocks the connection: the driver keeps that to itself."""
_FULL = 0.005
"""Seconds between attempts at the driver's queue when it is full."""


def borrow(connection: AbstractConnection, settings: BrokerEndpoint) -> BrokerLink:
    """Use an open connection.

    :raises BrokerUnavailableError: if it is not open (any more).
    :raises ConfigurationError: if it belongs to another event loop.
    """
    if getattr(connection, "loop", None) is not asyncio.get_running_loop():
        raise ConfigurationError(
            f"The connection to {settings.address} that was handed to RabbitMQBroker belongs to another event loop. "
            "Open it in the loop that uses it."
        )
    transport = connection.transport
    if transport is None or transport.connection.is_closed:
        raise BrokerUnavailableError(
            f"The connection to {settings.address} that was handed to RabbitMQBroker is not open, and sagapost "
            "does not open what it did not make. Connect it, or hand over a URL."
        )
    return _BorrowedLink(connection, transport.connection, settings)


class _BorrowedLink(BrokerLink):
    """The part of somebody else's connection that is ours: the channels that were opened through it."""

    def __init__(self, connection: AbstractConnection, driver: Any, settings: BrokerEndpoint) -> None:
        super().__init__(connection, driver, settings)
        self._lost: CloseReason | None = None
        self._taps: dict[int, _TappedFrames] = {}
        self._channels: list[aio_pika.Channel] = []
        self._backlog: deque[bytes] = deque()
        self._closing: asyncio.Future[Any] = driver.closing
        self._closing.add_done_callback(self._on_closing)
        self._timer = self._loop.call_later(0, self._look)

    @property
    def lost(self) -> CloseReason | None:
        """Why the connection is gone for us; None while it is there."""
        return self._lost

    def _on_closing(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        why = f" ({type(error).__name__})" if error is not None else ""
        self._end(CloseReason(f"the connection that was handed to RabbitMQBroker was closed{why}"))

    def _end(self, reason: CloseReason) -> None:
        if self._lost is not None:
            return
        self._lost = reason
        self._timer.cancel()
        self._closing.cancel()
        if self._driver.is_closed:
            self._backlog.clear()
        taps, self._taps = self._taps, {}
        for tap in taps.values():
            tap.close(reason)
        self._note_lost(reason)

    def _look(self) -> None:
        """Find out whether the broker blocks the connection: whether the driver's `ready` would wait."""
        ready = self._driver.ready()
        try:
            ready.send(None)
        except StopIteration:
            waits = False
        else:
            waits = True
            ready.close()
        if waits is not self.blocked:
            self._note_blocked("a resource alarm" if waits else None)
        self._timer = self._loop.call_later(_LOOK, self._look)

    # --- writing ---

    def write(self, data: bytes) -> None:
        """Append whole frames to what the driver is to write."""
        if self._lost is None:
            self._backlog.append(data)
            self._pass_on()

    def _pass_on(self) -> None:
        queue = self._driver.write_queue
        while self._backlog:
            try:
                queue.put_nowait(ChannelFrame(payload=self._backlog[0], should_close=False))
            except asyncio.QueueFull:
                self._loop.call_later(_FULL, self._pass_on)
                return
            self._backlog.popleft()

    @property
    def write_paused(self) -> bool:
        """Whether the driver's queue is full."""
        return bool(self._backlog)

    async def drain(self, timeout: float) -> bool:
        """Wait until the driver has taken all; False: not within `timeout` seconds."""
        deadline = self.clock() + timeout
        while self._backlog:
            if self.clock() >= deadline:
                return False
            await anyio.sleep(_FULL)
        return True

    def drop(self, why: str) -> None:
        """Give up our channels. The connection stays open: it is not ours to end."""
        self._leave_all()
        self._end(CloseReason(why))

    # --- reading ---

    def listen(self, channel: aio_pika.Channel, listener: ChannelListener) -> None:
        """Hand the frames of a channel to `listener`."""
        number = number_of(channel)
        if (former := self._taps.get(number)) is not None and former.channel is channel:
            former.listener = listener
            return
        driver_channel = cast("Any", self._driver.channels[number])
        tap = _TappedFrames(driver_channel.frames, channel, listener)
        driver_channel.frames = tap
        self._taps[number] = tap
        self._channels.append(channel)

    def unlisten(self, channel: aio_pika.Channel) -> None:
        """Hand the frames of a channel to aio-pika again."""
        tap = self._taps.pop(number_of(channel), None)
        if tap is not None:
            tap.listener = None

    def hold_reading(self, hold: bool) -> None:
        """Do nothing: others read from the same connection. The prefetch bounds what is received ahead."""

    async def aclose(self) -> None:
        """Close our channels, which gives back what is unsettled; the connection stays as it is."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_TIMEOUT):
            self._leave_all()
            for channel in self._channels:
                if not channel.is_closed:
                    await channel.closed()
        self._end(CloseReason("it was closed"))

    def _leave_all(self) -> None:
        for channel in self._channels:
            self.leave(channel)


class _TappedFrames:
    """Stands in for a channel's queue of frames: a listener sees each first, and keeps it or lets it through."""

    def __init__(self, queue: asyncio.Queue[Any], channel: aio_pika.Channel, listener: ChannelListener) -> None:
        self._queue = queue
        self.channel = channel
        self.listener: ChannelListener | None = listener

    async def put(self, item: tuple[int, Any]) -> None:
        """Take a frame of the driver's reader."""
        if not self._offer(item[1]):
            await self._queue.put(item)

    async def get(self) -> Any:
        """Hand out a frame that was let through."""
        return await self._queue.get()

    def task_done(self) -> None:
        """Pass on."""
        self._queue.task_done()

    def close(self, reason: CloseReason) -> None:
        """The channel is gone."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.on_closed(reason)

    def _offer(self, frame: Any) -> bool:
        if self.listener is None:
            return False
        if isinstance(frame, commands.Channel.Close):
            said = f"{frame.reply_code} {frame.reply_text}"
            blamed = (frame.class_id or 0, frame.method_id or 0)
            self.close(CloseReason(f"the broker closed the channel: {said}", frame.reply_code, blamed, said))
            return False
        if isinstance(frame, commands.Channel.CloseOk):
            return False
        data = _encoded(frame)
        return self.listener.on_frame(data[0], data, 7, len(data) - 1)


def _encoded(frame: Any) -> bytes:
    try:
        return pamqp.frame.marshal(frame, 0)
    except (TypeError, ValueError, OverflowError):
        # A header of another producer that the driver can read and not write. Raising would end its reader, and with
        # it the service's connection: so go without the headers, and let whoever reads the message miss them.
        if not isinstance(frame, ContentHeader):
            raise
        frame.properties.headers = None
        return pamqp.frame.marshal(frame, 0)
