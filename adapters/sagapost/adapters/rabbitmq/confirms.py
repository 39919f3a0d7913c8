"""The account of what was sent on one channel and what the broker answered. Pure bookkeeping: no I/O, no clock.

RabbitMQ numbers the publishes of a channel from 1 and answers by number, singly or "up to and including", in any
order. Kept here is one watermark (everything up to it is answered), the few answers ahead of it, and one entry per
*batch*: what an answer costs does not depend on how much is in flight, and no message has an object of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import anyio

from sagapost.core.broker import Confirmed, Outgoing, PublishResult, Rejected, Returned, Unknown

__all__ = ["ConfirmLedger", "PendingBatch"]

_CONFIRMED = Confirmed()
_NACKED = Rejected("the broker answered with a negative confirm: a queue is full or failed to take it")


class PendingBatch:
    """One sent batch and, in time, its results. This is the `Confirmation` handed to the caller.

    Batches are done in the order they were sent: one that is answered ahead of an older one waits for it.
    """

    __slots__ = ("_answered", "_failed", "_index", "_refused", "_results", "batch", "deadline", "first", "last")

    def __init__(
        self, batch: Sequence[Outgoing], *, first: int, refused: Mapping[int, Rejected], deadline: float
    ) -> None:
        self.batch = batch
        self.first = first
        """Delivery tag of its first message that was sent."""
        self.last = first + len(batch) - len(refused) - 1
        self.deadline = deadline
        self._refused = refused
        self._failed: dict[int, PublishResult] | None = None
        self._index: dict[tuple[str, str, str], list[int]] | None = None
        self._results: Sequence[PublishResult] | None = None
        self._answered: anyio.Event | None = None

    @property
    def done(self) -> bool:
        """Whether every message has its result."""
        return self._results is not None

    async def wait(self) -> Sequence[PublishResult]:
        """Wait for the answer to every message of the batch."""
        while self._results is None:
            if self._answered is None:
                self._answered = anyio.Event()
            await self._answered.wait()
        return self._results

    # --- called by the ledger ---

    def fail(self, tag: int, result: PublishResult) -> None:
        """Note a result other than confirmed; the first one stands (a return comes before its ack)."""
        if self._failed is None:
            self._failed = {}
        self._failed.setdefault(tag, result)

    def finish(self) -> None:
        """Every sent message is answered: make up the results and wake who waits."""
        if self._failed is None and not self._refused:
            self._close([_CONFIRMED] * len(self.batch))
        else:
            failed = self._failed or {}
            self._close(self._merge([failed.get(tag, _CONFIRMED) for tag in range(self.first, self.last + 1)]))

    def abandon(self, watermark: int, early: set[int], unknown: Unknown) -> None:
        """No more answers will come: what has none is unknown."""
        failed = self._failed or {}
        self._close(
            self._merge(
                [
                    failed.get(tag, _CONFIRMED if tag <= watermark or tag in early else unknown)
                    for tag in range(self.first, self.last + 1)
                ]
            )
        )

    def sent(self) -> list[Outgoing]:
        """Return the messages of the batch that were sent, in the order of their tags."""
        return [message for place, message in enumerate(self.batch) if place not in self._refused]

    def take_return(self, event_id: str, exchange: str, topic: str, result: Returned, *, default: str) -> bool:
        """Note a returned message if it is of this batch. Builds an index first, as most batches never need one."""
        if self._index is None:
            self._index = {}
            for tag, sent in enumerate(self.sent(), self.first):
                place = default if sent.destination is None else sent.destination
                self._index.setdefault((sent.event.id, place, sent.topic), []).append(tag)
        # Popped, so that a second return of the same hits the next one, should a caller have sent one twice.
        tags = self._index.get((event_id, exchange, topic))
        if not tags:
            return False
        self.fail(tags.pop(0), result)
        return True

    def _merge(self, sent: list[PublishResult]) -> Sequence[PublishResult]:
        """Put the results of what was refused before sending in their places."""
        if not self._refused:
            return sent
        answers = iter(sent)
        return [self._refused[i] if i in self._refused else next(answers) for i in range(len(self.batch))]

    def _close(self, results: Sequence[PublishResult]) -> None:
        self._results = results
        if self._answered is not None:
            self._answered.set()


class ConfirmLedger:
    """Delivery tags of one channel, from the first to the last."""

    def __init__(self, exchange: str) -> None:
        self._exchange = exchange
        self._next = 1
        self._watermark = 0
        self._early: set[int] = set()
        self._pending: deque[PendingBatch] = deque()

    @property
    def in_flight(self) -> int:
        """Messages sent and not yet answered."""
        return self._next - 1 - self._watermark - len(self._early)

    @property
    def oldest(self) -> PendingBatch | None:
        """The batch that has waited longest."""
        return self._pending[0] if self._pending else None

    def open(self, batch: Sequence[Outgoing], *, refused: Mapping[int, Rejected], deadline: float) -> PendingBatch:
        """Number a batch that is about to be written; `refused` maps the places of messages that are not sent."""
        pending = PendingBatch(batch, first=self._next, refused=refused, deadline=deadline)
        if pending.last < pending.first:
            pending.finish()
        else:
            self._next = pending.last + 1
            self._pending.append(pending)
        return pending

    def ack(self, tag: int, *, multiple: bool) -> None:
        """Take a positive confirm."""
        if multiple:
            self._advance(tag or self._next - 1)
        elif tag == self._watermark + 1:
            self._advance(tag)
        elif tag > self._watermark:
            self._early.add(tag)

    def nack(self, tag: int, *, multiple: bool) -> None:
        """Take a negative confirm."""
        tag = tag or self._next - 1
        for failed in range(self._watermark + 1 if multiple else tag, tag + 1):
            if failed not in self._early:
                self._fail(failed, _NACKED)
        self.ack(tag, multiple=multiple)

    def returned(self, event_id: str, exchange: str, topic: str, reason: str) -> bool:
        """Take a returned message (its ack follows); tell whether it is one of ours.

        Returns carry no number. Within what is in flight the event id tells them apart, and for one event on its
        way to several places so do exchange and topic, on which alone it depends whether a message is routed.
        """
        result = Returned(reason)
        return any(
            pending.take_return(event_id, exchange, topic, result, default=self._exchange) for pending in self._pending
        )

    def unanswered(self) -> list[Outgoing]:
        """Return what was sent in the batches that are not answered in full."""
        return [message for pending in self._pending for message in pending.sent()]

    def abandon(self, reason: str) -> None:
        """The channel is gone: exactly what has no answer becomes `Unknown`."""
        unknown = Unknown(reason)
        while self._pending:
            self._pending.popleft().abandon(self._watermark, self._early, unknown)
        self._watermark = self._next - 1
        self._early.clear()

    def _advance(self, tag: int) -> None:
        early = self._early
        if early:
            if tag > self._watermark + 1:
                early.difference_update([t for t in early if t <= tag])
            while tag + 1 in early:
                tag += 1
                early.discard(tag)
        self._watermark = max(self._watermark, tag)
        pending = self._pending
        while pending and pending[0].last <= tag:
            pending.popleft().finish()

    def _fail(self, tag: int, result: PublishResult) -> None:
        for pending in self._pending:
            if tag <= pending.last:
                if tag >= pending.first:
                    pending.fail(tag, result)
                return
