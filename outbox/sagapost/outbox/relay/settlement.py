"""The settle stage: confirmed rows are deleted in one statement per batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

from sagapost.core.errors import LeaseLostError, StoreError
from sagapost.core.life import Runtime, Signal
from sagapost.core.outbox_store import OutboxRow, OutboxSettlement, Partition, Published
from sagapost.outbox.relay.gate import Gate
from sagapost.outbox.relay.observations import Settled
from sagapost.outbox.relay.ownership import Ownership

__all__ = ["Settler", "is_store_error"]

_BATCH = 5_000


def is_store_error(error: BaseException) -> bool:
    """Whether what goes on beside the sending waits for the end of an error: any of the database's, also refusals."""
    return isinstance(error, StoreError)


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
        runtime: Runtime,
    ) -> None:
        self._settlement = settlement
        self._gate = gate
        self._ownership = ownership
        self._runtime = runtime
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
        await self._runtime.every(timedelta(0), self._settle, is_outage=is_store_error)

    async def _settle(self) -> None:
        while not self._pending:
            await self._arrived.wait()
        batch = self._take()
        try:
            await self._delete(batch)
        except StoreError:
            self._give_back(batch)
            raise

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
        self._runtime.observer.notify(Settled(rows=deleted))
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
