"""The publishing side: a batch is one buffer and one write, its answers cost what the broker's frames cost.

A message that the broker will not have for a lack of rights, a missing exchange or its size closes the channel under
all others. So the first message of each route (exchange and topic), and those of a doubtful size, are tried first
(`trial`). Where a channel is closed over a message all the same, because a right was taken away meanwhile, everything
without an answer is tried, what is refused is `Rejected` with the broker's reason, and the rest is published again on
a new channel of the same connection, in its order: once what the broker took in before it met the refused one, for
the first time what it ignored behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn, TypeAlias

import aio_pika
import anyio
import anyio.lowlevel

from sagapost.adapters.rabbitmq.answers import AnswerReader
from sagapost.adapters.rabbitmq.confirms import ConfirmLedger
from sagapost.adapters.rabbitmq.connection import open_link
from sagapost.adapters.rabbitmq.errors import NOT_FOUND, PRECONDITION_FAILED, closed_error
from sagapost.adapters.rabbitmq.frames import PublishEncoder, UnencodableError
from sagapost.adapters.rabbitmq.link import BrokerLink, number_of
from sagapost.adapters.rabbitmq.observed import CopiedBatch, Copies, CopyingEncoder
from sagapost.adapters.rabbitmq.settings import BrokerEndpoint, Limits, TopologySettings
from sagapost.adapters.rabbitmq.topology import declare_exchange
from sagapost.adapters.rabbitmq.transport import CloseReason
from sagapost.adapters.rabbitmq.trial import Trial
from sagapost.core.broker import Confirmation, Outgoing, Rejected
from sagapost.core.errors import BrokerError, BrokerUnavailableError

__all__ = ["RabbitMQPublisher", "open_publisher"]

_BASIC_PUBLISH = (60, 40)

_MAX_ROUTES = 4096
"""Routes remembered as open. Past that a new one is no longer tried first: topics without bound must not cost a
second publish for each message."""
_TRIED_AT_ONCE = 100
_FRUITLESS = 3
"""Inquiries without a culprit, one after another, after which the connection is given up."""
_BEHIND = Rejected("an earlier event of its key was refused, and it waits behind it")

Route: TypeAlias = tuple[str | None, str]
"""Destination and topic: what the broker's rights are about."""


class RabbitMQPublisher:
    """A channel with confirms, and its successors, on one connection; see `sagapost.core.broker.Publisher`."""

    def __init__(
        self,
        link: BrokerLink,
        channel: aio_pika.Channel,
        *,
        exchange: str,
        copies: Copies,
        limits: Limits,
        confirm_timeout: float,
    ) -> None:
        self._link = link
        self._exchange = exchange
        self._limits = limits
        self._confirm_timeout = confirm_timeout
        self._loop = asyncio.get_running_loop()
        self._ledger = ConfirmLedger(exchange, inquire=self._inquire)
        self._answers = AnswerReader(self._ledger, _nothing_more, self._note_unmatched)
        self._copies = copies
        self._trial = Trial(link, exchange=exchange, limits=limits, timeout=confirm_timeout)
        self._open_routes: set[Route] = set()
        """Routes on which the broker was seen to take a message."""
        self._closed_routes: set[Route] = set()
        """Routes on which it refused one: tried before each use, until one goes through."""
        self._closed_over: CloseReason | None = None
        """Why the channel was closed over a message that is not known yet; until then nothing is sent."""
        self._inquiry = anyio.Lock()
        self._fruitless = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ended: CloseReason | None = None
        self._gone = asyncio.Event()
        self._encoder = self._begin(channel)
        link.on_lost(self._finish)

    def _begin(self, channel: aio_pika.Channel) -> PublishEncoder:
        """Publish on this channel from now on."""
        self._link.listen(channel, self)
        self._answers.restart()
        self._encoder = PublishEncoder(
            channel=number_of(channel), exchange=self._exchange, frame_max=self._link.frame_max
        )
        return self._encoder

    # --- the port ---

    @property
    def blocked(self) -> bool:
        """Whether the broker has asked publishers to pause (a resource alarm)."""
        return self._link.blocked

    @property
    def max_message_bytes(self) -> int | None:
        """Largest body that should go through: what was configured, or less if the broker was seen to refuse it."""
        return self._limits.largest

    @property
    def in_flight(self) -> int:
        """Messages sent and not yet answered."""
        return self._ledger.in_flight

    async def send(self, batch: Sequence[Outgoing]) -> Confirmation:
        """Write a batch; return once the socket has room again.

        Cancelling it leaves the channel in order: nothing of the batch is written, or all of it.

        :raises BrokerUnavailableError: if the connection is down or the write did not finish in time.
        :raises BrokerRefusedError: if the broker ended the connection because the user lacks a permission.
        """
        await anyio.lowlevel.checkpoint()
        self._require_open()
        routes = {(outgoing.destination, outgoing.topic) for outgoing in batch}
        try:
            rejected = await self._try_first(batch, routes)
            await self._copies.prepare()
        except BrokerError as error:
            self._end(str(error))
            raise
        await self._inquire()
        self._require_open()
        # From here to the write nothing is awaited: the tags are those of the channel that is written to.
        copying = self._copies.begin(routes, self._encoder)
        frames, refused = self._encode(batch, rejected, self._encoder if copying is None else copying)
        deadline = self._link.clock() + self._confirm_timeout
        pending: Confirmation
        pending = messages = self._ledger.open(batch, refused=refused, deadline=deadline)
        if copying is not None and copying.copied:
            pending = CopiedBatch(messages, self._copies.sent(copying.copied), self._copies)
        await self._write(frames)
        self._require_open()
        return pending

    async def _write(self, frames: list[bytes]) -> None:
        if not frames:
            return
        self._link.write(b"".join(frames))
        if self._timer is None:
            self._timer = self._loop.call_later(self._confirm_timeout, self._check_deadline)
        if self._link.write_paused and not await self._link.drain(self._confirm_timeout):
            self._end(f"it took in nothing for {self._confirm_timeout:g} s while messages waited to be written")

    async def until_lost(self) -> NoReturn:
        """Wait until the publisher is closed, and raise.

        :raises BrokerUnavailableError: if the connection was lost or the publisher closed.
        :raises BrokerRefusedError: if the broker ended the connection because the user lacks a permission.
        """
        await self._gone.wait()
        assert self._ended is not None  # noqa: S101 - set before the event; for the type checker
        raise closed_error(self._link.address, self._ended, "publisher")

    def _encode(
        self, batch: Sequence[Outgoing], rejected: Mapping[int, Rejected], encoder: PublishEncoder | CopyingEncoder
    ) -> tuple[list[bytes], Mapping[int, Rejected]]:
        frames: list[bytes] = []
        refused = dict(rejected)
        encode, limit = encoder.encode, self._limits.max_message_bytes
        for place, outgoing in enumerate(batch):
            if len(outgoing.event.data) > limit:
                refused[place] = Rejected(
                    f"its {len(outgoing.event.data):,} bytes are over the broker's limit of {limit:,} per message"
                )
                continue
            if place in refused:
                continue
            try:
                encode(outgoing, frames)
            except UnencodableError as error:
                refused[place] = Rejected(f"AMQP cannot carry it: {error}")
        return frames, refused

    # --- what the broker refuses ---

    async def _try_first(self, batch: Sequence[Outgoing], routes: set[Route]) -> Mapping[int, Rejected]:
        """Try what may close the channel; return what the broker refuses, by place, and what waits behind that."""
        routes = routes - self._open_routes
        if len(self._open_routes) >= _MAX_ROUTES:
            routes &= self._closed_routes
        doubtful = self._limits.refused_bytes
        if not (routes or doubtful is not None) or not self._trial.possible or self._link.blocked:
            return {}
        places: list[int] = []
        largest = self._limits.max_message_bytes
        for place, outgoing in enumerate(batch):
            size, route = len(outgoing.event.data), (outgoing.destination, outgoing.topic)
            if size <= largest and (route in routes or (doubtful is not None and size >= doubtful)):
                places.append(place)
                routes.discard(route)
        return await self._try(batch, places, patient=False)

    async def _try(self, batch: Sequence[Outgoing], places: list[int], *, patient: bool) -> Mapping[int, Rejected]:
        """Try the messages at these places, in order; return what is refused, by place, and what waits behind that."""
        rejected: dict[int, Rejected] = {}
        while places:
            asked = places[:_TRIED_AT_ONCE]
            taken, refusal = await self._trial.ask([batch[place] for place in asked], patient=patient)
            for place in asked[:taken]:
                self._note_taken(batch[place])
            places = places[taken:]
            if refusal is None:
                if taken < len(asked):
                    break
                continue
            alike = self._note_refused(batch, places[0], refusal)
            rejected.update(dict.fromkeys(alike, Rejected(refusal.said)))
            places = [place for place in places if place not in alike]
        return _with_followers(batch, rejected) if rejected else rejected

    def _note_taken(self, outgoing: Outgoing) -> None:
        route = (outgoing.destination, outgoing.topic)
        if len(self._open_routes) < _MAX_ROUTES:
            self._open_routes.add(route)
        self._closed_routes.discard(route)
        self._limits.taken(len(outgoing.event.data))

    def _note_refused(self, batch: Sequence[Outgoing], place: int, refusal: CloseReason) -> set[int]:
        """Learn from a refusal; return the places of all messages of the batch that it is about."""
        outgoing = batch[place]
        if refusal.code == PRECONDITION_FAILED:
            self._limits.refused(len(outgoing.event.data))
            return {place}
        if refusal.code == NOT_FOUND and outgoing.destination in (None, self._exchange):
            raise BrokerUnavailableError(
                f"The exchange {self._exchange!r} at {self._link.address} was deleted ({refusal.said}). "
                "Open a publisher again: that declares it."
            )
        route = (outgoing.destination, outgoing.topic)
        self._open_routes.discard(route)
        if len(self._closed_routes) >= _MAX_ROUTES:
            self._closed_routes.clear()
        self._closed_routes.add(route)
        return {n for n, other in enumerate(batch) if (other.destination, other.topic) == route}

    async def _inquire(self) -> None:
        """Where the channel was closed over a message: find out over which, and go on with the others.

        Done by whoever waits for an answer or sends next; cancelled, it is taken up by the next one. Ends the
        publisher where it cannot be found out.
        """
        while (reason := self._closed_over) is not None and self._ended is None:
            async with self._inquiry:
                if self._closed_over is not reason:
                    continue
                try:
                    frames = await self._replace_channel(reason)
                except BrokerError as error:
                    self._end(str(error))
                    return
                await self._write(frames)

    async def _replace_channel(self, reason: CloseReason) -> list[bytes]:
        suspects = self._ledger.unanswered()
        self._open_routes.clear()
        if not self._trial.possible:
            raise BrokerUnavailableError(f"The broker closed the channel over a message: {reason.said}.")
        rejected = await self._try(suspects, list(range(len(suspects))), patient=True)
        self._fruitless = 0 if rejected else self._fruitless + 1
        if self._fruitless == _FRUITLESS:
            raise BrokerUnavailableError(
                f"The broker at {self._link.address} closes the channel over a message ({reason.said}), "
                "and takes each when it is tried alone. Open the connection again."
            )
        channel = await self._link.channel(confirms=True)
        if self._ended is not None:
            return []
        encoder = self._begin(channel)
        frames: list[bytes] = []
        deadline = self._link.clock() + self._confirm_timeout
        for outgoing in self._ledger.begin_again(rejected, deadline=deadline):
            encoder.encode(outgoing, frames)
        self._closed_over = None
        return frames

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
        self._finish(CloseReason(why))

    def close(self) -> None:
        """Stop taking answers: what has none is `Unknown`."""
        self._finish(CloseReason("the publisher was closed"))

    # --- called by the tap ---

    def on_closed(self, reason: CloseReason) -> None:
        """The channel is gone; if over a message, and the connection is still there, that can be looked into."""
        if reason.method == _BASIC_PUBLISH and self._link.lost is None and self._ended is None:
            self._closed_over = reason
            self._ledger.stir()
        else:
            self._finish(reason)

    def _finish(self, reason: CloseReason) -> None:
        """End the publisher; the first reason stands."""
        if self._ended is not None:
            return
        self._ended = reason
        self._gone.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._ledger.abandon(reason.text)
        self._copies.end(reason.text)

    def on_frame(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Take confirms and returns; RPC replies go on to the driver."""
        return self._answers.on_frame(kind, data, start, stop)

    def _note_unmatched(self) -> None:
        # Its ack comes next and would count as success. Nothing can be told apart any more: start over.
        self._end("the broker returned a message that could not be matched")


def _nothing_more(topic: str) -> None:
    """A message that is returned has its result in the ledger, and that is all."""


def _with_followers(batch: Sequence[Outgoing], rejected: Mapping[int, Rejected]) -> Mapping[int, Rejected]:
    """Add what comes after a refused message under the same key: sent, it would overtake that one."""
    everything = dict(rejected)
    keys: set[str] = set()
    for place, outgoing in enumerate(batch):
        key = outgoing.event.partitionkey
        if key is None:
            continue
        if place in rejected:
            keys.add(key)
        elif key in keys:
            everything[place] = _BEHIND
    return everything


@asynccontextmanager
async def open_publisher(
    settings: BrokerEndpoint, topology: TopologySettings, limits: Limits
) -> AsyncGenerator[RabbitMQPublisher]:
    """Open a publisher on a connection of its own; see `sagapost.core.broker.Broker.publisher`."""
    async with open_link(settings, purpose="publisher") as link:
        await declare_exchange(link, topology)
        copies = Copies(link, topology)
        await copies.prepare()
        publisher = RabbitMQPublisher(
            link,
            await link.channel(confirms=True),
            exchange=topology.exchange,
            copies=copies,
            limits=limits,
            confirm_timeout=settings.confirm_timeout.total_seconds(),
        )
        try:
            yield publisher
        finally:
            publisher.close()
