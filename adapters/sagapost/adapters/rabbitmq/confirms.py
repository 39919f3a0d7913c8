"""The account of what was sent on one channel and what the broker answered. Pure bookkeeping: no I/O, no clock.

RabbitMQ numbers the publishes of a channel from 1 and answers by number, singly or "up to and including", in any
order. Kept here is one watermark (everything up to it is answered), the few answers ahead of it, and one entry per
*batch*: what an answer costs does not depend on how much is in flight, and no message has an object of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from sagapost.core.broker import Confirmed, Outgoing, PublishResult, Rejected, Returned, Unknown
from sagapost.core.life import Signal

__all__ = ["ConfirmLedger", "PendingBatch"]

_CONFIRMED = Confirmed()
_NACKED = Rejected("the broker answered with a negative confirm: a queue is full or failed to take it")


async def _nothing_to_do() -> None:
    """Stand in for an inquiry where no channel can end over a message."""


class PendingBatch:
    """One sent batch and, in time, its results. This is the `Confirmation` handed to the caller.

    Batches are done in the order they were sent: one that is answered ahead of an older one waits for it.
    """

    __slots__ = (
        "_answered",
        "_failed",
        "_index",
        "_inquire",
        "_known",
        "_results",
        "batch",
        "deadline",
        "first",
        "last",
    )

    def __init__(
        self,
        batch: Sequence[Outgoing],
        *,
        first: int,
        refused: Mapping[int, Rejected],
        deadline: float,
        inquire: Callable[[], Awaitable[None]] = _nothing_to_do,
    ) -> None:
        self.batch = batch
        self.first = first
        """Delivery tag of its first message that was sent."""
        self.last = first + len(batch) - len(refused) - 1
        self.deadline = deadline
        self._known: Mapping[int, PublishResult] = refused
        """Results by place of messages that have no tag: refused before sending, or answered on a former channel."""
        self._failed: dict[int, PublishResult] | None = None
        self._index: dict[tuple[str, str, str], list[int]] | None = None
        self._results: Sequence[PublishResult] | None = None
        self._answered = Signal()
        self._inquire = inquire

    @property
    def done(self) -> bool:
        """Whether every message has its result."""
        return self._results is not None

    async def wait(self) -> Sequence[PublishResult]:
        """Wait for the answer to every message of the batch."""
        while self._results is None:
            # Whoever waits for answers looks into why the channel that owes them was closed.
            await self._inquire()
            if self._results is None:
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
        if self._failed is None and not self._known:
            self._close([_CONFIRMED] * len(self.batch))
        else:
            failed = self._failed or {}
            self._close(self._merge([failed.get(tag, _CONFIRMED) for tag in range(self.first, self.last + 1)]))

    def abandon(self, watermark: int, early: set[int], unknown: Unknown) -> None:
        """No more answers will come: what has none is unknown."""
        answers = self._answers(watermark, early)
        self._close(self._merge([unknown if answer is None else answer for answer in answers]))

    def unanswered(self, watermark: int, early: set[int]) -> list[int]:
        """Return the places of the messages that were sent and have no answer, in the order of their tags."""
        return [
            place
            for place, answer in zip(self._sent_places(), self._answers(watermark, early), strict=True)
            if answer is None
        ]

    def renumber(
        self, first: int, watermark: int, early: set[int], refused: Mapping[int, Rejected], deadline: float
    ) -> list[int]:
        """Keep what is answered, note what is refused by place, and give the rest new tags; return their places."""
        answers = zip(self._sent_places(), self._answers(watermark, early), strict=True)
        known = {place: answer for place, answer in answers if answer is not None}
        self._known = {**self._known, **known, **refused}
        self._failed = self._index = None
        again = self._sent_places()
        self.first, self.last, self.deadline = first, first + len(again) - 1, deadline
        return again

    def stir(self) -> None:
        """Wake who waits although there is no answer yet: there is something to look into."""
        self._answered.set()

    def sent(self) -> list[Outgoing]:
        """Return the messages of the batch that have a tag, in the order of their tags."""
        return [self.batch[place] for place in self._sent_places()]

    def _sent_places(self) -> list[int]:
        return [place for place in range(len(self.batch)) if place not in self._known]

    def _answers(self, watermark: int, early: set[int]) -> list[PublishResult | None]:
        """Return what came for each tag so far; None: nothing."""
        failed = self._failed or {}
        return [
            failed.get(tag, _CONFIRMED if tag <= watermark or tag in early else None)
            for tag in range(self.first, self.last + 1)
        ]

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
        """Put the results that were known without a tag in their places."""
        if not self._known:
            return sent
        answers = iter(sent)
        return [self._known[i] if i in self._known else next(answers) for i in range(len(self.batch))]

    def _close(self, results: Sequence[PublishResult]) -> None:
        self._results = results
        self._answered.set()


class ConfirmLedger:
    """Delivery tags of one channel, from the first to the last, and on from there on the channel that succeeds it.

    :param inquire: called by whoever waits for a batch without results, before it waits.
    """

    def __init__(self, exchange: str, *, inquire: Callable[[], Awaitable[None]] = _nothing_to_do) -> None:
        self._exchange = exchange
        self._inquire = inquire
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
        pending = PendingBatch(batch, first=self._next, refused=refused, deadline=deadline, inquire=self._inquire)
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
        """Take a returned message (its ack follows); return whether it is one of ours.

        Returns carry no number. Within what is in flight the event id tells them apart, and for one event on its
        way to several places so do exchange and topic, on which alone it depends whether a message is routed.
        """
        result = Returned(reason)
        return any(
            pending.take_return(event_id, exchange, topic, result, default=self._exchange) for pending in self._pending
        )

    def unanswered(self) -> list[Outgoing]:
        """Return what was sent and has no answer, in the order it was sent."""
        return [pending.batch[place] for pending, place in self._unanswered()]

    def _unanswered(self) -> list[tuple[PendingBatch, int]]:
        return [
            (pending, place) for pending in self._pending for place in pending.unanswered(self._watermark, self._early)
        ]

    def stir(self) -> None:
        """Wake who waits for an answer: it will not come by itself."""
        for pending in self._pending:
            pending.stir()

    def begin_again(self, refused: Mapping[int, Rejected], *, deadline: float) -> list[Outgoing]:
        """Go on, on a new channel, with what has no answer: numbered from 1, in the order it was sent.

        `refused` maps places in `unanswered()` to the broker's no. Returns what is to be sent again.
        """
        by_batch: dict[int, dict[int, Rejected]] = {}
        for index, (pending, place) in enumerate(self._unanswered()):
            if index in refused:
                by_batch.setdefault(id(pending), {})[place] = refused[index]
        again: list[Outgoing] = []
        left: deque[PendingBatch] = deque()
        for pending in self._pending:
            verdicts = by_batch.get(id(pending), {})
            places = pending.renumber(len(again) + 1, self._watermark, self._early, verdicts, deadline)
            again += [pending.batch[place] for place in places]
            if places:
                left.append(pending)
            else:
                pending.finish()
        self._pending, self._next, self._watermark = left, len(again) + 1, 0
        self._early.clear()
        return again

    def abandon(self, reason: str) -> None:
        """The channel is gone: exactly what has no answer becomes `Unknown`."""
        unknown = Unknown(reason)
        while self._pending:
            self._pending.popleft().abandon(self._watermark, self._early, unknown)
        self._watermark = self._next - 1
        self._early.clear()

    def restart(self) -> None:
        """Number from 1 again, for a new channel, after `abandon`."""
        self._next, self._watermark = 1, 0

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
