"""Terminal writes: delete what is published, keep what was refused, bury what is given up.

Each is one write transaction that first reads the lease tokens, so a relay that lost a partition without noticing
changes nothing there; SQLite lets nobody else write in between.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from sagapost.adapters.sqlite.connection import SQLiteLink
from sagapost.adapters.sqlite.leases import SQLiteLeases
from sagapost.adapters.sqlite.rows import ENVELOPE, LATER, json_array, modifier, quoted
from sagapost.core.errors import LeaseLostError
from sagapost.core.outbox_store import Claims, Failure, Partition, Position, Published
from sagapost.outbox.tables import OutboxTables

__all__ = ["SQLiteSettlement"]


class SQLiteSettlement:
    """`OutboxSettlement` on SQLite."""

    def __init__(self, link: SQLiteLink, tables: OutboxTables, ownership: SQLiteLeases) -> None:
        self._link = link
        self._leases = ownership
        outbox, dead, leases = quoted(tables.outbox), quoted(tables.dead), quoted(tables.leases)
        self._tokens = f"SELECT partition, token FROM {leases}"
        mine = "slot % ? = ?"
        self._delete = f"""
            DELETE FROM {outbox}
            WHERE position IN (
                SELECT o.position FROM json_each(?) AS published
                JOIN {outbox} AS o ON o.position = json_extract(published.value, '$[0]')
                WHERE o.event_id = json_extract(published.value, '$[1]')
            ) AND {mine}"""
        self._record = f"""
            UPDATE {outbox} SET attempts = CASE WHEN ? OR attempts = 0 THEN attempts + 1 ELSE attempts END,
                last_error = ?, next_attempt_at = {LATER}
            WHERE position = ? AND {mine}"""
        # REPLACE: the very same row was buried before, and somebody put it back from a backup.
        into_dead = f"INSERT OR REPLACE INTO {dead} (position, {ENVELOPE}, attempts, last_error, blocks_key)"
        self._bury = f"""{into_dead}
            SELECT position, {ENVELOPE}, min(attempts + 1, 32767), ?,
                   CASE WHEN ? AND partitionkey IS NOT NULL THEN 1 ELSE 0 END
            FROM {outbox} WHERE position = ? AND {mine}"""
        self._buried = f"DELETE FROM {outbox} WHERE position = ? AND {mine}"
        # Behind its dead letter, if that is still there: an operator may just have redriven the key.
        behind = f"""position > (
            SELECT min(d.position) FROM {dead} d WHERE d.partitionkey = {outbox}.partitionkey AND d.blocks_key = 1)"""
        self._bury_followers = f"""{into_dead}
            SELECT position, {ENVELOPE}, attempts, coalesce(last_error, ?), 1
            FROM {outbox} WHERE partitionkey = ? AND {behind} AND {mine}"""
        self._buried_followers = f"DELETE FROM {outbox} WHERE partitionkey = ? AND {behind} AND {mine}"
        self._blocked = f"""
            SELECT partitionkey, min(slot) % ?, min(position) FROM {dead}
            WHERE blocks_key = 1 AND slot % ? IN (SELECT value FROM json_each(?))
            GROUP BY partitionkey"""

    async def delete_published(self, rows: Mapping[Partition, Sequence[Published]], claims: Claims) -> int:
        """See `OutboxSettlement.delete_published`."""
        partitions = await self._leases.partition_count()

        def work(connection: sqlite3.Connection) -> tuple[int, frozenset[Partition]]:
            held = self._held(connection, claims)
            deleted = 0
            for partition in held.intersection(rows):
                cursor = connection.execute(self._delete, (_published(rows[partition]), partitions, partition))
                deleted += cursor.rowcount
            return deleted, held

        deleted, held = await self._link.write(work)
        _raise_if_lost(rows, held)
        return deleted

    async def record_failures(self, failures: Sequence[Failure], claims: Claims) -> None:
        """See `OutboxSettlement.record_failures`."""
        partitions = await self._leases.partition_count()

        def work(connection: sqlite3.Connection) -> frozenset[Partition]:
            held = self._held(connection, claims)
            for f in failures:
                if f.partition in held:
                    self._record_one(connection, f, partitions)
            return held

        _raise_if_lost((f.partition for f in failures), await self._link.write(work))

    def _record_one(self, connection: sqlite3.Connection, failure: Failure, partitions: int) -> None:
        row = (failure.position, partitions, failure.partition)
        try:
            connection.execute(self._record, (failure.counts, failure.reason, modifier(failure.retry_after), *row))
        except sqlite3.IntegrityError:
            # The row breaks a rule that came later, and cannot be kept where it is.
            connection.execute(self._bury, (failure.reason, True, *row))
            connection.execute(self._buried, row)

    async def bury(self, failures: Sequence[Failure], claims: Claims, *, block_keys: bool) -> int:
        """See `OutboxSettlement.bury`."""
        partitions = await self._leases.partition_count()

        def work(connection: sqlite3.Connection) -> tuple[int, frozenset[Partition]]:
            held = self._held(connection, claims)
            buried = 0
            for failure in failures:
                if failure.partition in held:
                    row = (failure.position, partitions, failure.partition)
                    connection.execute(self._bury, (failure.reason, block_keys, *row))
                    buried += connection.execute(self._buried, row).rowcount
            return buried, held

        buried, held = await self._link.write(work)
        _raise_if_lost((f.partition for f in failures), held)
        return buried

    async def bury_followers(self, key: str, partition: Partition, claims: Claims) -> int:
        """See `OutboxSettlement.bury_followers`."""
        partitions = await self._leases.partition_count()
        reason = "parked behind an earlier dead letter of the same key"

        def work(connection: sqlite3.Connection) -> int:
            if partition not in self._held(connection, claims):
                return 0
            connection.execute(self._bury_followers, (reason, key, partitions, partition))
            return connection.execute(self._buried_followers, (key, partitions, partition)).rowcount

        return await self._link.write(work)

    async def blocked_keys(self, claims: Claims) -> Mapping[str, tuple[Partition, Position]]:
        """See `OutboxSettlement.blocked_keys`."""
        partitions = await self._leases.partition_count()

        def work(connection: sqlite3.Connection) -> dict[str, tuple[Partition, Position]]:
            rows = connection.execute(self._blocked, (partitions, partitions, json_array(claims)))
            return {key: (Partition(partition), Position(position)) for key, partition, position in rows}

        return await self._link.read(work)

    def _held(self, connection: sqlite3.Connection, claims: Claims) -> frozenset[Partition]:
        """Return the claimed partitions whose token is unchanged."""
        tokens = dict(connection.execute(self._tokens))
        return frozenset(partition for partition, token in claims.items() if tokens.get(partition) == token)


def _published(rows: Sequence[Published]) -> str:
    """Return the parameter of ``json_each(?)``: positions with ids as they are stored."""
    return json.dumps([(position, event_id.replace("-", "")) for position, event_id in rows])


def _raise_if_lost(partitions: Iterable[Partition], held: frozenset[Partition]) -> None:
    lost = frozenset(partitions) - held
    if lost:
        raise LeaseLostError(partitions=lost)
