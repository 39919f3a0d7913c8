"""Terminal writes: delete what is published, keep what was refused, bury what is given up.

Every statement filters on the lease token, so a relay that lost a partition without noticing changes nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.adapters.postgresql.leases import PostgreSQLLeases
from sagapost.adapters.postgresql.rows import ENVELOPE, qualified
from sagapost.core.errors import LeaseLostError, StoreError, StoreRefusedError, StoreUnavailableError
from sagapost.core.outbox_store import Claims, Failure, Partition, Position, Published
from sagapost.outbox.tables import OutboxTables

__all__ = ["PostgreSQLSettlement"]


class PostgreSQLSettlement:
    """`OutboxSettlement` on PostgreSQL."""

    def __init__(self, link: PostgreSQLLink, tables: OutboxTables, ownership: PostgreSQLLeases) -> None:
        self._link = link
        self._leases = ownership
        outbox, dead, leases = qualified(tables.outbox), qualified(tables.dead), qualified(tables.leases)
        # The claims arrive as two arrays; a partition counts only while its token is unchanged.
        held = f"""
            WITH held AS MATERIALIZED (
                SELECT l.partition FROM {leases} l
                JOIN unnest($2::smallint[], $3::bigint[]) AS claim(partition, token)
                  ON l.partition = claim.partition AND l.token = claim.token
            )"""
        self._delete = _deletion(held, outbox)
        self._record = f"""{held}
            UPDATE {outbox} o
            SET attempts = CASE WHEN f.counts OR o.attempts = 0 THEN least(o.attempts::int + 1, 32767)
                                ELSE o.attempts END,
                last_error = f.reason, next_attempt_at = clock_timestamp() + f.retry_after
            FROM unnest($1::bigint[], $5::text[], $6::interval[], $7::boolean[])
              AS f(position, reason, retry_after, counts)
            WHERE o.position = f.position AND o.slot % $4::int IN (SELECT partition FROM held)
            RETURNING o.position"""
        # The very same row was buried before, and somebody put it back from a backup.
        again = """ON CONFLICT (position, event_id) DO UPDATE SET attempts = EXCLUDED.attempts,
                last_error = EXCLUDED.last_error, blocks_key = EXCLUDED.blocks_key, died_at = EXCLUDED.died_at"""
        # One statement: the row is in exactly one of the two tables at every moment.
        self._bury = f"""{held}, gone AS (
                DELETE FROM {outbox} o
                USING unnest($1::bigint[], $5::text[]) AS f(position, reason)
                WHERE o.position = f.position AND o.slot % $4::int IN (SELECT partition FROM held)
                RETURNING o.*, f.reason
            )
            INSERT INTO {dead} (position, {ENVELOPE}, attempts, last_error, blocks_key)
            SELECT position, {ENVELOPE}, least(attempts::int + 1, 32767), reason,
                   CASE WHEN $6::boolean AND partitionkey IS NOT NULL THEN 1 ELSE 0 END
            FROM gone
            {again}
            RETURNING position"""
        # Behind its dead letter, if that is still there: an operator may be redriving the key at this moment.
        self._bury_followers = f"""{held}, gone AS (
                DELETE FROM {outbox} o
                WHERE o.partitionkey = $1::text
                  AND o.position > (SELECT min(position) FROM {dead} WHERE partitionkey = $1::text AND blocks_key = 1)
                  AND o.slot % $4::int IN (SELECT partition FROM held)
                RETURNING o.*
            )
            INSERT INTO {dead} (position, {ENVELOPE}, attempts, last_error, blocks_key)
            SELECT position, {ENVELOPE}, attempts, coalesce(last_error, $5::text), 1 FROM gone
            {again}
            RETURNING position"""
        self._blocked = f"""
            SELECT partitionkey, min(slot) % $1::int, min(position) FROM {dead}
            WHERE blocks_key = 1 AND slot % $1::int = ANY($2::int[]) GROUP BY partitionkey"""
        self._held = f"{held} SELECT partition FROM held WHERE $1::int IS NULL"

    async def delete_published(self, rows: Mapping[Partition, Sequence[Published]], claims: Claims) -> int:
        """See `OutboxSettlement.delete_published`."""
        partitions, tokens = _arrays({p: claims[p] for p in rows if p in claims})
        positions = ",".join([str(position) for group in rows.values() for position, _ in group])
        ids = ",".join([event_id for group in rows.values() for _, event_id in group])
        record = await self._link.fetchrow(
            self._delete,
            f"{{{positions}}}",
            partitions,
            tokens,
            await self._leases.partition_count(),
            f"{{{ids}}}",
        )
        deleted, held = (0, None) if record is None else (record[0], record[1])
        lost = frozenset(rows) - frozenset(held or ())
        if lost:
            raise LeaseLostError(partitions=lost)
        return int(deleted)

    async def record_failures(self, failures: Sequence[Failure], claims: Claims) -> None:
        """See `OutboxSettlement.record_failures`."""
        try:
            await self._record_all(failures, claims)
        except (StoreUnavailableError, StoreRefusedError, LeaseLostError):
            raise
        except StoreError:
            # One of the rows breaks a rule that came later, and cannot be kept where it is.
            if len(failures) == 1:
                await self.bury(failures, claims, block_keys=True)
                return
            for failure in failures:
                await self.record_failures([failure], claims)

    async def _record_all(self, failures: Sequence[Failure], claims: Claims) -> None:
        partitions, tokens = _arrays(claims)
        written = await self._link.fetch(
            self._record,
            [f.position for f in failures],
            partitions,
            tokens,
            await self._leases.partition_count(),
            [f.reason for f in failures],
            [f.retry_after for f in failures],
            [f.counts for f in failures],
        )
        if len(written) < len(failures):
            await self._raise_if_lost(failures, claims)

    async def bury(self, failures: Sequence[Failure], claims: Claims, *, block_keys: bool) -> int:
        """See `OutboxSettlement.bury`."""
        partitions, tokens = _arrays(claims)
        written = await self._link.fetch(
            self._bury,
            [f.position for f in failures],
            partitions,
            tokens,
            await self._leases.partition_count(),
            [f.reason for f in failures],
            block_keys,
        )
        if len(written) < len(failures):
            await self._raise_if_lost(failures, claims)
        return len(written)

    async def bury_followers(self, key: str, partition: Partition, claims: Claims) -> int:
        """See `OutboxSettlement.bury_followers`."""
        partitions, tokens = _arrays({partition: claims[partition]} if partition in claims else {})
        reason = "parked behind an earlier dead letter of the same key"
        written = await self._link.fetch(
            self._bury_followers, key, partitions, tokens, await self._leases.partition_count(), reason
        )
        return len(written)

    async def blocked_keys(self, claims: Claims) -> Mapping[str, tuple[Partition, Position]]:
        """See `OutboxSettlement.blocked_keys`."""
        rows = await self._link.fetch(self._blocked, await self._leases.partition_count(), [int(p) for p in claims])
        return {row[0]: (Partition(row[1]), Position(row[2])) for row in rows}

    async def _raise_if_lost(self, failures: Sequence[Failure], claims: Claims) -> None:
        """Tell a row that is gone (fine, someone settled it) from a lease that is gone."""
        partitions, tokens = _arrays(claims)
        rows = await self._link.fetch(self._held, None, partitions, tokens)
        lost = frozenset(f.partition for f in failures) - frozenset(row[0] for row in rows)
        if lost:
            raise LeaseLostError(partitions=lost)


def _arrays(claims: Claims) -> tuple[list[int], list[int]]:
    return [int(p) for p in claims], [int(t) for t in claims.values()]


def _deletion(held: str, outbox: str) -> str:
    """Return the statement that deletes what is published.

    Only the number of rows and the leases that held come back, not a row each. Positions and ids go out as the text of
    an array: asyncpg asks of each element of a list, in Python, whether it is a list itself.
    """
    return f"""{held}, gone AS (
            DELETE FROM {outbox} o USING unnest($1::text::bigint[], $5::text::uuid[]) AS published(position, event_id)
            WHERE o.position = published.position AND o.event_id = published.event_id
              AND o.slot % $4::int IN (SELECT partition FROM held)
            RETURNING 1
        )
        SELECT count(*), (SELECT array_agg(partition) FROM held) FROM gone"""
