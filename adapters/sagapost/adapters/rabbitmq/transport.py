"""The socket under an aiormq connection, with a tap for the frames that come by the thousand.

aiormq reads every frame through a stream reader, a generic decoder, a queue, and a task per channel: right for the
handshake, RPCs and closing, and some 60 us a frame. The tap sits in front of it, cuts the byte stream into frames and
hands those of *tapped* channels (confirms, returns, deliveries) to a listener at once, inside the read callback;
everything else goes on to aiormq untouched. It hooks in through aiormq's public `TransportFactory`, so nothing of
aiormq is patched.

The tap also sees what the rest needs to know and aiormq keeps to itself: why the broker closed (by code), whether it
blocks publishers, and how long the peer has been silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any, Protocol, cast

from aiormq.connection import TransportFactory
from yarl import URL

from sagapost.adapters.rabbitmq.contents import read_short
from sagapost.core.life import Signal

__all__ = ["ChannelListener", "CloseReason", "FrameTap", "TappingTransportFactory"]

METHOD_FRAME, HEADER_FRAME, BODY_FRAME = 1, 2, 3

_FRAME = Struct(">BHI").unpack_from
_METHOD = Struct(">HH").unpack_from
_U16 = Struct(">H").unpack_from
_CE = 0xCE
_HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_PROTOCOL_HEADER = 0x41  # "A" of "AMQP": the broker's answer to a protocol version it does not speak

# (class << 16 | method)
_CONNECTION_CLOSE = 10 << 16 | 50
_CONNECTION_BLOCKED = 10 << 16 | 60
_CONNECTION_UNBLOCKED = 10 << 16 | 61
_CHANNEL_CLOSE = 20 << 16 | 40

_WRITE_BUFFER = 256 * 1024
"""Bytes that may wait in the process before a writer has to: some hundred messages."""

_SILENT_TICKS = 4
"""Half-heartbeats without a byte after which the peer counts as gone: two missed heartbeats, as AMQP asks."""


@dataclass(frozen=True, slots=True)
class CloseReason:
    """Why a channel or connection ended."""

    text: str
    """A sentence's end, for people."""
    code: int | None = None
    """The broker's reply code; None where the transport broke without one."""
    method: tuple[int, int] = (0, 0)
    """Class and method the broker blames, for example (60, 40) for basic.publish."""
    said: str = ""
    """The broker's own words, with its code; empty where there are none."""


class ChannelListener(Protocol):
    """Takes the frames of one channel."""

    def on_frame(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Take the frame whose payload is ``data[start:stop]``; False passes it on to aiormq."""
        ...

    def on_closed(self, reason: CloseReason) -> None:
        """The channel is gone. Called once."""
        ...


class FrameTap(asyncio.StreamReaderProtocol):
    """Cuts the incoming bytes into frames and sorts them."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._event_loop = loop
        self._listeners: dict[int, ChannelListener] = {}
        self._parts: list[bytes] = []
        self._size = 0
        self._wanted = 0
        self._raw = False
        self._started = False
        self._heard = False
        self._silence = 0
        self._watchdog: asyncio.TimerHandle | None = None
        self._holds_reading = False
        self.transport: asyncio.Transport | None = None
        self.error: Exception | None = None
        """With what the transport broke."""
        self.lost: CloseReason | None = None
        self.close_reason: CloseReason | None = None
        """What connection.close said, once it came."""
        self.blocked_by: str | None = None
        """The resource alarm because of which the broker takes in nothing more; None: it does."""
        self.on_blocked: Callable[[bool], None] | None = None
        self.on_lost: Callable[[CloseReason], None] | None = None
        """Told of the connection's end, also by whoever has no channel at that moment."""
        self.writing_paused = False
        """Whether much waits to be written."""
        self.writable = Signal()
        """Set once the socket has room again, or is gone."""

    @property
    def started(self) -> bool:
        """Whether the peer said anything in AMQP."""
        return self._started

    # --- what the link asks of it ---

    def listen(self, channel: int, listener: ChannelListener) -> None:
        """Hand the frames of `channel` to `listener` from now on."""
        self._listeners[channel] = listener

    def unlisten(self, channel: int) -> None:
        """Hand the frames of `channel` to aiormq again."""
        self._listeners.pop(channel, None)

    def watch(self, heartbeat: float) -> None:
        """Drop the connection once the peer has been silent for two heartbeats (2 to 2.5 times `heartbeat` s)."""
        self._watchdog = self._event_loop.call_later(heartbeat / 2, self._tick, heartbeat)

    def drop(self, reason: CloseReason) -> None:
        """End the connection at once, without a goodbye."""
        if self.close_reason is None:
            self.close_reason = reason
        if self.transport is not None:
            self.transport.abort()

    def hold_reading(self, hold: bool) -> None:
        """Stop or go on reading the socket: bounds what is taken in ahead of a slow consumer."""
        if hold is self._holds_reading or self.transport is None or self.transport.is_closing():
            return
        self._holds_reading = hold
        if hold:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    # --- called by the event loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for writing."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        """Take note that much waits to be written."""
        self.writing_paused = True
        super().pause_writing()

    def resume_writing(self) -> None:
        """Wake who waits for room."""
        self._wake_writers()
        super().resume_writing()

    def _wake_writers(self) -> None:
        self.writing_paused = False
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every listener, then aiormq."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        self.error = exc
        if self.close_reason is not None:
            reason = self.close_reason
        else:
            why = f" ({type(exc).__name__})" if exc is not None else ""
            reason = CloseReason(f"the connection to the broker was lost{why}")
        self.lost = reason
        self._wake_writers()
        listeners, self._listeners = self._listeners, {}
        for listener in listeners.values():
            listener.on_closed(reason)
        if self.on_lost is not None:
            self.on_lost(reason)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in bytes, in whatever pieces they come."""
        self._heard = True
        if self._raw:
            super().data_received(data)
            return
        if self._parts:
            self._parts.append(data)
            self._size += len(data)
            if self._size < self._wanted:
                return
            data = b"".join(self._parts)
            self._parts.clear()
        if not self._started:
            self._started = True
            if data[0] == _PROTOCOL_HEADER:
                self._pass_all(data, 0)
                return
        self._cut(data)

    def _cut(self, data: bytes) -> None:
        end = len(data)
        at = passed = 0
        listeners = self._listeners
        while end - at >= 8:
            kind, channel, size = _FRAME(data, at)
            stop = at + 8 + size
            if stop > end:
                self._wanted = stop - at
                break
            if data[stop - 1] != _CE:
                # Not a frame any more: let aiormq see it and close the connection.
                self._pass_all(data, passed)
                return
            if channel == 0:
                if kind == METHOD_FRAME:
                    self._look_at_connection(data, at + 7)
            elif (listener := listeners.get(channel)) is not None:
                if kind == METHOD_FRAME and data[at + 8] == 20:
                    self._look_at_channel(channel, listener, data, at + 7)
                elif listener.on_frame(kind, data, at + 7, stop - 1):
                    if passed < at:
                        super().data_received(data[passed:at])
                    passed = stop
            at = stop
        else:
            self._wanted = 8
        if passed < at:
            super().data_received(data[passed:at])
        if at < end:
            rest = data[at:]
            self._parts.append(rest)
            self._size = len(rest)

    def _pass_all(self, data: bytes, start: int) -> None:
        self._raw = True
        super().data_received(data[start:])

    def _look_at_connection(self, data: bytes, at: int) -> None:
        class_id, method_id = _METHOD(data, at)
        method = class_id << 16 | method_id
        if method == _CONNECTION_CLOSE:
            self.close_reason = _read_close(data, at + 4, "connection")
        elif method == _CONNECTION_BLOCKED:
            self.blocked_by, _ = read_short(data, at + 4)
            if self.on_blocked is not None:
                self.on_blocked(True)
        elif method == _CONNECTION_UNBLOCKED:
            self.blocked_by = None
            if self.on_blocked is not None:
                self.on_blocked(False)

    def _look_at_channel(self, channel: int, listener: ChannelListener, data: bytes, at: int) -> None:
        class_id, method_id = _METHOD(data, at)
        if class_id << 16 | method_id == _CHANNEL_CLOSE:
            # aiormq gets the frame as well, and answers it.
            self._listeners.pop(channel, None)
            listener.on_closed(_read_close(data, at + 4, "channel"))

    def _tick(self, heartbeat: float) -> None:
        if self.lost is not None:
            return
        # Counted in ticks, not in seconds: after a long block of the event loop the socket is read before timers
        # run, so a busy process does not take its own pause for the peer's silence.
        self._silence = 0 if self._heard or self._holds_reading else self._silence + 1
        if self._silence >= _SILENT_TICKS:
            self.drop(CloseReason(f"the broker has been silent for {2 * heartbeat:g} s (two heartbeats)"))
            return
        if self._silence == 0:
            # aiormq judges by the frames that reach *it*; what the tap took counts as a sign of life.
            super().data_received(_HEARTBEAT)
        self._heard = False
        self._watchdog = self._event_loop.call_later(heartbeat / 2, self._tick, heartbeat)


class TappingTransportFactory(TransportFactory):
    """Opens the socket for one aiormq connection, with a `FrameTap` in front of its stream reader."""

    def __init__(self) -> None:
        self.tap: FrameTap | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect; TLS where the URL says amqps."""
        context = await kwargs["ssl_context_provider"].get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        tap = self.tap = FrameTap(reader, loop)
        assert url.host is not None and url.port is not None  # noqa: S101, PT018 - the settings checked the URL
        transport, _ = await loop.create_connection(lambda: tap, url.host, url.port, ssl=context)
        return reader, asyncio.StreamWriter(transport, tap, reader, loop)


def _read_close(data: bytes, at: int, what: str) -> CloseReason:
    (code,) = _U16(data, at)
    text, at = read_short(data, at + 2)
    class_id, method_id = _METHOD(data, at)
    said = f"{code} {text}"
    return CloseReason(f"the broker closed the {what}: {said}", code, (class_id, method_id), said)
