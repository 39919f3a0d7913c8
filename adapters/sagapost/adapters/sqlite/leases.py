"""Which relay works on this database: one at a time, and another takes over when it goes.

Several relays would only queue for the one write lock, so the partitions are not shared: a relay gets all of them or
none, and one that gets none asks again at every heartbeat. Tokens and expiry are those of every store, since a relay
that was suspended must notice that another one took over.
"""

from __future__ import annotations

import sqlite3
from datetime import timedelta

from sagapost.adapters.sqlite.connection import SQLiteLink
from sagapost.adapters.sqlite.rows import LATER, NOW, json_array, modifier, quoted
from sagapost.core.outbox_store import Claims, Heartbeat, LeaseToken, Partition, RelayId
from sagapost.outbox.tables import DEFAULT_PARTITIONS, OutboxTables

__all__ = ["SQLiteLeases"]


class SQLiteLeases:
    """`OutboxLeases` on SQLite."""

    def __init__(self, link: SQLiteLink, tables: OutboxTables) -> None:
        self._link = link
        leases, relays = quoted(tables.leases), quoted(tables.relays)
        self._count = f"SELECT count(*) FROM {leases}"
        self._seed = f"INSERT INTO {leases} (partition) VALUES (?)"
        # Tokens of leases that are made again begin at the time of day, far above any that was counted up: a relay
        # that still holds an old one must not be taken for the owner.
        self._remake = f"""
            INSERT OR IGNORE INTO {leases} (partition, token)
            SELECT value, CAST(strftime('%s', 'now') AS INTEGER) * 1000 FROM json_each(?)"""
        self._partitions = 0
        self._clear = f"DELETE FROM {relays} WHERE relay = ? OR expires_at < {NOW}"
        self._heartbeat = f"INSERT INTO {relays} (relay, expires_at) VALUES (?, {LATER})"
        living = f"SELECT relay FROM {relays} WHERE expires_at >= {NOW}"
        self._other = f"SELECT 1 FROM {leases} WHERE owner <> ? AND owner IN ({living}) LIMIT 1"
        self._claim = f"""
            UPDATE {leases} SET owner = ?, token = token + 1
            WHERE partition IN (
                SELECT partition FROM {leases} WHERE owner IS NULL OR owner NOT IN ({living})
                ORDER BY partition LIMIT ?
            )
            RETURNING partition, token"""
        # A lease that ran out but was taken by nobody still carries our token: it holds on.
        self._held = f"SELECT partition, token FROM {leases} WHERE owner = ?"
        self._release = f"UPDATE {leases} SET owner = NULL WHERE partition = ? AND token = ? AND owner = ?"
        self._release_all = f"UPDATE {leases} SET owner = NULL WHERE owner = ?"
        self._forget = f"DELETE FROM {relays} WHERE relay = ?"

    async def partition_count(self) -> int:
        """See `OutboxLeases.partition_count`."""

        def count(connection: sqlite3.Connection) -> int:
            (found,) = connection.execute(self._count).fetchone()
            return int(found)

        def seed(connection: sqlite3.Connection) -> int:
            if count(connection) == 0:
                connection.executemany(self._seed, [(n,) for n in range(DEFAULT_PARTITIONS)])
            return count(connection)

        if not self._partitions:
            self._partitions = await self._link.read(count) or await self._link.write(seed)
        return self._partitions

    async def heartbeat(self, relay: RelayId, claims: Claims, *, ttl: timedelta) -> Heartbeat:
        """See `OutboxLeases.heartbeat`; one is alive, since the partitions are not shared with those that stand by."""

        def work(connection: sqlite3.Connection) -> frozenset[Partition]:
            connection.execute(self._clear, (relay.hex,))
            connection.execute(self._heartbeat, (relay.hex, modifier(ttl)))
            held = dict(connection.execute(self._held, (relay.hex,)).fetchall())
            return frozenset(partition for partition, token in claims.items() if held.get(partition) == token)

        return Heartbeat(1, await self._link.write(work))

    async def claim(self, relay: RelayId, *, want: int) -> Claims:
        """See `OutboxLeases.claim`; nothing while another relay holds any partition."""

        def work(connection: sqlite3.Connection) -> Claims:
            if connection.execute(self._other, (relay.hex,)).fetchone() is not None:
                return {}
            rows = connection.execute(self._claim, (relay.hex, want)).fetchall()
            if len(rows) < want:
                every = json_array(range(self._partitions))
                if connection.execute(self._remake, (every,)).rowcount > 0:
                    rows += connection.execute(self._claim, (relay.hex, want - len(rows))).fetchall()
            return {Partition(partition): LeaseToken(token) for partition, token in rows}

        return await self._link.write(work)

    async def release(self, relay: RelayId, claims: Claims) -> None:
        """See `OutboxLeases.release`."""

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(self._release, [(p, token, relay.hex) for p, token in claims.items()])

        await self._link.write(work)

    async def retire(self, relay: RelayId) -> None:
        """See `OutboxLeases.retire`."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(self._release_all, (relay.hex,))
            connection.execute(self._forget, (relay.hex,))

        await self._link.write(work)
