"""The settle stage: confirmed rows are deleted in one statement per batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import anyio

from sagapost.core.backoff import Backoff
from sagapost.core.errors import LeaseLostError, StoreError
from sagapost.core.life import Signal
from sagapost.core.observer import Observer
from sagapost.core.outbox_store import OutboxRow, OutboxSettlement, Partition, Published
from sagapost.outbox.relay.gate import Gate
from sagapost.outbox.relay.observations import Settled, StoreLost
from sagapost.outbox.relay.ownership import Ownership

__all__ = ["Settler"]

_BATCH = 5_000


class Settler:
    """Collects confirmed rows and deletes them; while one statement runs, the next batch gathers.

    A database outage keeps the confirmed rows in memory and deletes them when it ends, if the lease still holds, so
    that an outage alone causes no duplicates.
    """

    def __init__(
        self,
        settlement: OutboxSettlement,
        gate: Gate,
        ownership: Ownership,
        observer: Observer,
        backoff: Backoff,
        *,
        database: str,
    ) -> None:
        self._settlement = settlement
        self._database = database
        self._gate = gate
        self._ownership = ownership
        self._observer = observer
        self._backoff = backoff
        self._pending: dict[Partition, list[Published]] = {}
        self._arrived = Signal()
        self.capacity = Signal()
        """Set when rows left flight."""
        self.total = 0

    def add(self, rows: Iterable[OutboxRow]) -> None:
        """Queue confirmed rows for deletion."""
        pending = self._pending
        for row in rows:
            group = pending.get(row.partition)
            if group is None:
                pending[row.partition] = [(row.position, row.event.id)]
            else:
                group.append((row.position, row.event.id))
        self._arrived.set()

    async def run(self) -> None:
        """Delete what is queued until cancelled."""
        attempt = 0
        while True:
            while not self._pending:
                await self._arrived.wait()
            batch = self._take()
            try:
                await self._delete(batch)
                attempt = 0
            except StoreError as error:
                self._give_back(batch)
                attempt += 1
                pause = self._backoff.seconds(attempt)
                self._observer.notify(StoreLost(self._database, str(error), attempt, pause))
                await anyio.sleep(pause)

    async def _delete(self, batch: Mapping[Partition, Sequence[Published]]) -> None:
        lost: frozenset[Partition] = frozenset()
        try:
            deleted = await self._settlement.delete_published(batch, self._ownership.claims)
        except LeaseLostError as error:
            lost = frozenset(Partition(p) for p in error.partitions)
            deleted = sum(len(rows) for p, rows in batch.items() if p not in lost)
        for partition, rows in batch.items():
            self._gate.settled(partition, [position for position, _ in rows])
        self.total += deleted
        self._observer.notify(Settled(rows=deleted))
        self.capacity.set()
        if lost:
            self._ownership.lose(lost, "the token was refused when deleting published rows")
            self._ownership.nudge()

    def _take(self) -> dict[Partition, list[Published]]:
        pending = self._pending
        if sum(len(group) for group in pending.values()) <= _BATCH:
            self._pending = {}
            return pending
        taken: dict[Partition, list[Published]] = {}
        count = 0
        for partition in list(pending):
            taken[partition] = pending.pop(partition)
            count += len(taken[partition])
            if count >= _BATCH:
                break
        return taken

    def _give_back(self, batch: Mapping[Partition, Sequence[Published]]) -> None:
        for partition, rows in batch.items():
            self._pending.setdefault(partition, []).extend(rows)
