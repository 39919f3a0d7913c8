"""A connection of our own: opened, watched, and closed for good. Reconnecting is the business of whoever uses it.

aio-pika's plain `Connection` does the handshake, authentication, heartbeats and RPCs, through aiormq; `FrameTap` sees
the frames first.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import aiormq
import anyio
from aio_pika.abc import TimeoutType, UnderlayConnection
from yarl import URL

from sagapost.adapters.rabbitmq.borrowed import borrow
from sagapost.adapters.rabbitmq.errors import connect_error
from sagapost.adapters.rabbitmq.link import CLOSE_TIMEOUT, DRIVER_ERRORS, BrokerLink, number_of, quietly
from sagapost.adapters.rabbitmq.settings import BrokerEndpoint
from sagapost.adapters.rabbitmq.tls import alert_after_handshake, client_context
from sagapost.adapters.rabbitmq.transport import ChannelListener, CloseReason, FrameTap, TappingTransportFactory
from sagapost.core.errors import BrokerError

__all__ = ["open_link"]


class _Driver(UnderlayConnection):
    """aio-pika's way to aiormq, to the virtual host that is named."""

    @classmethod
    async def make_connection(
        cls, url: URL, timeout: TimeoutType = None, **kwargs: Any
    ) -> aiormq.abc.AbstractConnection:
        """Connect; `vhost` is the virtual host's own name."""
        vhost: str = kwargs.pop("vhost")
        connection = aiormq.Connection(url, **kwargs)
        # Left alone it takes "a%2Fb" for "a/b": it unescapes once more than it was escaped.
        connection.vhost = vhost
        await asyncio.wait_for(connection.connect(), timeout)
        return connection


class _Connection(aio_pika.Connection):
    """aio-pika's connection with a tap in front of its socket."""

    def __init__(self, settings: BrokerEndpoint, purpose: str, context: ssl.SSLContext | None) -> None:
        super().__init__(
            URL(settings.driver_url()),
            ssl_context=context,
            client_properties={"connection_name": f"{settings.name} {purpose}", "product": "sagapost"},
        )
        self.factory = TappingTransportFactory()
        self._vhost = settings.vhost

    async def connect(self, timeout: TimeoutType = None) -> None:
        """Connect through the tap."""
        self.transport = await _Driver.connect(
            self.url,
            self._on_connection_close,
            timeout=timeout,
            vhost=self._vhost,
            transport_factory=self.factory,
            **self.kwargs,
        )
        await self._on_connected()


class _OwnLink(BrokerLink):
    """A connection that was opened for one purpose and is closed with it."""

    def __init__(self, connection: _Connection, settings: BrokerEndpoint) -> None:
        transport, tap = connection.transport, connection.factory.tap
        assert transport is not None and tap is not None  # noqa: S101, PT018 - it came about, so both are there
        super().__init__(connection, transport.connection, settings)
        self._tap: FrameTap = tap
        tap.on_blocked = self._on_blocked
        tap.on_lost = self._note_lost
        tap.watch(settings.heartbeat_seconds)

    @property
    def lost(self) -> CloseReason | None:
        """Why the connection is gone; None while it is there."""
        return self._tap.lost

    def _on_blocked(self, blocked: bool) -> None:
        self._note_blocked((self._tap.blocked_by or "no reason given") if blocked else None)

    def write(self, data: bytes) -> None:
        """Append whole frames to the socket's buffer."""
        assert self._tap.transport is not None  # noqa: S101 - set when the connection was made; for the type checker
        try:
            self._tap.transport.write(data)
        except RuntimeError:
            # The driver has said goodbye, as after a missed heartbeat, and the loop has not yet told the tap.
            self.drop("it was being closed")

    @property
    def write_paused(self) -> bool:
        """Whether so much waits to be written that a writer should wait for `drain`."""
        return self._tap.writing_paused

    async def drain(self, timeout: float) -> bool:
        """Wait until the peer has taken enough of what was written; False: not within `timeout` seconds."""
        deadline = self.clock() + timeout
        while self._tap.writing_paused:
            left = deadline - self.clock()
            if left <= 0:
                return False
            # After `left` seconds the clock is looked at again: it stands still while the broker blocks.
            await self._tap.writable.wait(left)
        return True

    def drop(self, why: str) -> None:
        """End the connection at once."""
        self._tap.drop(CloseReason(why))

    def listen(self, channel: aio_pika.Channel, listener: ChannelListener) -> None:
        """Hand the frames of a channel to `listener`."""
        self._tap.listen(number_of(channel), listener)

    def unlisten(self, channel: aio_pika.Channel) -> None:
        """Hand the frames of a channel to aio-pika again."""
        self._tap.unlisten(number_of(channel))

    def hold_reading(self, hold: bool) -> None:
        """Stop or go on reading the socket."""
        self._tap.hold_reading(hold)

    async def aclose(self) -> None:
        """Say goodbye to the broker if it listens, and be gone within the time limit in any case."""
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(CLOSE_TIMEOUT):
                await quietly(self._connection.close())
            self._tap.drop(CloseReason("it was closed"))
            with anyio.move_on_after(1):
                # Past the abort the driver's own tasks end by themselves; wait for it so that none outlives its owner.
                await quietly(self._driver.close())
                await quietly(self._connection.close())


async def _why_not(
    connection: _Connection, context: ssl.SSLContext | None, error: Exception, address: str
) -> BrokerError:
    """Return the error for a connection that did not come about."""
    tap, url = connection.factory.tap, connection.url
    reason = tap.close_reason if tap is not None else None
    cause = error
    if tap is not None and isinstance(tap.error, ssl.SSLError):
        cause = tap.error
    elif context is not None and tap is not None and not tap.started:
        assert url.host is not None  # noqa: S101 - connected to; for the type checker
        cause = await alert_after_handshake(url.host, url.port or 5671, context) or error
    return connect_error(address, cause, reason)


@asynccontextmanager
async def open_link(settings: BrokerEndpoint, *, purpose: str) -> AsyncGenerator[BrokerLink]:
    """Open a connection that shows up at the broker under the settings' name and `purpose`, or use the one lent.

    :raises BrokerUnavailableError: if the broker cannot be reached within the connect timeout, or the connection that
        was lent is not open.
    :raises BrokerRefusedError: if it was reached and refused.
    :raises ConfigurationError: if a TLS file cannot be used, or the connection belongs to another event loop.
    """
    if settings.connection is not None:
        link: BrokerLink = borrow(settings.connection, settings)
    else:
        link = await _open(settings, purpose)
    try:
        yield link
    finally:
        await link.aclose()


async def _open(settings: BrokerEndpoint, purpose: str) -> BrokerLink:
    context = await client_context(settings.tls) if settings.tls is not None else None
    connection = _Connection(settings, purpose, context)
    failure: Exception | None = None
    try:
        with anyio.fail_after(settings.connect_timeout.total_seconds()):
            await connection.connect()
        return _OwnLink(connection, settings)
    except DRIVER_ERRORS as error:
        failure = error
    finally:
        if connection.transport is None:
            with anyio.CancelScope(shield=True):
                await connection.close()
    raise await _why_not(connection, context, failure, settings.address) from failure
