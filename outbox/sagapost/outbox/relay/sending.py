"""The send and confirm stages: batches go out in order, answers come back in order, a bounded window apart."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, assert_never

from sagapost.core.announcements import is_announcement
from sagapost.core.broker import Confirmation, Confirmed, Publisher, PublishResult, Rejected, Returned, Unknown
from sagapost.core.errors import BrokerUnavailableError
from sagapost.core.life import Signal
from sagapost.core.outbox_store import OutboxRow
from sagapost.outbox.relay import observations as obs
from sagapost.outbox.relay.policy import Refusal, Refusals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagapost.outbox.relay.parts import RelayParts

__all__ = ["SendStage"]


class SendStage:
    """Sends what the gate has ready and handles what the broker answers. One per broker connection."""

    def __init__(self, parts: RelayParts, publisher: Publisher, refusals: Refusals) -> None:
        self._parts = parts
        self._publisher = publisher
        self._refusals = refusals
        self._sent: deque[tuple[Sequence[OutboxRow], Confirmation]] = deque()
        self._answered = Signal()
        self._emptied = Signal()
        self._finishing = False
        self._blocked = False
        self.published = 0

    async def send(self) -> None:
        """Send ready rows until cancelled.

        While the leases may have run out nothing is sent, and the connection is kept: what is on its way is answered,
        and deleted if the leases turn out to hold. Ending it would cost duplicates.

        :raises BrokerUnavailableError: if the connection ends.
        """
        parts, publisher = self._parts, self._publisher
        outgoing, limit = parts.routes.outgoing, parts.settings.batch_rows
        while True:
            if self._finishing or not parts.gate.has_ready:
                await parts.ready.wait()
                continue
            self._watch_blocked()
            if not parts.ownership.proven:
                await parts.ownership.until_proven()
                continue
            rows = parts.gate.take_ready(limit)
            if not rows:
                continue
            if any(row.unreadable is not None for row in rows):
                rows = self._set_aside(rows)
                if not rows:
                    continue
            confirmation = await publisher.send([outgoing(row) for row in rows])
            self._sent.append((rows, confirmation))
            parts.observer.notify(obs.Sent(rows=len(rows)))
            self._answered.set()

    def _set_aside(self, rows: Sequence[OutboxRow]) -> list[OutboxRow]:
        """Answer for the rows that are no events, in the broker's place; return the others."""
        unreadable = [row for row in rows if row.unreadable is not None]
        self._sent.append((unreadable, _Refused([Rejected(row.unreadable or "") for row in unreadable])))
        self._answered.set()
        return [row for row in rows if row.unreadable is None]

    async def confirm(self) -> None:
        """Handle answers, in order, until cancelled.

        :raises BrokerUnavailableError: if an answer is unknown.
        """
        while True:
            while not self._sent:
                await self._answered.wait()
            rows, confirmation = self._sent[0]
            results = await confirmation.wait()
            self._sent.popleft()
            unknown = await self._handle(rows, results)
            if not self._sent:
                self._emptied.set()
            if unknown is not None:
                raise BrokerUnavailableError(f"The broker left messages unanswered: {unknown.reason}")

    async def watch(self) -> None:
        """Notice a lost connection while there is nothing to send: the next event finds a new one.

        :raises BrokerUnavailableError: if the connection ends.
        """
        await self._publisher.until_lost()

    async def finish(self) -> None:
        """Send nothing more, and wait until everything sent is answered; `confirm` must be running."""
        self._finishing = True
        while self._sent:
            await self._emptied.wait()

    async def drain(self) -> None:
        """After the connection has ended: take in the answers that did arrive, so that they are not sent twice."""
        while self._sent:
            rows, confirmation = self._sent.popleft()
            await self._handle(rows, await confirmation.wait())

    async def _handle(self, rows: Sequence[OutboxRow], results: Sequence[PublishResult]) -> Unknown | None:
        confirmed: list[OutboxRow] = []
        refused: list[Refusal] = []
        unknown: Unknown | None = None
        optional = self._parts.settings.routing.optional
        for row, result in zip(rows, results, strict=True):
            match result:
                case Confirmed():
                    confirmed.append(row)
                case Returned(observed=observed) if row.event.type in optional or (
                    observed and is_announcement(row.event.type)
                ):
                    confirmed.append(row)
                case Returned(reason=reason):
                    said = f"no queue is bound for topic {row.topic!r} ({reason})"
                    refused.append(Refusal(row, said, unroutable=True))
                case Rejected(reason=reason):
                    refused.append(Refusal(row, reason, unroutable=False))
                case Unknown():
                    unknown = result
                case _:
                    assert_never(result)
        decided = None
        if refused:
            # Refusals may have taught the publisher what the broker's limit is.
            self._parts.gate.max_message_bytes = self._publisher.max_message_bytes
            decided = self._refusals.hold(refused)
        if confirmed:
            self._take_confirmed(confirmed)
        if decided is not None:
            await self._refusals.record(decided)
        if self._parts.gate.has_ready:
            self._parts.ready.set()
        return unknown

    def _take_confirmed(self, rows: Sequence[OutboxRow]) -> None:
        parts = self._parts
        # One look per run of rows on one route: a batch is mostly one topic.
        topic, type_ = "", ""
        for row in rows:
            if row.topic != topic or row.event.type != type_:
                topic, type_ = row.topic, row.event.type
                parts.routes.confirmed(row)
                self._refusals.listened_to(row)
        freed = parts.gate.confirmed(rows)
        for row, hold in freed:
            parts.observer.notify(obs.Released(key=row.event.partitionkey, position=int(hold.position)))
        if freed:
            parts.nudge.set()
        if parts.gate.overtaken:
            overtaken, parts.gate.overtaken = parts.gate.overtaken, []
            for row, hold in overtaken:
                key = row.event.partitionkey or ""
                parts.observer.notify(obs.Overtaken(key=key, position=int(hold.position), by=int(row.position)))
        parts.settler.add(rows)
        self.published += len(rows)
        parts.observer.notify(obs.Published(rows=len(rows)))

    def _watch_blocked(self) -> None:
        if self._publisher.blocked is not self._blocked:
            self._blocked = self._publisher.blocked
            self._parts.observer.notify(obs.Blocked(blocked=self._blocked))


class _Refused:
    """A `Confirmation` that is known beforehand."""

    def __init__(self, results: Sequence[PublishResult]) -> None:
        self._results = results

    async def wait(self) -> Sequence[PublishResult]:
        return self._results
