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

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.adapters.postgresql.fetch_statements import FetchStatements
from sagapost.adapters.postgresql.rows import decode_rows
from sagapost.core.errors import StoreRefusedError
from sagapost.core.outbox_store import Claims, FetchPage, OutboxRow, Position
from sagapost.outbox.reading import PLACE

__all__ = ["SnapshotReader", "SnapshotSweeper"]

_log = logging.getLogger("sagapost.postgresql")

Snapshot: TypeAlias = tuple[int, int, tuple[int, ...]]
"""(xmin, xmax, xip) as asyncpg reads a pg_snapshot."""

_NOTHING: Snapshot = (1, 1, ())
"""A snapshot that sees no transaction of ours: ids below xmin are visible, and the smallest normal id is 3."""

_BEFORE_ALL = -(2**63)
"""Below every position: what was buried before it had one is redriven to a negative one."""
_DATA = PLACE["data"]
_SERVER, _TEXT, _FITS = PLACE["time"], PLACE["topic"], PLACE["retry_in"]
"""What the header of a page says, and where: which server answers, a snapshot or position, whether the delta fits."""
_SHARED_STRETCH = 4
"""Positions looked at for one page, in pages, where some of the rows belong to other relays."""


@dataclass(slots=True)
class _Walk:
    """A generation being paged along the primary key."""

    target: Snapshot
    since: Snapshot
    last: int
    replays: Mapping[str, Position]


class SnapshotReader:
    """`OutboxReader` on PostgreSQL; see the module's docstring for the algorithm."""

    def __init__(self, link: PostgreSQLLink, statements: FetchStatements, partitions: int) -> None:
        self._link = link
        self._sql = statements
        self._partitions = partitions
        self._seen: Snapshot | None = None
        self._walk: _Walk | None = None
        self._revisits: set[Position] = set()
        self._replays: dict[str, Position] = {}
        self._opened = 0
        self._went_back = False
        self._may_not_advance = False
        self._server: datetime | None = None
        """When the server that answered last was started: no two have that in common."""

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
        revisits, replays = set(self._revisits), dict(self._replays)
        page = await self._fetch(claims, max_rows, max_bytes)
        while self._lost_sight():
            # A server that crashed, or a standby that took over, may hand transaction ids out again: what it commits
            # under them would look as if it had been seen. So the reader starts over on every new connection, and
            # behind a pooler, where the connection may survive the server, whenever another server answers.
            self.restart()
            self._revisits, self._replays = set(revisits), dict(replays)
            page = await self._fetch(claims, max_rows, max_bytes)
        return page

    def _lost_sight(self) -> bool:
        """Whether the last snapshot and the one before may come from different histories."""
        former, self._opened = self._opened, self._link.opened
        went_back, self._went_back = self._went_back, False
        return went_back or former not in {0, self._opened}

    async def _fetch(self, claims: Claims, max_rows: int, max_bytes: int) -> FetchPage:
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
        await self._advance_positions()
        self._walk = _Walk(target=await self._snapshot(), since=_NOTHING, last=_BEFORE_ALL, replays={})

    async def _advance_positions(self) -> None:
        """Let positions go on behind those in use, where the sequence was left behind by a restore or a move."""
        try:
            await self._link.fetch(self._sql.advance)
        except StoreRefusedError as error:
            if not self._may_not_advance:
                self._may_not_advance = True
                _log.warning(
                    "Whether the outbox's positions go on behind its rows cannot be seen by this role (%s). After a "
                    "restore or a move to another server run `sagapost db upgrade`, or grant the role USAGE, SELECT "
                    "and UPDATE on the sequence: positions that begin again let new events overtake those that wait.",
                    error,
                )

    async def _begin_replay(self) -> None:
        """A generation that also returns rows of released keys; they may lie far back, so it is paged."""
        assert self._seen is not None  # noqa: S101 - fetch() begins the backlog first
        replays, self._replays = self._replays, {}
        target = await self._snapshot()
        low = await self._low(self._seen)
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
        target = _parse(header[_TEXT])
        self._check_history(target, header[_SERVER])
        if header[_FITS] == 1.0:
            self._seen = target
            return decode_rows(records[1:], self._partitions), _in_progress(target)
        low = await self._low(self._seen)
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
        stretch = max_rows * (_SHARED_STRETCH if owned else 1)
        header, *records = await self._link.fetch(
            sql,
            walk.last,
            walk.target,
            walk.since,
            max_rows,
            max_bytes,
            list(walk.replays),
            list(walk.replays.values()),
            stretch,
            *owned,
        )
        self._check_history(walk.target, header[_SERVER])
        full = len(records) >= max_rows or sum(len(record[_DATA]) for record in records) >= max_bytes
        if full:
            walk.last = records[-1][0]
        elif header[_TEXT] is not None:
            walk.last = int(header[_TEXT]) + stretch - 1
        else:
            self._seen, self._walk = walk.target, None
        return decode_rows(records, self._partitions), False

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
        self._check_history(snapshot, row[1])
        return snapshot

    def _check_history(self, snapshot: Snapshot, server: datetime) -> None:
        """Behind a pooler the server may be another one although the connection is the same.

        Its transaction ids may have gone back, or have passed the old ones already. System identifier and timeline
        do not tell a copy that was started from a backup; the moment of its start does.
        """
        former, self._server = self._server, server
        if former not in {None, server} or (self._seen is not None and snapshot[1] < self._seen[1]):
            self._went_back = True

    async def _low(self, since: Snapshot) -> int | None:
        _, xmax, xip = since
        row = await self._link.fetchrow(self._sql.low, xip, xmax)
        assert row is not None  # noqa: S101 - a SELECT without FROM always has a row
        low: int | None = row[0]
        return low

    def _owned(self, claims: Claims) -> tuple[int, list[int]] | tuple[()]:
        """The arguments of the partition filter; empty when this relay owns every partition."""
        return () if len(claims) == self._partitions else (self._partitions, [int(p) for p in claims])


class SnapshotSweeper:
    """`OutboxSweeper` on PostgreSQL."""

    def __init__(self, link: PostgreSQLLink, statements: FetchStatements, partitions: int) -> None:
        self._link = link
        self._sql = statements
        self._partitions = partitions
        self._mark: tuple[Snapshot, int] | None = None
        self._opened = 0

    async def mark(self) -> None:
        """See `OutboxSweeper.mark`."""
        row = await self._link.fetchrow(self._sql.mark)
        assert row is not None  # noqa: S101 - an aggregate without GROUP BY always has a row
        self._mark, self._opened = (row[0], row[1]), self._link.opened

    async def left(self, claims: Claims, *, above: Position, limit: int) -> Sequence[tuple[Position, str | None]]:
        """See `OutboxSweeper.left`."""
        if self._mark is None or not claims:
            return []
        snapshot, highest = self._mark
        owned = [int(p) for p in claims]
        rows = await self._link.fetch(self._sql.left, above, highest, snapshot, limit, self._partitions, owned)
        if self._link.opened != self._opened:
            # Another connection, maybe of another server, whose transactions the mark says nothing about.
            await self.mark()
            return []
        return [(Position(row[0]), row[1]) for row in rows]


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
