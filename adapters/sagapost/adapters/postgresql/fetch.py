"""The snapshot delta: every committed row once, in causal order per key, at a cost that follows the rows returned.

Sequence order is not commit order, so a cursor on `position` alone would skip a transaction that commits late. Instead
each row stores the id of the transaction that wrote it, and the reader works in *generations*. A generation returns
what is visible in a snapshot S' and was not visible in the snapshot S of the generation before, sorted by position:

* rows of transactions that were in progress in S (*stragglers*, ``xid = ANY(S.xip)``), and
* rows of transactions that started after S (*newcomers*, ``xid >= S.xmax``).

If T1 committed before T2 inserted, T1's position is lower and T1 is visible wherever T2 is: one generation sorted by
position, or two generations, both keep them in order. Nothing waits for the oldest open transaction
(``pg_snapshot_xmin``), and nothing already deleted is looked at again, so a transaction left open elsewhere costs
nothing.

A small generation (the usual case) is one statement whose own snapshot is S'. A large one, and the first (S empty:
the backlog), is paged along the primary key, filtered to what S' sees and S did not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import Table

from sagapost.adapters.postgresql.connection import Link
from sagapost.adapters.postgresql.rows import ROW_COLUMNS, decode_rows, qualified
from sagapost.core.outbox_store import Claims, FetchPage, OutboxRow, Position

__all__ = ["FetchStatements", "SnapshotReader"]

Snapshot: TypeAlias = tuple[int, int, tuple[int, ...]]
"""(xmin, xmax, xip) as asyncpg reads a pg_snapshot."""

_NOTHING: Snapshot = (1, 1, ())
"""A snapshot that sees no transaction of ours: ids below xmin are visible, and the smallest normal id is 3."""


class FetchStatements:
    """The reader's SQL, for one outbox table. `owned` variants filter on the relay's partitions."""

    def __init__(self, outbox: Table) -> None:
        table = qualified(outbox)

        def delta(owned: str) -> str:
            # One statement, so that its own snapshot is S' and what it sees is exactly what is visible in S'.
            # Stragglers and newcomers are read along the index on (xid, position) as two separate scans: an OR with
            # ORDER BY position LIMIT makes the planner walk the primary key over dead entries (0.7 ms became 29 ms
            # after 200,000 rows under an open transaction). The ORDER BY in each scan keeps the planner on that
            # index even when the table's statistics are empty.
            # The row with position 0 is the header: the snapshot, and whether the delta was over the limits, in
            # which case no rows are sent and the generation is paged.
            return f"""
                WITH delta AS MATERIALIZED (
                    SELECT r.* FROM unnest($1::xid8[]) AS straggler(id), LATERAL (
                        SELECT {ROW_COLUMNS} FROM {table} WHERE xid = straggler.id {owned}
                        ORDER BY position LIMIT $3::int + 1
                    ) r
                    UNION ALL
                    SELECT r.* FROM (
                        SELECT {ROW_COLUMNS} FROM {table} WHERE xid >= $2::xid8 {owned}
                        ORDER BY xid, position LIMIT $3::int + 1
                    ) r
                ), total AS MATERIALIZED (
                    SELECT count(*) <= $3::int AND coalesce(sum(octet_length(data)), 0) <= $4::int8 AS fits FROM delta
                )
                SELECT 0 AS position, 0 AS key_hash, pg_current_snapshot()::text AS topic,
                       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                       0, CASE WHEN fits THEN 1 ELSE 0 END::float8
                FROM total
                UNION ALL
                SELECT delta.* FROM delta, total WHERE fits
                ORDER BY position
            """

        def page(owned: str) -> str:
            # Along the primary key from the last position: dead entries before it are never visited.
            # Rows are cut by size inside the database (octet_length reads a toasted value's header, not the value),
            # so a page of 1 MiB rows never reaches this process whole.
            return f"""
                SELECT {", ".join(f"p.{name}" for name in PAGE_NAMES)}
                FROM (
                    SELECT c.*, sum(octet_length(c.data)) OVER (ORDER BY c.position) - octet_length(c.data) AS before
                    FROM (
                        SELECT {ROW_COLUMNS} FROM {table}
                        WHERE position > $1::int8 {owned}
                          AND pg_visible_in_snapshot(xid, $2::pg_snapshot)
                          AND (NOT pg_visible_in_snapshot(xid, $3::pg_snapshot)
                               OR EXISTS (SELECT FROM unnest($6::text[], $7::int8[]) AS replay(key, above)
                                          WHERE partitionkey = replay.key AND position > replay.above))
                        ORDER BY position LIMIT $4::int
                    ) c
                ) p
                WHERE p.before < $5::int8
                ORDER BY p.position
            """

        def low(owned: str) -> str:
            # Where a generation that must be paged begins. Two index-only scans.
            return f"""
                SELECT least(
                    (SELECT min(position) FROM {table} WHERE xid = ANY($1::xid8[]) {owned}),
                    (SELECT min(position) FROM {table} WHERE xid >= $2::xid8 {owned})
                )
            """

        mine = "AND key_hash % $%s::int = ANY($%s::int[])"
        self.delta_all, self.delta_owned = delta(""), delta(mine.replace("$%s", "$5", 1).replace("$%s", "$6", 1))
        self.page_all, self.page_owned = page(""), page(mine.replace("$%s", "$8", 1).replace("$%s", "$9", 1))
        self.low_all, self.low_owned = low(""), low(mine.replace("$%s", "$3", 1).replace("$%s", "$4", 1))
        self.snapshot = "SELECT pg_current_snapshot()"
        self.revisit = f"SELECT {ROW_COLUMNS} FROM {table} WHERE position = ANY($1::int8[]) ORDER BY position"
        # After a dump is restored into another cluster, transaction ids restart: rows then carry ids from the future,
        # which no snapshot will see for a long time. They are visible to us, so they are committed: stamp them anew.
        # Costs one index probe when there are none.
        self.restamp = (
            f"UPDATE {table} SET xid = pg_current_xact_id() "
            "WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()) AND xid <> pg_current_xact_id()"
        )


PAGE_NAMES = (
    "position", "key_hash", "topic", "event_id", "source", "type", "time", "subject", "datacontenttype", "dataschema",
    "correlationid", "causationid", "partitionkey", "traceparent", "tracestate", "extensions", "data", "attempts",
    "retry_in",
)  # fmt: skip


@dataclass(slots=True)
class _Walk:
    """A generation being paged along the primary key."""

    target: Snapshot
    since: Snapshot
    last: int
    replays: Mapping[str, Position]


class SnapshotReader:
    """`OutboxReader` on PostgreSQL; see the module's docstring for the algorithm."""

    def __init__(self, link: Link, statements: FetchStatements, partitions: int) -> None:
        self._link = link
        self._sql = statements
        self._partitions = partitions
        self._seen: Snapshot | None = None
        self._walk: _Walk | None = None
        self._revisits: set[Position] = set()
        self._replays: dict[str, Position] = {}

    def restart(self) -> None:
        """Start again from the oldest committed row."""
        self._seen = None
        self._walk = None
        self._revisits.clear()
        self._replays.clear()

    def revisit(self, positions: Collection[Position]) -> None:
        """Return these rows again with the next fetch."""
        self._revisits.update(positions)

    def replay_key(self, key: str, *, above: Position) -> None:
        """Return this key's rows above `above` again, from the next generation on."""
        self._replays[key] = min(above, self._replays.get(key, above))

    async def fetch(self, claims: Claims, *, max_rows: int, max_bytes: int) -> FetchPage:
        """Return the next rows; see `OutboxReader.fetch`."""
        revisited, missing = await self._fetch_revisits(claims)
        if not claims or max_rows == 0:
            return FetchPage(rows=revisited, caught_up=not claims, missing=missing)
        if self._walk is None and self._seen is None:
            await self._begin_backlog()
        released: frozenset[str] = frozenset()
        if self._walk is None and self._replays:
            released = frozenset(self._replays)
            await self._begin_replay()
        if self._walk is None:
            page = await self._fetch_delta(claims, max_rows, max_bytes)
            if page is not None:
                rows, in_progress = page
                return FetchPage(
                    rows=_merge(revisited, rows),
                    caught_up=True,
                    writers_in_progress=in_progress,
                    missing=missing,
                )
        rows, caught_up = await self._fetch_walk(claims, max_rows, max_bytes)
        return FetchPage(
            rows=_merge(revisited, rows),
            caught_up=caught_up,
            writers_in_progress=True,
            released=released,
            missing=missing,
        )

    async def _begin_backlog(self) -> None:
        """First generation: everything visible now."""
        await self._link.fetch(self._sql.restamp)
        self._walk = _Walk(target=await self._snapshot(), since=_NOTHING, last=0, replays={})

    async def _begin_replay(self) -> None:
        """A generation that also returns rows of released keys; they may lie far back, so it is paged."""
        assert self._seen is not None  # noqa: S101 - fetch() begins the backlog first
        replays, self._replays = self._replays, {}
        target = await self._snapshot()
        low = await self._low(self._seen, None)
        above = min(replays.values())
        self._walk = _Walk(target, self._seen, above if low is None else min(above, low - 1), replays)

    async def _fetch_delta(
        self, claims: Claims, max_rows: int, max_bytes: int
    ) -> tuple[Sequence[OutboxRow], bool] | None:
        """Fetch a whole generation in one statement, or set up its paging and return None if it is large."""
        assert self._seen is not None  # noqa: S101 - fetch() begins the backlog first
        _, xmax, xip = self._seen
        owned = self._owned(claims)
        sql = self._sql.delta_owned if owned else self._sql.delta_all
        records = await self._link.fetch(sql, xip, xmax, max_rows, max_bytes, *owned)
        header = records[0]
        target = _parse(header[2])
        if header[18] == 1.0:
            self._seen = target
            return decode_rows(records[1:], self._partitions), _in_progress(target)
        low = await self._low(self._seen, claims)
        if low is None:
            # Deleted by hand between the two statements; the next fetch sees what is left.
            return [], True
        self._walk = _Walk(target=target, since=self._seen, last=low - 1, replays={})
        return None

    async def _fetch_walk(self, claims: Claims, max_rows: int, max_bytes: int) -> tuple[Sequence[OutboxRow], bool]:
        """Fetch the next page of the generation being paged."""
        walk = self._walk
        assert walk is not None  # noqa: S101 - only called while paging
        owned = self._owned(claims)
        sql = self._sql.page_owned if owned else self._sql.page_all
        records = await self._link.fetch(
            sql,
            walk.last,
            walk.target,
            walk.since,
            max_rows,
            max_bytes,
            list(walk.replays),
            list(walk.replays.values()),
            *owned,
        )
        if records:
            walk.last = records[-1][0]
            return decode_rows(records, self._partitions), False
        self._seen, self._walk = walk.target, None
        return [], False

    async def _fetch_revisits(self, claims: Claims) -> tuple[list[OutboxRow], frozenset[Position]]:
        if not self._revisits:
            return [], frozenset()
        wanted = frozenset(self._revisits)
        records = await self._link.fetch(self._sql.revisit, list(wanted))
        self._revisits -= wanted
        rows = decode_rows(records, self._partitions)
        found = {row.position for row in rows}
        return [row for row in rows if row.partition in claims], frozenset(wanted - found)

    async def _snapshot(self) -> Snapshot:
        row = await self._link.fetchrow(self._sql.snapshot)
        assert row is not None  # noqa: S101 - a SELECT without FROM always has a row
        snapshot: Snapshot = row[0]
        return snapshot

    async def _low(self, since: Snapshot, claims: Claims | None) -> int | None:
        _, xmax, xip = since
        owned = self._owned(claims) if claims is not None else ()
        row = await self._link.fetchrow(self._sql.low_owned if owned else self._sql.low_all, xip, xmax, *owned)
        assert row is not None  # noqa: S101 - a SELECT without FROM always has a row
        low: int | None = row[0]
        return low

    def _owned(self, claims: Claims) -> tuple[int, list[int]] | tuple[()]:
        """The arguments of the partition filter; empty when this relay owns every partition."""
        return () if len(claims) == self._partitions else (self._partitions, [int(p) for p in claims])


def _merge(revisited: Sequence[OutboxRow], rows: Sequence[OutboxRow]) -> Sequence[OutboxRow]:
    if not revisited:
        return rows
    again = {row.position for row in revisited}
    return sorted([*revisited, *(row for row in rows if row.position not in again)], key=_position)


def _position(row: OutboxRow) -> int:
    return row.position


def _parse(snapshot: str) -> Snapshot:
    """Read the text form ``xmin:xmax:xip,xip``."""
    xmin, xmax, xip = snapshot.split(":")
    return int(xmin), int(xmax), tuple(int(x) for x in xip.split(",")) if xip else ()


def _in_progress(snapshot: Snapshot) -> bool:
    """Whether transactions that may write rows were open in the snapshot."""
    return bool(snapshot[2])
