"""The tracker's statements. Each runs in the caller's transaction.

A batch is one statement per table, whose text and plan are the same for every size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict, Unpack

from sqlalchemy import Connection, delete, func, select

from sagapost.core.databases import DatabaseKit, kit_of
from sagapost.core.where import Selection
from sagapost.sagas.tracker.entries import pack, unpack
from sagapost.sagas.tracker.history import History
from sagapost.sagas.tracker.tables import TrackerTables

__all__ = ["Kept", "TrackerStore", "Wanted", "packed"]

_ENOUGH = 500
"""Values in one IN list."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A saga's row as the fold needs it."""

    version: int
    history: History


class Wanted(TypedDict, total=False):
    """Which rows of sagas."""

    saga: str
    states: Sequence[str]
    selection: Selection | None
    due_before: datetime | None
    before: tuple[datetime, str] | None
    limit: int


class TrackerStore:
    """Statements of one tracker for one kind of database."""

    def __init__(self, tables: TrackerTables, kit: DatabaseKit) -> None:
        self.tables = tables
        self.notices_others = kit.locks_rows
        """Whether `write` leaves a row alone that somebody else changed; else `take_turn` must come first."""
        self._kit = kit
        sagas = tables.sagas
        self._wanted = kit.is_any(sagas.c.saga, "sagas")
        self._upsert_sagas = kit.batch_versions(sagas, sagas.c.version)
        self._insert_keys = kit.batch_once(tables.keys)
        self._insert_observed = kit.batch_once(tables.observed)

    # --- folding ---

    def take_turn(self, connection: Connection) -> None:
        """Without row locks: become the only writer before anything is read that decides what is written."""
        turn = self._kit.writers_turn(self.tables.sagas)
        if turn is not None:
            connection.execute(turn)

    def load(self, connection: Connection, sagas: Iterable[str]) -> dict[str, Kept]:
        """Read the rows of these sagas."""
        columns, names, found = self.tables.sagas.c, list(sagas), {}
        asked = select(columns.saga, columns.version, columns.started_at, columns.truncated, columns.history)
        for start in range(0, len(names), _ENOUGH):
            part = names[start : start + _ENOUGH]
            for row in connection.execute(asked.where(self._wanted), {"sagas": part}):
                found[row.saga] = Kept(row.version, _history(row.history))
        return found

    def write(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
        """Write sagas' rows; return those that were written. The others were changed by somebody else meanwhile.

        In the order of their names, so that two writers never wait for each other in a circle.
        """
        ordered = sorted(rows, key=lambda row: str(row["saga"]))
        return set(self._upsert_sagas.execute(connection, ordered))

    def note_keys(self, connection: Connection, rows: Sequence[Mapping[str, str]]) -> None:
        """Write business keys; those that are known already stay."""
        self._insert_keys.execute(connection, rows)

    def note_observed(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write which service said what; the first observation stays."""
        self._insert_observed.execute(connection, rows)

    # --- reading ---

    def show(self, connection: Connection, saga: str) -> History | None:
        """Return a saga's history."""
        columns = self.tables.sagas.c
        row = connection.execute(select(columns.history).where(columns.saga == saga)).one_or_none()
        return _history(row.history) if row is not None else None

    def keys_of(self, connection: Connection, sagas: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """Return the business keys of sagas."""
        columns = self.tables.keys.c
        asked = select(columns.saga, columns.name, columns.value).where(columns.saga.in_(sagas))
        found: dict[str, list[tuple[str, str]]] = {}
        for row in connection.execute(asked.order_by(columns.name, columns.value)):
            found.setdefault(row.saga, []).append((row.name, row.value))
        return found

    def find(self, connection: Connection, value: str, *, name: str | None, limit: int) -> list[str]:
        """Return the sagas with a business key."""
        columns = self.tables.keys.c
        asked = select(columns.saga).distinct().where(columns.value == value)
        if name is not None:
            asked = asked.where(columns.name == name)
        return list(connection.execute(asked.order_by(columns.saga).limit(limit)).scalars())

    def rows(self, connection: Connection, **wanted: Unpack[Wanted]) -> Sequence[Mapping[str, Any]]:
        """Return rows without their history, those that started last first."""
        columns = self.tables.sagas.c
        asked = select(*(column for column in self.tables.sagas.columns if column.name != "history"))
        if "saga" in wanted:
            asked = asked.where(columns.saga == wanted["saga"])
        if (selection := wanted.get("selection")) is not None:
            asked = asked.where(*selection.clauses(self.tables.sagas, kit_of(connection)))
        if states := wanted.get("states"):
            asked = asked.where(columns.state.in_(states))
        if (due := wanted.get("due_before")) is not None:
            asked = asked.where(columns.due_at <= due)
        if (before := wanted.get("before")) is not None:
            started, saga = before
            asked = asked.where(
                (columns.started_at < started) | ((columns.started_at == started) & (columns.saga < saga))
            )
        asked = asked.order_by(columns.started_at.desc(), columns.saga.desc()).limit(wanted.get("limit", 1))
        return [dict(row) for row in connection.execute(asked).mappings()]

    def count(self, connection: Connection) -> dict[str, int]:
        """Return how many sagas are in each state."""
        state = self.tables.sagas.c.state
        return {row.state: row.n for row in connection.execute(select(state, func.count().label("n")).group_by(state))}

    def observed(self, connection: Connection) -> list[tuple[str, str, str]]:
        """Return (source, type, example saga) of everything that was observed."""
        columns = self.tables.observed.c
        asked = select(columns.source, columns.type, columns.saga).order_by(columns.source, columns.type)
        return [(row.source, row.type, row.saga) for row in connection.execute(asked)]

    def names_after(self, connection: Connection, saga: str, *, limit: int) -> list[str]:
        """Return the next sagas by name: a walk over all of them."""
        column = self.tables.sagas.c.saga
        return list(connection.execute(select(column).where(column > saga).order_by(column).limit(limit)).scalars())

    def declared(self, connection: Connection) -> bytes | None:
        """Return what the rows are derived with."""
        table = self.tables.choreography
        found: bytes | None = connection.execute(select(table.c.declared)).scalar_one_or_none()
        return found

    def declare(self, connection: Connection, declared: bytes) -> None:
        """Write what the rows are derived with."""
        connection.execute(self._kit.upsert(self.tables.choreography, {"name": "current", "declared": declared}))

    # --- forgetting ---

    def forget(self, connection: Connection, *, ended_before: datetime, silent_before: datetime, limit: int) -> int:
        """Delete up to `limit` sagas that ended, or fell silent, before these times, with all that hangs on them."""
        columns = self.tables.sagas.c
        over = select(columns.saga).where(columns.ended_at < ended_before).order_by(columns.ended_at).limit(limit)
        silent = (
            select(columns.saga)
            .where(columns.started_at < silent_before, columns.last_at < silent_before, columns.ended_at.is_(None))
            .order_by(columns.started_at)
            .limit(limit)
        )
        # Two trackers that forget at once take different sagas.
        names = list(connection.execute(over.with_for_update(skip_locked=True)).scalars())
        names += connection.execute(silent.with_for_update(skip_locked=True)).scalars()
        for start in range(0, len(names), _ENOUGH):
            part = names[start : start + _ENOUGH]
            # What was observed goes with the saga it was observed in, and is noted anew when it is seen again.
            for table in (self.tables.keys, self.tables.actions, self.tables.observed, self.tables.sagas):
                connection.execute(delete(table).where(table.c.saga.in_(part)))
        return len(names)


def packed(history: History) -> bytes:
    """Return a history for its column: its start goes before the events."""
    return (history.started or 0).to_bytes(8, signed=True) + bytes([history.truncated]) + pack(history.entries)


def _history(data: bytes) -> History:
    return History(unpack(data[9:]), int.from_bytes(data[:8], signed=True), bool(data[8]))
