"""Copies of what is published, for observers: sent in the same write, on a channel of their own.

Observers do not count as listeners, so their queues hang on an exchange that nothing else leads to (`topology`). Which
topics are observed is learned from the copies: one that is returned was for nobody, and its topic is left alone for a
second. A topic that nobody observes costs one copy a second, and a lookup for each batch.

The channel is not the one that the messages go through: whatever the broker says to copies (no right, no exchange, a
queue that takes nothing) ends the copies for a while, and never disturbs the messages.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import aio_pika
import anyio

from sagapost.adapters.rabbitmq.answers import AnswerReader
from sagapost.adapters.rabbitmq.confirms import ConfirmLedger, PendingBatch
from sagapost.adapters.rabbitmq.errors import NOT_FOUND
from sagapost.adapters.rabbitmq.frames import PublishEncoder
from sagapost.adapters.rabbitmq.link import BrokerLink, number_of
from sagapost.adapters.rabbitmq.settings import TopologySettings
from sagapost.adapters.rabbitmq.topology import declare_observed
from sagapost.adapters.rabbitmq.transport import CloseReason
from sagapost.core.broker import Confirmed, Outgoing, PublishResult, Returned, Unknown

__all__ = ["CopiedBatch", "Copies"]

_log = logging.getLogger("sagapost.rabbitmq")

_PROBE_EVERY = 1.0
"""Seconds after which a topic that nobody observed is tried again."""
_AGAIN = 300.0
"""Seconds without copies after the broker refused them or was too slow with them."""
_GRACE = 5.0
"""Seconds that copies may take longer than their messages."""
_NEW_TOPICS = 100
"""Topics never seen before that are copied in `_PROBE_EVERY` while nothing is observed: topics without bound must not
double what is published."""
_MAX_TOPICS = 4096


class Copies:
    """What one publisher sends to observers."""

    def __init__(self, link: BrokerLink, topology: TopologySettings) -> None:
        self._link = link
        self._topology = topology
        self._exchange = topology.observed_exchange
        self._ours = (None, topology.exchange)
        self._channel: aio_pika.Channel | None = None
        self._encoder: PublishEncoder | None = None
        self._ledger = ConfirmLedger(self._exchange)
        self._answers = AnswerReader(self._ledger, self._note_returned, self._note_unmatched)
        self._open_at = 0.0
        """When a channel may be opened, on the connection's clock."""
        self._observed: set[str] = set()
        """Topics of which a copy was routed."""
        self._unobserved: set[str] = set()
        """Topics of which the last copy was returned."""
        self._due: set[str] = set()
        """Those of them of which one copy is to be tried."""
        self._probe_at = 0.0
        self._new_left = _NEW_TOPICS
        self._warned: str | None = None
        self._ended = False

    async def prepare(self) -> None:
        """Open the channel if it is time to.

        :raises BrokerUnavailableError: if the connection ends.
        """
        if self._channel is not None or self._link.clock() < self._open_at or self._ended:
            return
        self._open_at = self._link.clock() + _AGAIN
        refusal = await declare_observed(self._link, self._topology)
        if refusal is not None:
            if refusal.code != NOT_FOUND:
                self._warn(refusal.said)
            return
        channel = await self._link.channel(confirms=True)
        self._ledger.restart()
        self._answers.restart()
        self._encoder = PublishEncoder(
            channel=number_of(channel), exchange=self._exchange, frame_max=self._link.frame_max
        )
        self._link.listen(channel, self)
        self._channel = channel

    def begin(self, routes: set[tuple[str | None, str]], originals: PublishEncoder) -> CopyingEncoder | None:
        """Return what encodes a batch over these routes with its copies; None: nobody observes any of them."""
        if self._channel is None or self._encoder is None:
            return None
        now = self._link.clock()
        if now >= self._probe_at:
            self._probe_at = now + _PROBE_EVERY
            self._due = self._unobserved.copy()
            self._new_left = _NEW_TOPICS
        topics = {topic for destination, topic in routes if destination in self._ours}
        once = topics & self._due
        topics -= self._unobserved
        if topics and not self._observed:
            if self._new_left <= 0:
                topics.clear()
            self._new_left -= len(topics)
        if not topics and not once:
            return None
        self._due -= once
        return CopyingEncoder(originals, self._encoder, topics, once, self._ours)

    def sent(self, copied: Sequence[Outgoing]) -> PendingBatch:
        """Number the copies that are about to be written."""
        return self._ledger.open(copied, refused={}, deadline=float("inf"))

    async def settled(self, copies: PendingBatch) -> Sequence[PublishResult]:
        """Wait a while for the answers to copies whose messages were answered; return them."""
        if not copies.done:
            with anyio.move_on_after(_GRACE):
                await copies.wait()
        if not copies.done:
            self._give_up(f"no answer to a copy within {_GRACE:g} s")
        results = await copies.wait()
        for outgoing, result in zip(copies.batch, results, strict=True):
            if isinstance(result, Confirmed) and outgoing.topic not in self._observed:
                if len(self._observed) >= _MAX_TOPICS:
                    self._observed.clear()
                self._observed.add(outgoing.topic)
                self._unobserved.discard(outgoing.topic)
        return results

    @property
    def ended(self) -> bool:
        """Whether the publisher has: nobody knows then whether observers have what is unanswered."""
        return self._ended

    def end(self, why: str) -> None:
        """Send nothing any more: the publisher has ended, and what has no answer may not have arrived."""
        self._ended = True
        self._abandon(why)

    def _abandon(self, why: str) -> None:
        self._channel = None
        self._ledger.abandon(why)

    def _give_up(self, why: str) -> None:
        channel = self._channel
        self._abandon(why)
        self._open_at = self._link.clock() + _AGAIN
        self._warn(why)
        if channel is not None:
            self._link.unlisten(channel)
            self._link.leave(channel)

    def _warn(self, why: str) -> None:
        if why != self._warned:
            self._warned = why
            _log.warning(
                "observers get no copies of what is published to %r at %s for now: %s",
                self._topology.exchange,
                self._link.address,
                why,
            )

    # --- called by the tap ---

    def on_frame(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Take confirms and returns; RPC replies go on to the driver."""
        return self._answers.on_frame(kind, data, start, stop)

    def on_closed(self, reason: CloseReason) -> None:
        """The channel is gone: over a copy, or with its connection."""
        if self._link.lost is not None:
            self.end(reason.text)
        else:
            self._abandon(reason.text)
            if reason.code == NOT_FOUND:
                # Somebody has deleted the exchange: it is made again with the next batch.
                self._open_at = self._link.clock() + _PROBE_EVERY
            else:
                self._open_at = self._link.clock() + _AGAIN
                self._warn(reason.said or reason.text)

    def _note_returned(self, topic: str) -> None:
        self._observed.discard(topic)
        if len(self._unobserved) >= _MAX_TOPICS:
            self._unobserved.clear()
        self._unobserved.add(topic)

    def _note_unmatched(self) -> None:
        """Let a return that cannot be matched count as routed: of a copy nothing depends on it."""


class CopyingEncoder:
    """Encodes the messages of one batch, and behind each that is observed its copy."""

    def __init__(
        self,
        originals: PublishEncoder,
        copies: PublishEncoder,
        topics: set[str],
        once: set[str],
        ours: tuple[str | None, ...],
    ) -> None:
        self._originals = originals
        self._copies = copies
        self._topics = topics
        self._once = once
        self._ours = ours
        self.copied: list[Outgoing] = []
        """The messages that have a copy, in order."""

    def encode(self, outgoing: Outgoing, into: list[bytes]) -> None:
        """Append the frames of one message, and of its copy; on an error nothing is appended.

        :raises UnencodableError: as `PublishEncoder.encode` does.
        """
        start = len(into)
        self._originals.encode(outgoing, into)
        topic = outgoing.topic
        if topic not in self._topics:
            if topic not in self._once:
                return
            self._once.discard(topic)
        if outgoing.destination in self._ours:
            self._copies.repeat(topic, into, start)
            self.copied.append(outgoing)


class CopiedBatch:
    """A sent batch with copies of some of its messages. This is the `Confirmation` handed to the caller."""

    def __init__(self, messages: PendingBatch, copies: PendingBatch, sender: Copies) -> None:
        self._messages = messages
        self._copies = copies
        self._sender = sender

    async def wait(self) -> Sequence[PublishResult]:
        """Wait for the answer to every message, and to the copies for as long as observers may hold up others."""
        results = await self._messages.wait()
        copies = await self._sender.settled(self._copies)
        if self._sender.ended and any(isinstance(copy, Unknown) for copy in copies):
            unknown = Unknown("the connection was lost before its copy for observers was confirmed")
            return [unknown if isinstance(result, Confirmed) else result for result in results]
        if not any(isinstance(result, Returned) for result in results):
            return results
        observed = {
            id(outgoing)
            for outgoing, copy in zip(self._copies.batch, copies, strict=True)
            if isinstance(copy, Confirmed)
        }
        return [
            Returned(result.reason, observed=True)
            if isinstance(result, Returned) and id(outgoing) in observed
            else result
            for outgoing, result in zip(self._messages.batch, results, strict=True)
        ]
