"""Would the broker take this message? Asked without publishing it.

A message that the broker refuses (no right on the exchange or the topic, no such exchange, too large) closes the
channel under all others, and the protocol does not say which message it was. In a transaction RabbitMQ checks a
publish like any other and keeps it back until the commit. So a message is tried by publishing it in a transaction
that is rolled back: no queue sees it, and what is closed over it is a channel that carries nothing else. Several are
tried in one round trip, each with a rollback behind it: the number of rollbacks that were answered says which one
closed the channel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import aio_pika
import anyio

from sagapost.adapters.rabbitmq.errors import NOT_IMPLEMENTED, closed_error
from sagapost.adapters.rabbitmq.frames import PublishEncoder, UnencodableError
from sagapost.adapters.rabbitmq.link import BrokerLink, number_of
from sagapost.adapters.rabbitmq.settings import Limits
from sagapost.adapters.rabbitmq.transport import METHOD_FRAME, CloseReason
from sagapost.core.broker import Outgoing
from sagapost.core.errors import BrokerUnavailableError
from sagapost.core.life import Signal

__all__ = ["Trial", "Verdict"]

_TX_SELECT_OK = bytes((0, 90, 0, 11))
_TX_ROLLBACK = bytes((0, 0, 0, 4, 0, 90, 0, 30, 0xCE))  # a frame behind its type and channel
_TX_ROLLBACK_OK = bytes((0, 90, 0, 31))
_TX = 90


class Verdict(NamedTuple):
    """What the broker said to messages that were tried in order."""

    taken: int
    """How many in front it would take."""
    refusal: CloseReason | None
    """Why it would not take the next one; None: all were taken, or it blocks publishers and was not waited for."""


class Trial:
    """Tries messages on a channel of its own, opened when it is first needed and again after each refusal.

    :param timeout: seconds for the answers to one call; the clock stands still while the broker blocks publishers.
    """

    def __init__(self, link: BrokerLink, *, exchange: str, limits: Limits, timeout: float) -> None:
        self._link = link
        self._exchange = exchange
        self._limits = limits
        self._timeout = timeout
        self._turn = anyio.Lock()
        self._channel: aio_pika.Channel | None = None
        self._encoder: PublishEncoder | None = None
        self._taken = 0
        self._closed: CloseReason | None = None
        self._wake = Signal()
        link.on_blocked(self._stir)

    @property
    def possible(self) -> bool:
        """Whether this broker knows transactions, as far as it was asked."""
        return self._limits.transactions

    async def ask(self, messages: Sequence[Outgoing], *, patient: bool) -> Verdict:
        """Try messages, in order, until one is refused.

        :param patient: wait for a broker that blocks publishers; otherwise the verdict ends with what came before.
        :raises BrokerUnavailableError: if the connection ends or the broker does not answer in time.
        :raises BrokerRefusedError: if it ends the connection for lack of a permission.
        """
        async with self._turn:
            try:
                if self._channel is None:
                    await self._open()
                return await self._ask(messages, patient)
            except BaseException:
                self._forget()
                raise

    async def _open(self) -> None:
        self._closed = None
        self._channel = channel = await self._link.channel()
        self._encoder = PublishEncoder(
            channel=number_of(channel), exchange=self._exchange, frame_max=self._link.frame_max
        )
        self._link.listen(channel, self)
        await self._link.call(channel.transaction().select(), "beginning a transaction")

    async def _ask(self, messages: Sequence[Outgoing], patient: bool) -> Verdict:
        assert self._channel is not None and self._encoder is not None  # noqa: S101, PT018 - opened by the caller
        frames: list[bytes] = []
        rollback = b"\x01" + number_of(self._channel).to_bytes(2, "big") + _TX_ROLLBACK
        for message in messages:
            # What cannot be encoded never reaches the broker, which has no objection: its rollback alone counts it.
            with contextlib.suppress(UnencodableError):
                self._encoder.encode(message, frames)
            frames.append(rollback)
        self._taken = 0
        self._link.write(b"".join(frames))
        deadline = self._link.clock() + self._timeout
        while self._taken < len(messages) and self._closed is None:
            if self._link.blocked and not patient:
                self._forget()
                return Verdict(self._taken, None)
            left = deadline - self._link.clock()
            if left <= 0:
                raise BrokerUnavailableError(
                    f"The broker at {self._link.address} did not confirm within {self._timeout:g} s that it would "
                    "take a message. Open the connection again."
                )
            await self._wake.wait(left)
        if self._closed is None:
            return Verdict(self._taken, None)
        self._channel = None
        if self._link.lost is not None:
            raise closed_error(self._link.address, self._closed, "publisher")
        return Verdict(self._taken, self._closed)

    def _forget(self) -> None:
        """Leave the channel with whatever it still has to answer; the next question gets another one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            self._link.unlisten(channel)
            self._link.leave(channel)

    def _stir(self) -> None:
        self._wake.set()

    # --- called by the tap ---

    def on_frame(self, kind: int, data: bytes, start: int, stop: int) -> bool:  # noqa: ARG002 - the listener's form
        """Count rollbacks; of all else only the answer to `tx.select` is for the driver."""
        if kind == METHOD_FRAME:
            method = data[start : start + 4]
            if method == _TX_ROLLBACK_OK:
                self._taken += 1
                self._wake.set()
            return method != _TX_SELECT_OK
        return True

    def on_closed(self, reason: CloseReason) -> None:
        """The channel is gone: over the message behind the last rollback, or with its connection."""
        if reason.code == NOT_IMPLEMENTED or reason.method[0] == _TX:
            self._limits.transactions = False
        self._closed = reason
        self._wake.set()
