"""The fetch cursor: `position > last`.

SQLite has one writer at a time, and AUTOINCREMENT draws positions inside its transaction, so positions are committed
in their order: nothing commits late, and a cursor on the position alone skips nothing. A deleted row leaves the tree
at once, so there are no dead rows to walk over either.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table

from sagapost.adapters.sqlite.connection import SQLiteLink
from sagapost.adapters.sqlite.rows import ROW_COLUMNS, decode_rows, json_array, quoted
from sagapost.core.outbox_store import Claims, FetchPage, OutboxRow, Position

__all__ = ["PositionReader", "PositionSweeper"]


_BEFORE_ALL = -(2**63)
"""Below every position: what was buried before it had one is redriven to a negative one."""


@dataclass(frozen=True, slots=True)
class _Replay:
    """Rows of these keys are returned again on the way up to where the cursor had been."""

    keys: dict[str, int]
    """Key -> the position above which its rows come again."""
    until: int


class PositionReader:
    """`OutboxReader` on SQLite."""

    def __init__(self, link: SQLiteLink, outbox: Table, partitions: int) -> None:
        self._link = link
        self._partitions = partitions
        self._last = _BEFORE_ALL
        self._wanted: set[Position] = set()
        self._asked: dict[str, int] = {}
        self._replay: _Replay | None = None
        table = quoted(outbox)
        owned = "slot % ?2 IN (SELECT value FROM json_each(?3))"
        # Sizes first, without their data: length() of a BLOB reads the record's header, not its pages, so a page of
        # large rows is cut before they are loaded. Both run along the primary key from the cursor on.
        self._sizes = f"""
            SELECT position, length(data) FROM {table}
            WHERE position > ?1 AND {owned}
              AND (position > ?4
                   OR EXISTS (SELECT 1 FROM json_each(?5)
                              WHERE json_extract(value, '$[0]') = partitionkey
                                AND position > json_extract(value, '$[1]')))
            ORDER BY position LIMIT ?6"""
        self._rows = f"""
            SELECT {ROW_COLUMNS} FROM {table}
            WHERE position IN (SELECT value FROM json_each(?)) ORDER BY position"""

    def restart(self) -> None:
        """Start again from the oldest row."""
        self._last = _BEFORE_ALL
        self._wanted.clear()
        self._asked.clear()
        self._replay = None

    def revisit(self, positions: Collection[Position]) -> None:
        """Return these rows again with the next fetch."""
        self._wanted.update(positions)

    def replay_key(self, key: str, *, above: Position) -> None:
        """Return this key's rows above `above` again."""
        self._asked[key] = min(above, self._asked.get(key, above))

    async def fetch(self, claims: Claims, *, max_rows: int, max_bytes: int) -> FetchPage:
        """Return the next rows; see `OutboxReader.fetch`."""
        wanted = frozenset(self._wanted)
        reading = bool(claims) and max_rows > 0
        released: frozenset[str] = frozenset()
        if reading and self._asked and self._replay is None:
            released = frozenset(self._asked)
            # Rows above the cursor come anyway; what is asked for below it is picked up on the way there.
            self._replay = _Replay(self._asked, until=self._last)
            self._last = min(self._last, *self._asked.values())
            self._asked = {}

        def work(connection: sqlite3.Connection) -> tuple[list[OutboxRow], list[OutboxRow], bool]:
            again = self._load(connection, wanted)
            if not reading:
                return again, [], not claims
            positions, caught_up = self._page(connection, claims, max_rows, max_bytes)
            return again, self._load(connection, positions), caught_up

        again, rows, caught_up = await self._link.read(work) if wanted or reading else ([], [], not claims)
        # The cursor moves only after the read succeeded: a failed one is repeated.
        self._wanted -= wanted
        if rows:
            self._last = rows[-1].position
        if self._replay is not None and (caught_up or self._last >= self._replay.until):
            self._last = max(self._last, self._replay.until)
            self._replay = None
        return FetchPage(
            rows=_merge([row for row in again if row.partition in claims], rows),
            caught_up=caught_up and not self._asked,
            released=released,
            missing=wanted.difference(row.position for row in again),
        )

    def _page(
        self, connection: sqlite3.Connection, claims: Claims, max_rows: int, max_bytes: int
    ) -> tuple[list[int], bool]:
        """Return the positions of the next page, and whether nothing comes after it."""
        replay = self._replay
        sizes = connection.execute(
            self._sizes,
            (
                self._last,
                self._partitions,
                json_array(claims),
                replay.until if replay is not None else self._last,
                json.dumps(list(replay.keys.items()) if replay is not None else []),
                max_rows,
            ),
        ).fetchall()
        total = 0
        for n, (_, size) in enumerate(sizes):
            total += size
            if total > max_bytes:
                kept = sizes[: max(n, 1)]
                return [position for position, _ in kept], False
        return [position for position, _ in sizes], len(sizes) < max_rows

    def _load(self, connection: sqlite3.Connection, positions: Collection[int]) -> list[OutboxRow]:
        if not positions:
            return []
        records: Sequence[tuple[Any, ...]]
        try:
            records = connection.execute(self._rows, (json_array(positions),)).fetchall()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) is not None:
                raise
            # No answer of SQLite but of the driver: a text that is no UTF-8, by another writer, for which it gives up
            # the page. Such texts are read as the bytes they are.
            connection.text_factory = _text_or_bytes
            try:
                records = connection.execute(self._rows, (json_array(positions),)).fetchall()
            finally:
                connection.text_factory = str
        return decode_rows(records, self._partitions)


class PositionSweeper:
    """`OutboxSweeper` on SQLite: what was passed long ago lies below the position of the mark."""

    def __init__(self, link: SQLiteLink, outbox: Table, partitions: int) -> None:
        self._link = link
        self._partitions = partitions
        self._highest = 0
        table = quoted(outbox)
        self._mark = f"SELECT coalesce(max(position), 0) FROM {table}"
        self._left = f"""
            SELECT position, CASE WHEN typeof(partitionkey) = 'text' THEN partitionkey END FROM {table}
            WHERE position > ? AND position <= ? AND slot % ? IN (SELECT value FROM json_each(?))
            ORDER BY position LIMIT ?"""

    async def mark(self) -> None:
        """See `OutboxSweeper.mark`."""

        def work(connection: sqlite3.Connection) -> int:
            (highest,) = connection.execute(self._mark).fetchone()
            return int(highest)

        self._highest = await self._link.read(work)

    async def left(self, claims: Claims, *, above: Position, limit: int) -> Sequence[tuple[Position, str | None]]:
        """See `OutboxSweeper.left`."""
        bounds = (above, self._highest, self._partitions, json_array(claims), limit)

        def work(connection: sqlite3.Connection) -> list[tuple[Position, str | None]]:
            return [(Position(position), key) for position, key in connection.execute(self._left, bounds)]

        return await self._link.read(work)


def _text_or_bytes(stored: bytes) -> str | bytes:
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return stored


def _merge(again: Sequence[OutboxRow], rows: Sequence[OutboxRow]) -> Sequence[OutboxRow]:
    if not again:
        return rows
    unique = {row.position: row for row in (*again, *rows)}
    return [unique[position] for position in sorted(unique)]
