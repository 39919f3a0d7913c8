"""Refused messages: hold the key, retry with backoff, and give up into the dead letters by the chosen policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from sagapost.core.outbox_store import Failure, OutboxRow, OutboxSettlement
from sagapost.outbox.relay.observations import Buried, Held, Released

if TYPE_CHECKING:
    from sagapost.outbox.relay.parts import RelayParts

__all__ = ["Decided", "Refusal", "Refusals"]

_LONGEST_REASON = 2_000
_LONGEST = 32_000
"""An attempt whose wait is the longest there is."""


class Refusal(NamedTuple):
    """The broker's no to one message."""

    row: OutboxRow
    reason: str
    unroutable: bool
    """No queue is bound for it: there is nothing wrong with the message, and nobody to take it yet."""


@dataclass(frozen=True, slots=True)
class Decided:
    """Refused rows by what becomes of them, each with what is to be recorded."""

    retried: Sequence[tuple[OutboxRow, Failure]]
    spent: Sequence[tuple[OutboxRow, Failure]]


class Refusals:
    """Decides what a refused row and the rows behind it do."""

    def __init__(self, parts: RelayParts, settlement: OutboxSettlement) -> None:
        self._parts = parts
        self._settlement = settlement
        self.retries = 0
        self.dead = 0

    def hold(self, refused: Sequence[Refusal]) -> Decided:
        """Hold the keys of refused rows, and decide which are tried again; `record` writes that down.

        The hold is in memory and comes before anything else: no later row of the key can slip by meanwhile, and one
        that was confirmed in the same window is known to have overtaken it.
        """
        parts, settings = self._parts, self._parts.settings
        retried: list[tuple[OutboxRow, Failure]] = []
        spent: list[tuple[OutboxRow, Failure]] = []
        kept = parts.ownership.fetchable
        for refusal in refused:
            row, reason = refusal.row, _storable(refusal.reason)
            parts.routes.refused(row)
            if row.partition not in kept:
                parts.gate.abandon(row)
                continue
            counts = self._counts(refusal)
            attempts = max(row.attempts + counts, 1)
            delay = settings.retry.delay(attempts if counts else _LONGEST)
            # Not due before the attempt is on record: read again too early, the row would count it a second time.
            if not parts.gate.refused(row, attempts=attempts, due=math.inf, unroutable=refusal.unroutable):
                # A follower of a refused row that was already on its way: no attempt of its own is burned.
                continue
            if counts and attempts >= settings.max_attempts:
                spent.append((row, Failure(row.position, row.partition, reason, timedelta(0))))
            else:
                retried.append((row, Failure(row.position, row.partition, reason, delay, counts)))
        return Decided(retried, spent)

    def listened_to(self, row: OutboxRow) -> None:
        """A row has found a listener: what waits for one on the same route is tried at once, and not at its time."""
        parts = self._parts
        if parts.gate.listened_to(row, parts.clock.monotonic()):
            parts.nudge.set()

    def _counts(self, refusal: Refusal) -> bool:
        """Whether a refusal uses up an attempt.

        Waiting for a listener does so at first, for the growing pauses, and leaves half of the attempts to real
        refusals, of which an event that has waited for days may see some.
        """
        settings = self._parts.settings
        if not refusal.unroutable or settings.on_unroutable == "bury":
            return True
        return refusal.row.attempts < settings.max_attempts // 2

    async def record(self, decided: Decided) -> None:
        """Count the attempts and, past the budget, bury."""
        parts, retried, spent = self._parts, decided.retried, decided.spent
        if retried:
            await self._settlement.record_failures([failure for _, failure in retried], parts.ownership.claims)
            self.retries += len(retried)
            now = parts.clock.monotonic()
            for row, failure in retried:
                parts.gate.retry_at(row, now + failure.retry_after.total_seconds())
                event = row.event
                parts.observer.notify(
                    Held(
                        event_id=event.id,
                        event_type=event.type,
                        key=event.partitionkey,
                        position=int(row.position),
                        attempt=max(row.attempts + failure.counts, 1),
                        retry_in=failure.retry_after.total_seconds(),
                        reason=failure.reason,
                    )
                )
        if spent:
            await self._bury(spent)
        # The fetch stage may have fallen asleep meanwhile: it knew of no time for the retry, nor that a key is free.
        parts.nudge.set()

    async def _bury(self, spent: Sequence[tuple[OutboxRow, Failure]]) -> None:
        parts, policy = self._parts, self._parts.settings.on_dead
        await self._settlement.bury(
            [failure for _, failure in spent], parts.ownership.claims, block_keys=policy != "skip"
        )
        self.dead += len(spent)
        for row, failure in spent:
            key = row.event.partitionkey
            if key is None:
                parts.gate.release(row.position)
            elif policy == "skip":
                parts.gate.release(key)
            else:
                parts.gate.block(key, row.partition, row.position)
                if policy == "park":
                    self.dead += await self._settlement.bury_followers(key, row.partition, parts.ownership.claims)
            parts.observer.notify(
                Buried(
                    event_id=row.event.id,
                    event_type=row.event.type,
                    key=key,
                    position=int(row.position),
                    attempts=row.attempts + 1,
                    reason=failure.reason,
                    policy=policy,
                )
            )

    async def park_followers(self) -> None:
        """Policy `park`: rows that arrived behind a dead letter become dead letters too."""
        parts = self._parts
        dropped, parts.gate.dropped_for_policy = parts.gate.dropped_for_policy, set()
        if parts.settings.on_dead != "park":
            return
        # The operator may just have redriven the key: then these are the rows to send, and nothing to park.
        await self.load_blocked()
        blocked = parts.gate.blocked_keys()
        for key, partition in dropped:
            if key not in blocked:
                continue
            self.dead += await self._settlement.bury_followers(key, partition, parts.ownership.claims)

    async def load_blocked(self) -> None:
        """Bring the blocked keys in line with the dead letters: an operator may have redriven or discarded some."""
        parts = self._parts
        blocked = await self._settlement.blocked_keys(parts.ownership.claims)
        for key in parts.gate.blocked_keys() - blocked.keys():
            hold = parts.gate.release(key)
            if hold is not None:
                parts.observer.notify(Released(key=key, position=int(hold.position)))
        for key, (partition, position) in blocked.items():
            parts.gate.block(key, partition, position)


def _storable(reason: str) -> str:
    """Return a reason that every database keeps: what brokers and rows say may hold anything, of any length."""
    text = reason.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
