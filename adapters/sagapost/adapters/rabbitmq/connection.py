"""One AMQP connection: opened, watched, and closed for good. Reconnecting is the business of whoever uses it.

aiormq does the handshake, TLS, authentication, heartbeats and RPCs; `FrameTap` sees the frames first. None of
aio-pika's Robust classes: one state ("open until it is lost"), one owner, and a topology that nobody replays behind
the operator's back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import aiormq
import anyio
from aiormq.abc import AbstractChannel
from aiormq.exceptions import AMQPError, ChannelInvalidStateError

from sagapost.adapters.rabbitmq.errors import closed_error, connect_error
from sagapost.adapters.rabbitmq.tls import alert_after_handshake, client_context
from sagapost.adapters.rabbitmq.transport import ChannelListener, CloseReason, FrameTap, TappingTransportFactory
from sagapost.core.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from sagapost.adapters.rabbitmq.settings import ConnectionSettings

__all__ = ["Link", "open_link"]

_log = logging.getLogger("sagapost.rabbitmq")
_T = TypeVar("_T")

_CLOSE_TIMEOUT = 3.0
"""Seconds for the goodbye; a broker that is gone or blocks does not answer it."""

# What aiormq and the transport raise when a connection or an RPC fails; everything else is a bug and stays one.
DRIVER_ERRORS = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError, EOFError)


class Link:
    """An open connection: raw writing, a tap for reading, and RPCs through aiormq."""

    def __init__(self, connection: aiormq.Connection, tap: FrameTap, settings: ConnectionSettings) -> None:
        self._connection = connection
        self._tap = tap
        self._settings = settings
        self._timeout = settings.connect_timeout.total_seconds()
        self._blocked_since: float | None = None
        self._blocked_total = 0.0
        self._loop = asyncio.get_running_loop()
        self._block_listeners: list[Callable[[], None]] = []
        tap.on_blocked = self._on_blocked

    @property
    def address(self) -> str:
        """Where it leads, without credentials."""
        return self._settings.address

    @property
    def frame_max(self) -> int:
        """Largest frame both sides agreed on, in bytes; 0: unlimited."""
        return self._connection.connection_tune.frame_max

    @property
    def lost(self) -> CloseReason | None:
        """Why the connection is gone; None while it is there."""
        return self._tap.lost

    @property
    def blocked(self) -> bool:
        """Whether the broker has stopped taking in messages (a resource alarm)."""
        return self._tap.blocked_by is not None

    def clock(self) -> float:
        """Return seconds during which the broker was ready to take messages.

        Time limits for the broker's answers run on this clock: under a resource alarm it reads nothing and answers
        nothing, and takes in later what was sent, so giving up and sending again would only double it.
        """
        now = self._loop.time()
        return (now if self._blocked_since is None else self._blocked_since) - self._blocked_total

    def _on_blocked(self, blocked: bool) -> None:
        now = self._loop.time()
        if blocked:
            self._blocked_since = self._blocked_since or now
            _log.warning("the broker at %s blocks publishers: %s", self.address, self._tap.blocked_by)
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
        self._tap.on_lost.append(told)

    # --- writing ---

    def write(self, data: bytes) -> None:
        """Append whole frames to the socket's buffer. Frames of one call stay together.

        On a connection that is being closed it does nothing: whoever waits for answers hears of its end from the tap.
        """
        assert self._tap.transport is not None  # noqa: S101 - set when the connection was made; for the type checker
        try:
            self._tap.transport.write(data)
        except RuntimeError:
            # aiormq has said goodbye, as after a missed heartbeat, and the loop has not yet told the tap.
            self.drop("it was being closed")

    @property
    def write_paused(self) -> bool:
        """Whether so much waits to be written that a writer should wait for `drain`."""
        return self._tap.writable is not None

    async def drain(self, timeout: float) -> bool:
        """Wait until the peer has taken enough of what was written; False: not within `timeout` seconds.

        A lost connection counts as drained: whoever waits for answers hears of it from the tap.
        """
        deadline = self.clock() + timeout
        while (writable := self._tap.writable) is not None:
            left = deadline - self.clock()
            if left <= 0:
                return False
            # After `left` seconds the clock is looked at again: it stands still while the broker blocks.
            with anyio.move_on_after(left):
                await writable.wait()
        return True

    def drop(self, why: str) -> None:
        """End the connection at once."""
        self._tap.drop(CloseReason(why))

    # --- reading ---

    def listen(self, channel: AbstractChannel, listener: ChannelListener) -> None:
        """Hand the frames of a channel to `listener`."""
        self._tap.listen(channel.number, listener)

    def unlisten(self, channel: AbstractChannel) -> None:
        """Hand the frames of a channel to aiormq again."""
        self._tap.unlisten(channel.number)

    def hold_reading(self, hold: bool) -> None:
        """Stop or go on reading the socket."""
        self._tap.hold_reading(hold)

    # --- RPCs ---

    async def channel(self, *, confirms: bool = False) -> AbstractChannel:
        """Open a channel.

        :raises BrokerUnavailableError: if the connection is lost or the broker does not answer in time.
        """
        return await self.call(self._open_channel(confirms), "opening a channel")

    async def _open_channel(self, confirms: bool) -> AbstractChannel:
        try:
            return await self._connection.channel(publisher_confirms=confirms)
        except RuntimeError as error:
            if not self._connection.is_closed:
                raise
            # The one call of aiormq's that says so with a class of no meaning: lost since it was opened.
            raise ConnectionError("the connection is closed") from error

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
            # aiormq ends what waits on a closed connection by cancelling it: that is not our caller's cancellation.
            raise ConnectionError("the connection was closed during the call") from None

    async def aclose(self) -> None:
        """Say goodbye to the broker if it listens, and be gone within the time limit in any case."""
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(_CLOSE_TIMEOUT):
                await _quietly(self._connection.close())
            self._tap.drop(CloseReason("it was closed"))
            with anyio.move_on_after(1):
                # Past the abort aiormq's own tasks end by themselves; wait for it so that none outlives its owner.
                await _quietly(self._connection.close())


async def _quietly(closing: Awaitable[Any]) -> None:
    with contextlib.suppress(*DRIVER_ERRORS):
        await closing


async def _why_not(
    connection: aiormq.Connection, tap: FrameTap | None, context: ssl.SSLContext | None, error: Exception, address: str
) -> BrokerError:
    """Return the error for a connection that did not come about."""
    reason = tap.close_reason if tap is not None else None
    cause = error
    if tap is not None and isinstance(tap.error, ssl.SSLError):
        cause = tap.error
    elif context is not None and tap is not None and not tap.started:
        assert connection.url.host is not None and connection.url.port is not None  # noqa: S101, PT018 - connected to
        cause = await alert_after_handshake(connection.url.host, connection.url.port, context) or error
    return connect_error(address, cause, reason)


@asynccontextmanager
async def open_link(settings: ConnectionSettings, *, purpose: str) -> AsyncGenerator[Link]:
    """Open a connection that shows up at the broker under the settings' name and `purpose`.

    :raises BrokerUnavailableError: if the broker cannot be reached within the connect timeout.
    :raises BrokerRefusedError: if it was reached and refused.
    :raises ConfigurationError: if a TLS file cannot be used.
    """
    factory = TappingTransportFactory()
    context = await client_context(settings.tls) if settings.tls is not None else None
    connection = aiormq.Connection(
        settings.driver_url(),
        context=context,
        transport_factory=factory,
        client_properties={"connection_name": f"{settings.name} {purpose}", "product": "sagapost"},
    )
    # aiormq would take "a%2Fb" for "a/b": it escapes and unescapes once more than it was asked to.
    connection.vhost = settings.vhost
    failure: Exception | None = None
    try:
        with anyio.fail_after(settings.connect_timeout.total_seconds()):
            await connection.connect()
    except DRIVER_ERRORS as error:
        failure = error
    if failure is not None:
        raise await _why_not(connection, factory.tap, context, failure, settings.address) from failure
    assert factory.tap is not None  # noqa: S101 - a connection came about, so the factory was used
    factory.tap.watch(settings.heartbeat_seconds)
    link = Link(connection, factory.tap, settings)
    try:
        yield link
    finally:
        await link.aclose()
