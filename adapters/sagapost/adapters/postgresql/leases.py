"""Who owns which partition: lease rows with fencing tokens, judged by the database's clock.

Lease rows rather than advisory locks, since session locks do not survive PgBouncer's transaction pooling and a lock
says nothing about a holder that is alive but stuck (docs/adr/0004).

Each method is one statement, which commits by itself. A transaction of several that a half-open link leaves in the
middle keeps its row locks for as long as the server believes in the link, and every other relay would wait for them.
"""

from __future__ import annotations

from datetime import timedelta

from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.adapters.postgresql.rows import qualified
from sagapost.core.outbox_store import Claims, LeaseToken, Partition, RelayId
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
        # Relays that stopped without a word are cleared by the living; a relay that comes back announces itself. One
        # that another is clearing, or is stuck in clearing, is left to it.
        self._heartbeat = f"""
            WITH silent AS (
                SELECT relay FROM {relays} WHERE relay <> $1 AND expires_at < clock_timestamp()
                FOR UPDATE SKIP LOCKED
            ), cleared AS (
                DELETE FROM {relays} r USING silent WHERE r.relay = silent.relay
            ), me AS (
                INSERT INTO {relays} (relay, expires_at) VALUES ($1, clock_timestamp() + $2::interval)
                ON CONFLICT (relay) DO UPDATE SET expires_at = EXCLUDED.expires_at
                RETURNING relay
            )
            SELECT 1 + (SELECT count(*) FROM {relays} WHERE relay <> $1 AND expires_at >= clock_timestamp())
            FROM me"""
        # SKIP LOCKED: two relays that claim at once share what is free instead of queueing for the same rows.
        self._claim = f"""
            WITH free AS (
                SELECT partition FROM {leases}
                WHERE owner IS NULL OR expires_at < clock_timestamp()
                ORDER BY partition LIMIT $2::int FOR UPDATE SKIP LOCKED
            )
            UPDATE {leases} l
            SET owner = $1, token = l.token + 1, expires_at = clock_timestamp() + $3::interval
            FROM free WHERE l.partition = free.partition
            RETURNING l.partition, l.token"""
        # A lease that ran out but was taken by nobody still carries our token: it is renewed, not lost.
        self._renew = f"""
            UPDATE {leases} l SET expires_at = clock_timestamp() + $4::interval
            FROM unnest($2::smallint[], $3::bigint[]) AS claim(partition, token)
            WHERE l.partition = claim.partition AND l.token = claim.token AND l.owner = $1
            RETURNING l.partition"""
        self._release = f"""
            UPDATE {leases} l SET owner = NULL, expires_at = NULL
            FROM unnest($2::smallint[], $3::bigint[]) AS claim(partition, token)
            WHERE l.partition = claim.partition AND l.token = claim.token AND l.owner = $1"""
        self._retire = f"""
            WITH given_back AS (UPDATE {leases} SET owner = NULL, expires_at = NULL WHERE owner = $1)
            DELETE FROM {relays} WHERE relay = $1"""

    async def partition_count(self) -> int:
        """See `OutboxLeases.partition_count`."""
        if self._partitions is None:
            await self._link.fetch(self._seed, DEFAULT_PARTITIONS)
            row = await self._link.fetchrow(self._count)
            self._partitions = int(row[0]) if row is not None else 0
        return self._partitions

    async def heartbeat(self, relay: RelayId, *, ttl: timedelta) -> int:
        """See `OutboxLeases.heartbeat`."""
        alive = await self._link.fetch(self._heartbeat, relay, ttl)
        return int(alive[0][0])

    async def claim(self, relay: RelayId, *, want: int, ttl: timedelta) -> Claims:
        """See `OutboxLeases.claim`."""
        rows = list(await self._link.fetch(self._claim, relay, want, ttl))
        if len(rows) < want and self._partitions and await self._link.fetch(self._remake, self._partitions):
            rows += await self._link.fetch(self._claim, relay, want - len(rows), ttl)
        return {Partition(row[0]): LeaseToken(row[1]) for row in rows}

    async def renew(self, relay: RelayId, claims: Claims, *, ttl: timedelta) -> frozenset[Partition]:
        """See `OutboxLeases.renew`."""
        rows = await self._link.fetch(self._renew, relay, list(claims), list(claims.values()), ttl)
        return frozenset(Partition(row[0]) for row in rows)

    async def release(self, relay: RelayId, claims: Claims) -> None:
        """See `OutboxLeases.release`."""
        await self._link.fetch(self._release, relay, list(claims), list(claims.values()))

    async def retire(self, relay: RelayId) -> None:
        """See `OutboxLeases.retire`."""
        await self._link.fetch(self._retire, relay)
