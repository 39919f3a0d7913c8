"""The consuming side: the read callback only puts deliveries aside; whoever iterates takes them, in its own task."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from struct import Struct

import aio_pika
import anyio
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from sagapost.adapters.rabbitmq.connection import open_link
from sagapost.adapters.rabbitmq.contents import read_short
from sagapost.adapters.rabbitmq.delivery import RabbitMQDelivery
from sagapost.adapters.rabbitmq.errors import closed_error
from sagapost.adapters.rabbitmq.link import DRIVER_ERRORS, BrokerLink, number_of
from sagapost.adapters.rabbitmq.settings import BrokerEndpoint, TopologySettings
from sagapost.adapters.rabbitmq.topology import declare_queue, keep_bound
from sagapost.adapters.rabbitmq.transport import BODY_FRAME, HEADER_FRAME, METHOD_FRAME, CloseReason
from sagapost.core.broker import Delivery, Queue
from sagapost.core.errors import BrokerError, BrokerUnavailableError
from sagapost.core.foreign import ForeignMessages
from sagapost.core.life import Signal

__all__ = ["RabbitMQSubscription", "open_subscription"]

_QUORUM_PREFETCH = 2000
"""RabbitMQ's own upper bound for quorum queues."""

_BOUND_EVERY = 5.0
"""Seconds after which a running consumer binds its queue once more."""

_CONSUMER_TAG = "sagapost"

_BASIC_DELIVER = bytes((0, 60, 0, 60))
_BASIC_CANCEL = bytes((0, 60, 0, 30))
_TAG = Struct(">QB").unpack_from  # delivery tag, redelivered
_U64 = Struct(">Q").unpack_from

# frame type, channel, size, class, method, delivery tag, bits, end octet
_SETTLE = Struct(">BHIHHQBB").pack
_ACK, _REJECT, _NACK = 80, 90, 120
_MULTIPLE, _NACK_REQUEUE, _REJECT_REQUEUE = 1, 2, 1
_CE = 0xCE


class RabbitMQSubscription:
    """One consumer on a channel and connection of its own; see `sagapost.core.broker.Subscription`."""

    def __init__(
        self,
        link: BrokerLink,
        channel: aio_pika.Channel,
        queue: Queue,
        *,
        topology: TopologySettings,
        foreign_policy: ForeignMessages,
        max_buffered_bytes: int,
        call_timeout: float,
    ) -> None:
        self.foreign_policy = foreign_policy
        self._topology = topology
        self._bound_until = anyio.current_time() + _BOUND_EVERY
        self._link = link
        self._channel = channel
        self._number = number_of(channel)
        self._queue = queue
        self._source: AbstractQueue | None = None
        self._max_buffered_bytes = max_buffered_bytes
        self._call_timeout = call_timeout
        # Bounded by the prefetch: the broker hands out no more until something is settled.
        self._received: deque[RabbitMQDelivery] = deque()
        self._received_bytes = 0
        self._unsettled: OrderedDict[int, RabbitMQDelivery] = OrderedDict()
        self._wake = Signal()
        self._ended: CloseReason | None = None
        self._stopping = self._stopped = False
        self._gaps = False
        """Whether there are deliveries that are struck off here and still open at the broker."""
        self._delivering: tuple[int, str, bool] | None = None
        self._properties = b""
        self._body_size = 0
        self._parts: list[bytes] = []
        link.listen(channel, self)

    async def begin(self) -> None:
        """Start consuming.

        :raises BrokerRefusedError: if the user may not read the queue.
        :raises BrokerUnavailableError: if the broker ends the channel for another reason, or does not answer in time.
        """
        self._source = await self._channel.get_queue(self._queue.name, ensure=False)
        try:
            consuming = self._source.consume(_never, consumer_tag=_CONSUMER_TAG)
            await self._link.call(consuming, f"consuming from {self._queue.name!r}")
        except BrokerUnavailableError as error:
            if self._ended is None:
                raise
            raise self._error(self._ended) from error

    @property
    def buffered(self) -> int:
        """Bytes of the bodies that were received and not yet handed out."""
        return self._received_bytes

    # --- iteration ---

    def __aiter__(self) -> RabbitMQSubscription:
        """Iterate over deliveries in the queue's order."""
        return self

    async def __anext__(self) -> RabbitMQDelivery:
        """Return the next delivery."""
        while not self._received:
            if self._ended is not None:
                raise self._error(self._ended)
            if self._stopped:
                raise StopAsyncIteration
            if not await self._wake.wait(max(self._bound_until - anyio.current_time(), 0.0)):
                await self._bind_again()
        if self._ended is not None:
            # What is left here will be delivered again: handling it now would only make a duplicate.
            raise self._error(self._ended)
        delivery = self._received.popleft()
        self._received_bytes -= len(delivery.body)
        if self._received_bytes * 2 <= self._max_buffered_bytes:
            self._link.hold_reading(False)
        return delivery

    async def _bind_again(self) -> None:
        """Make the bindings anew, in case somebody has deleted the exchange: a queue without them only looks idle."""
        try:
            await keep_bound(self._link, self._topology, self._queue)
        except BrokerUnavailableError:
            if self._ended is None:
                raise
        self._bound_until = anyio.current_time() + _BOUND_EVERY

    # --- settling ---

    async def ack(self, *deliveries: Delivery) -> None:
        """Tell the broker these are done: one write, and one frame for those that complete a run from the oldest."""
        tags = self._take(deliveries)
        if not tags:
            return
        tags.sort()
        oldest_left = next(iter(self._unsettled), None)
        covered = [] if self._gaps else tags if oldest_left is None else [tag for tag in tags if tag < oldest_left]
        frames = [self._frame(_ACK, tag, 0) for tag in tags[len(covered) :]]
        if covered:
            # Nothing unsettled is older, so "up to and including" covers exactly these.
            frames.append(self._frame(_ACK, covered[-1], _MULTIPLE))
        await self._write(frames)

    async def reject(self, delivery: Delivery, *, requeue: bool) -> None:
        """Count an attempt and requeue, or dead-letter."""
        bits = _REJECT_REQUEUE if requeue else 0
        await self._write([self._frame(_REJECT, tag, bits) for tag in self._take((delivery,))])

    async def release(self, *deliveries: Delivery) -> None:
        """Give deliveries back untouched. RabbitMQ 4.3 counts no attempt; earlier quorum queues count one."""
        tags = self._take(deliveries)
        if self._queue.ordered and self._stopping:
            # This consumer is still the active one and would get them right back; closing returns them in order.
            self._gaps = True
            return
        await self._write([self._frame(_NACK, tag, _NACK_REQUEUE) for tag in tags])

    async def stop(self) -> None:
        """Cancel the consumer; what was received by then is still handed out. Idempotent."""
        if self._stopping or self._ended is not None:
            return
        self._stopping = True
        if self._queue.ordered:
            # Once cancelled, a single active consumer is replaced at once, and its successor would overtake the
            # deliveries still in flight here. So stay, take no more, and let closing hand over.
            self._stopped = True
            self._wake.set()
            return
        # Deliveries on their way come before the broker's answer, so it must be read; the prefetch bounds them.
        self._link.hold_reading(False)
        # A cancelled RPC makes the driver close the channel, and with it deliveries in flight could not be settled.
        assert self._source is not None  # noqa: S101 - nobody has a subscription before it consumes; for the checker
        with anyio.CancelScope(shield=True):
            try:
                await self._link.call(self._source.cancel(_CONSUMER_TAG), "cancelling the consumer")
            except BrokerError:
                self._end("it did not answer the cancelling of the consumer")
            except DRIVER_ERRORS as error:
                if self._ended is None:
                    self._end(f"the consumer could not be cancelled ({type(error).__name__})")
        self._stopped = True
        self._wake.set()

    def _take(self, deliveries: Iterable[Delivery]) -> list[int]:
        """Strike deliveries off; return the tags that were still open."""
        if self._ended is not None:
            raise self._error(self._ended)
        tags: list[int] = []
        unsettled = self._unsettled
        for delivery in deliveries:
            if not isinstance(delivery, RabbitMQDelivery) or delivery.subscription is not self:
                raise ValueError(
                    "This delivery belongs to another subscription. Settle a delivery where it was received; after a "
                    "reconnect the broker delivers it again."
                )
            if unsettled.pop(delivery.tag, None) is not None:
                tags.append(delivery.tag)
        if self._received and tags:
            # Settled without having been iterated over (a release in bulk): not to be handed out any more.
            self._received = deque(d for d in self._received if d.tag in unsettled)
            self._received_bytes = sum(len(d.body) for d in self._received)
        return tags

    def _frame(self, method: int, tag: int, bits: int) -> bytes:
        return _SETTLE(1, self._number, 13, 60, method, tag, bits, _CE)

    async def _write(self, frames: list[bytes]) -> None:
        if not frames:
            return
        self._link.write(b"".join(frames))
        if self._link.write_paused and not await self._link.drain(self._call_timeout):
            self._end(f"it took in nothing for {self._call_timeout:g} s")
        if self._ended is not None:
            raise self._error(self._ended)

    def _end(self, why: str) -> None:
        self._link.drop(why)
        self.on_closed(CloseReason(why))

    def _error(self, reason: CloseReason) -> BrokerError:
        return closed_error(self._link.address, reason, f"subscription to queue {self._queue.name!r}")

    # --- called by the tap ---

    def on_closed(self, reason: CloseReason) -> None:
        """End the subscription; the first reason stands."""
        if self._ended is None:
            self._ended = reason
            self._unsettled.clear()
            self._wake.set()

    def on_frame(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Take deliveries; RPC replies go on to the driver."""
        if kind == METHOD_FRAME:
            method = data[start : start + 4]
            if method == _BASIC_DELIVER:
                at = start + 5 + data[start + 4]  # past the consumer tag
                tag, redelivered = _TAG(data, at)
                at += 9
                at += 1 + data[at]  # past the exchange
                self._delivering = (tag, data[at + 1 : at + 1 + data[at]].decode("utf-8", "replace"), redelivered != 0)
                return True
            if method == _BASIC_CANCEL:
                _, at = read_short(data, start + 4)
                self.on_closed(CloseReason("the broker cancelled the consumer; its queue was deleted or has moved"))
                # The driver gets it too: newer brokers expect an answer.
            return False
        if self._delivering is None:
            return False
        if kind == BODY_FRAME:
            body = data[start:stop]
            if len(body) == self._body_size and not self._parts:
                self._complete(body)
            else:
                self._parts.append(body)
                self._body_size -= len(body)
                if self._body_size <= 0:
                    self._complete(b"".join(self._parts))
                    self._parts.clear()
            return True
        if kind == HEADER_FRAME:
            (self._body_size,) = _U64(data, start + 4)
            self._properties = data[start + 12 : stop]
            if self._body_size == 0:
                self._complete(b"")
        return True

    def _complete(self, body: bytes) -> None:
        assert self._delivering is not None  # noqa: S101 - checked by the caller; for the type checker
        tag, topic, redelivered = self._delivering
        self._delivering = None
        if self._stopped:
            return  # an ordered queue still hands out after stop(); closing gives it back
        delivery = RabbitMQDelivery(tag, topic, self._properties, body, redelivered, self)
        self._unsettled[tag] = delivery
        self._received.append(delivery)
        self._received_bytes += len(body)
        if self._received_bytes > self._max_buffered_bytes and not self._stopping:
            self._link.hold_reading(True)
        self._wake.set()


async def _never(message: AbstractIncomingMessage) -> None:
    """Stand in for a consumer's callback: the tap takes deliveries before the driver sees them."""
    raise BrokerUnavailableError(f"A delivery bypassed the tap (tag {message.delivery_tag}).")


@asynccontextmanager
async def open_subscription(
    settings: BrokerEndpoint,
    topology: TopologySettings,
    queue: Queue,
    *,
    prefetch: int,
    foreign_policy: ForeignMessages,
    max_buffered_bytes: int,
) -> AsyncGenerator[RabbitMQSubscription]:
    """Declare the queue and consume from it; see `sagapost.core.broker.Broker.subscribe`."""
    if prefetch < 1:
        raise ValueError(f"prefetch is {prefetch}; at least one delivery has to fit.")
    async with open_link(settings, purpose=f"consumer of {queue.name}") as link:
        await declare_queue(link, topology, queue)
        channel = await link.channel()
        # A queue that somebody else made may be a quorum queue whatever we would declare.
        prefetch = min(prefetch, _QUORUM_PREFETCH)
        await link.call(channel.set_qos(prefetch_count=prefetch), "setting the prefetch")
        subscription = RabbitMQSubscription(
            link,
            channel,
            queue,
            topology=topology,
            foreign_policy=foreign_policy,
            max_buffered_bytes=max_buffered_bytes,
            call_timeout=settings.connect_timeout.total_seconds(),
        )
        await subscription.begin()
        # On the way out the connection is simply closed: the broker then returns what is unsettled to its place before
        # it lets the next consumer in. Cancelling and returning by hand first would let others overtake it.
        yield subscription
