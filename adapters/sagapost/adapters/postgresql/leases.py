"""Who owns which partition: lease rows with fencing tokens, held for as long as their owner lives.

Lease rows rather than advisory locks, since session locks do not survive PgBouncer's transaction pooling and a lock
says nothing about a holder that is alive but stuck (docs/adr/0004).

Each relay that lives has exactly one row, in every snapshot: a heartbeat puts a new one in the place of the old in one
statement. A relay whose time is over is dead when somebody has deleted its row, and not before: who deletes it and who
moves it wait for each other there. Only then its leases may be taken. One that comes back later finds no row, and
gives up all it believed to hold without looking, since others may be taking it at this moment (docs/adr/0021).

Each method is one statement, which commits by itself. A transaction of several that a half-open link leaves in the
middle keeps its row locks for as long as the server believes in the link, and every other relay would wait for them.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.adapters.postgresql.rows import qualified
from sagapost.core.outbox_store import Claims, Heartbeat, LeaseToken, Partition, RelayId
from sagapost.outbox.tables import DEFAULT_PARTITIONS, OutboxTables

__all__ = ["PostgreSQLLeases"]


class PostgreSQLLeases:
    """`OutboxLeases` on PostgreSQL."""

    def __init__(self, link: PostgreSQLLink, tables: OutboxTables) -> None:
        self._link = link
        leases, relays = qualified(tables.leases), qualified(tables.relays)
        self._seed = f"""
            INSERT INTO {leases} (partition) SELECT generate_series(0, $1::int - 1)
            WHERE NOT EXISTS (SELECT FROM {leases}) ON CONFLICT DO NOTHING"""
        self._count = f"SELECT count(*) FROM {leases}"
        # Tokens of leases that are made again begin at the time of day, far above any that was counted up: a relay
        # that still holds an old one must not be taken for the owner.
        self._remake = f"""
            INSERT INTO {leases} (partition, token)
            SELECT n, (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM generate_series(0, $1::int - 1) n
            WHERE (SELECT count(*) FROM {leases}) < $1::int
            ON CONFLICT DO NOTHING RETURNING partition"""
        self._partitions: int | None = None
        self._heartbeat = _heartbeat(leases, relays)
        self._claim = _claim(leases, relays)
        self._release = f"""
            UPDATE {leases} l SET owner = NULL
            FROM unnest($2::smallint[], $3::bigint[]) AS claim(partition, token)
            WHERE l.partition = claim.partition AND l.token = claim.token AND l.owner = $1"""
        self._retire = f"""
            WITH given_back AS (UPDATE {leases} SET owner = NULL WHERE owner = $1)
            DELETE FROM {relays} WHERE relay = $1 AND expires_at >= coalesce($2::timestamptz, '-infinity')"""
        self._last: dict[RelayId, datetime] = {}
        """When a relay's time is over by its last heartbeat."""
        self._buried_until: datetime | None = None
        """Relays whose time was over then were looked through."""

    async def partition_count(self) -> int:
        """See `OutboxLeases.partition_count`."""
        if self._partitions is None:
            await self._link.fetch(self._seed, DEFAULT_PARTITIONS)
            row = await self._link.fetchrow(self._count)
            self._partitions = int(row[0]) if row is not None else 0
        return self._partitions

    async def heartbeat(self, relay: RelayId, claims: Claims, *, ttl: timedelta) -> Heartbeat:
        """See `OutboxLeases.heartbeat`."""
        last, looked = self._last.get(relay), self._buried_until
        rows = await self._link.fetch(self._heartbeat, relay, ttl, last, looked, list(claims), list(claims.values()))
        self._last[relay], self._buried_until, alive, held = rows[0]
        return Heartbeat(int(alive), frozenset(map(Partition, held or ())))

    async def claim(self, relay: RelayId, *, want: int) -> Claims:
        """See `OutboxLeases.claim`."""
        rows = list(await self._link.fetch(self._claim, relay, want))
        if len(rows) < want and self._partitions and await self._link.fetch(self._remake, self._partitions):
            rows += await self._link.fetch(self._claim, relay, want - len(rows))
        if len(rows) < want:
            # Somebody who is dead may have been passed over: its row was locked, or came late.
            self._buried_until = None
        return {Partition(row[0]): LeaseToken(row[1]) for row in rows}

    async def release(self, relay: RelayId, claims: Claims) -> None:
        """See `OutboxLeases.release`."""
        await self._link.fetch(self._release, relay, list(claims), list(claims.values()))

    async def retire(self, relay: RelayId) -> None:
        """See `OutboxLeases.retire`."""
        await self._link.fetch(self._retire, relay, self._last.pop(relay, None))


def _heartbeat(leases: str, relays: str) -> str:
    """Return the statement of a heartbeat: of $1, who lives for $2 from now on.

    What it reads of the relays is bounded by times: since $3, when its own time was over by its last heartbeat (the
    outcome of one may be unknown, so the row may be a later one), and since $4, when it last looked for the dead. Now
    is when the statement began, since only a time that does not change meanwhile can be looked up in an index.
    A dead relay whose row another is deleting, or is stuck in deleting, is left to it.
    """
    return f"""
        WITH alive AS (
            DELETE FROM {relays} WHERE relay = $1 AND expires_at >= coalesce($3::timestamptz, '-infinity')
            RETURNING 1
        ), me AS (
            INSERT INTO {relays} (relay, expires_at) VALUES ($1, statement_timestamp() + $2::interval)
            RETURNING expires_at
        ), silent AS (
            SELECT expires_at, relay FROM {relays}
            WHERE expires_at >= coalesce($4::timestamptz, '-infinity') AND expires_at < statement_timestamp()
              AND relay <> $1
            FOR UPDATE SKIP LOCKED
        ), buried AS (
            DELETE FROM {relays} r USING silent WHERE r.expires_at = silent.expires_at AND r.relay = silent.relay
        ), given_up AS (
            UPDATE {leases} SET owner = NULL WHERE owner = $1 AND NOT EXISTS (SELECT FROM alive)
        )
        SELECT me.expires_at, statement_timestamp(),
               1 + (SELECT count(DISTINCT relay) FROM {relays}
                    WHERE expires_at >= statement_timestamp() AND relay <> $1),
               (SELECT array_agg(l.partition)
                FROM {leases} l JOIN unnest($5::smallint[], $6::bigint[]) AS claim(partition, token)
                  ON l.partition = claim.partition AND l.token = claim.token
                WHERE l.owner = $1 AND EXISTS (SELECT FROM alive))
        FROM me"""


def _claim(leases: str, relays: str) -> str:
    """Return the statement that takes up to $2 leases for $1.

    Whether an owner is dead is judged by one snapshot, and the lease may change hands before it is locked: its token
    must still be the one that was judged. SKIP LOCKED: two relays that claim at once share what is free instead of
    queueing for the same rows.
    """
    return f"""
        WITH free AS MATERIALIZED (
            SELECT partition, token FROM {leases} l
            WHERE owner IS NULL OR NOT EXISTS (SELECT FROM {relays} r WHERE r.relay = l.owner)
        ), taken AS (
            SELECT l.partition FROM {leases} l JOIN free ON l.partition = free.partition AND l.token = free.token
            ORDER BY l.partition LIMIT $2::int FOR UPDATE OF l SKIP LOCKED
        )
        UPDATE {leases} l SET owner = $1, token = l.token + 1
        FROM taken WHERE l.partition = taken.partition
        RETURNING l.partition, l.token"""
