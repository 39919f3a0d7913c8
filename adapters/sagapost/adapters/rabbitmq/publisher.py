"""The publishing side: a batch is one buffer and one write, its answers cost what the broker's frames cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from struct import Struct
from typing import NoReturn

import anyio.lowlevel
from aiormq.abc import AbstractChannel

from sagapost.adapters.rabbitmq.confirms import ConfirmLedger, PendingBatch
from sagapost.adapters.rabbitmq.connection import Link, open_link
from sagapost.adapters.rabbitmq.contents import ContentError, read_message_id, read_short
from sagapost.adapters.rabbitmq.errors import PRECONDITION_FAILED, closed_error
from sagapost.adapters.rabbitmq.frames import PublishEncoder, UnencodableError
from sagapost.adapters.rabbitmq.settings import ConnectionSettings, Limits, TopologySettings
from sagapost.adapters.rabbitmq.topology import declare_exchange, exchange_exists
from sagapost.adapters.rabbitmq.transport import BODY_FRAME, HEADER_FRAME, METHOD_FRAME, CloseReason
from sagapost.core.broker import Outgoing, Rejected

__all__ = ["RabbitMQPublisher", "open_publisher"]

_BASIC_ACK = bytes((0, 60, 0, 80))
_BASIC_NACK = bytes((0, 60, 0, 120))
_BASIC_RETURN = bytes((0, 60, 0, 50))
_ANSWER = Struct(">QB").unpack_from  # delivery tag, bits (the lowest is "multiple")
_U16 = Struct(">H").unpack_from
_U64 = Struct(">Q").unpack_from
_BASIC_PUBLISH = (60, 40)


class RabbitMQPublisher:
    """One channel with confirms on a connection of its own; see `sagapost.core.broker.Publisher`."""

    def __init__(
        self,
        link: Link,
        channel: AbstractChannel,
        *,
        exchange: str,
        limits: Limits,
        confirm_timeout: float,
    ) -> None:
        self._link = link
        self._exchange = exchange
        self._limits = limits
        self._confirm_timeout = confirm_timeout
        self._encoder = PublishEncoder(channel=channel.number, exchange=exchange, frame_max=link.frame_max)
        self._ledger = ConfirmLedger(exchange)
        self._destinations = {None, "", exchange}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._ended: CloseReason | None = None
        self._gone = asyncio.Event()
        self._returning: tuple[str, str, str] | None = None
        self._returned_body = 0
        link.listen(channel, self)

    # --- the port ---

    @property
    def blocked(self) -> bool:
        """Whether the broker has asked publishers to pause (a resource alarm)."""
        return self._link.blocked

    @property
    def max_message_bytes(self) -> int | None:
        """Largest body that is sent: what was configured, or less if the broker was seen to refuse it."""
        return self._limits.max_message_bytes

    @property
    def in_flight(self) -> int:
        """Messages sent and not yet answered."""
        return self._ledger.in_flight

    async def send(self, batch: Sequence[Outgoing]) -> PendingBatch:
        """Write a batch; return once the socket has room again.

        Cancelling it leaves the channel in order: nothing of the batch is written, or all of it.

        :raises BrokerUnavailableError: if the connection is down or the write did not finish in time.
        :raises BrokerRefusedError: if the broker closed the channel because the user lacks a permission.
        """
        await anyio.lowlevel.checkpoint()
        strange = {outgoing.destination for outgoing in batch} - self._destinations
        missing = await self._look_up(strange) if strange else frozenset[str | None]()
        self._require_open()
        frames, refused = self._encode(batch, missing)
        pending = self._ledger.open(batch, refused=refused, deadline=self._link.clock() + self._confirm_timeout)
        if frames:
            self._link.write(b"".join(frames))
            if self._timer is None:
                self._timer = self._loop.call_later(self._confirm_timeout, self._check_deadline)
            if self._link.write_paused and not await self._link.drain(self._confirm_timeout):
                self._end(f"it took in nothing for {self._confirm_timeout:g} s while messages waited to be written")
        self._require_open()
        return pending

    async def until_lost(self) -> NoReturn:
        """Wait until the publisher is closed, and raise.

        :raises BrokerUnavailableError: if the connection was lost or the publisher closed.
        :raises BrokerRefusedError: if the broker closed the channel because the user lacks a permission.
        """
        await self._gone.wait()
        assert self._ended is not None  # noqa: S101 - set before the event; for the type checker
        raise closed_error(self._link.address, self._ended, "publisher")

    def _encode(
        self, batch: Sequence[Outgoing], missing: frozenset[str | None]
    ) -> tuple[list[bytes], dict[int, Rejected]]:
        frames: list[bytes] = []
        refused: dict[int, Rejected] = {}
        encode, limit = self._encoder.encode, self._limits.max_message_bytes
        for place, outgoing in enumerate(batch):
            if len(outgoing.event.data) > limit:
                refused[place] = Rejected(
                    f"its {len(outgoing.event.data):,} bytes are over the broker's limit of {limit:,} per message"
                )
                continue
            if missing and outgoing.destination in missing:
                refused[place] = Rejected(f"the exchange {outgoing.destination!r} does not exist on the broker")
                continue
            try:
                encode(outgoing, frames)
            except UnencodableError as error:
                refused[place] = Rejected(f"AMQP cannot carry it: {error}")
        return frames, refused

    async def _look_up(self, destinations: set[str | None]) -> frozenset[str | None]:
        """Return which exchanges do not exist: publishing to one would close the channel under everybody else."""
        self._require_open()
        missing: set[str | None] = set()
        for name in destinations:
            if name is not None and not await exchange_exists(self._link, name):
                missing.add(name)
            else:
                self._destinations.add(name)
        return frozenset(missing)

    def _require_open(self) -> None:
        if self._ended is not None:
            raise closed_error(self._link.address, self._ended, "publisher")

    # --- time limits ---

    def _check_deadline(self) -> None:
        self._timer = None
        oldest = self._ledger.oldest
        if oldest is None or self._ended is not None:
            return
        left = oldest.deadline - self._link.clock()
        if left > 0:
            self._timer = self._loop.call_later(max(left, 0.01), self._check_deadline)
        else:
            # What the broker has of the later ones is unknown too: a confirm that never comes means that something
            # is wrong with the channel, and only a fresh one has a known beginning.
            self._end(f"the broker did not confirm a batch within {self._confirm_timeout:g} s")

    def _end(self, why: str) -> None:
        self._link.drop(why)
        self.on_closed(CloseReason(why))

    def close(self) -> None:
        """Stop taking answers: what has none is `Unknown`."""
        self.on_closed(CloseReason("the publisher was closed"))

    # --- called by the tap ---

    def on_closed(self, reason: CloseReason) -> None:
        """End the publisher; the first reason stands."""
        if self._ended is not None:
            return
        self._ended = reason
        self._gone.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if reason.code == PRECONDITION_FAILED and reason.method == _BASIC_PUBLISH:
            # A message over the broker's own limit. One of the unanswered is; so the largest of them certainly is.
            # Without this lesson the same message would close every channel to come.
            sizes = [len(outgoing.event.data) for outgoing in self._ledger.unanswered()]
            if sizes:
                self._limits.learn(max(sizes))
        self._ledger.abandon(reason.text)

    def on_frame(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Take confirms and returns; RPC replies go on to aiormq."""
        if kind == METHOD_FRAME:
            method = data[start : start + 4]
            if method == _BASIC_ACK:
                tag, bits = _ANSWER(data, start + 4)
                self._ledger.ack(tag, multiple=bits & 1 != 0)
                return True
            if method == _BASIC_NACK:
                tag, bits = _ANSWER(data, start + 4)
                self._ledger.nack(tag, multiple=bits & 1 != 0)
                return True
            if method == _BASIC_RETURN:
                (code,) = _U16(data, start + 4)
                text, at = read_short(data, start + 6)
                exchange, at = read_short(data, at)
                topic, _ = read_short(data, at)
                self._returning = (f"{code} {text}", exchange, topic)
                return True
            return False
        if self._returning is None:
            return False
        if kind == HEADER_FRAME:
            (self._returned_body,) = _U64(data, start + 4)
            self._take_return(self._returning, data[start + 12 : stop])
        elif kind == BODY_FRAME:
            self._returned_body -= stop - start
        if self._returned_body <= 0:
            self._returning = None
        return True

    def _take_return(self, returned: tuple[str, str, str], properties: bytes) -> None:
        reason, exchange, topic = returned
        try:
            message_id = read_message_id(properties)
        except ContentError:
            message_id = None
        if message_id is None or not self._ledger.returned(message_id, exchange, topic, reason):
            # Its ack comes next and would count as success. Nothing can be told apart any more: start over.
            self._end("the broker returned a message that could not be matched")


@asynccontextmanager
async def open_publisher(
    settings: ConnectionSettings, topology: TopologySettings, limits: Limits
) -> AsyncGenerator[RabbitMQPublisher]:
    """Open a publisher on a connection of its own; see `sagapost.core.broker.Broker.publisher`."""
    async with open_link(settings, purpose="publisher") as link:
        await declare_exchange(link, topology)
        publisher = RabbitMQPublisher(
            link,
            await link.channel(confirms=True),
            exchange=topology.exchange,
            limits=limits,
            confirm_timeout=settings.confirm_timeout.total_seconds(),
        )
        try:
            yield publisher
        finally:
            publisher.close()
