"""What an operator does about events the relay gave up on: list them, send them again in order, or discard them.

Every decision leaves a row in the audit (`sagapost.core.audit`) for each letter, in the caller's transaction; a
discard keeps there what it removed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, Dialect, TextClause, and_, bindparam, delete, select, text, true
from sqlalchemy.ext.asyncio import AsyncConnection

from sagapost.core.audit import Action, Decision
from sagapost.core.databases import kit_of
from sagapost.core.errors import NotFoundError
from sagapost.core.where import Field, Fields, Selection
from sagapost.outbox.doorbell import ONE_PHASE
from sagapost.outbox.tables import ENVELOPE_COLUMNS, OutboxTables

__all__ = ["DEAD_LETTERS", "DeadLetter", "DeadLetters"]

DEAD_LETTERS = Fields(
    Field("position", "position", "number"),
    Field("event_id", "event_id", "uuid"),
    Field("type", "type"),
    Field("source", "source"),
    Field("topic", "topic"),
    Field("key", "partitionkey"),
    Field("correlationid", "correlationid"),
    Field("attempts", "attempts", "number"),
    Field("error", "last_error"),
    Field("blocks", "blocks_key", "flag"),
    Field("before", "died_at", "before"),
    Field("after", "died_at", "after"),
    number="position",
)
"""What can be asked about dead letters."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One event the relay gave up on. Its data is not shown: it may be personal."""

    position: int
    event_id: str
    type: str
    key: str | None
    correlationid: str | None
    attempts: int
    reason: str
    died_at: datetime
    blocks_key: bool
    """Later events of its key wait until this one is redriven or discarded."""
    size: int
    """Bytes of data."""


class DeadLetters:
    """The dead letters of one outbox, in the caller's transaction."""

    def __init__(self, tables: OutboxTables) -> None:
        self._dead = tables.dead
        self._outbox = tables.outbox
        self._audit = tables.audit

    async def list(
        self, connection: AsyncConnection, selection: Selection, *, limit: int = 100, after: int = -1
    ) -> Sequence[DeadLetter]:
        """Return dead letters in the order of their positions, from beyond `after`."""
        position = self._dead.c.position
        clauses = selection.clauses(self._dead, kit_of(connection))
        query = select(self._dead).where(*clauses, position > after).order_by(position).limit(limit)
        return [_letter(row) for row in (await connection.execute(query)).mappings()]

    async def show(self, connection: AsyncConnection, position: int) -> Sequence[Mapping[str, Any]]:
        """Return the letters at a position, whole: every column. It is one, unless positions began again.

        :raises NotFoundError: if there is none.
        """
        query = select(self._dead).where(self._dead.c.position == position).order_by(self._dead.c.died_at)
        rows = [dict(row) for row in (await connection.execute(query)).mappings()]
        _require([position], rows)
        return rows

    async def redrive(
        self, connection: AsyncConnection, selection: Selection, decision: Decision, *, dry_run: bool = False
    ) -> Sequence[DeadLetter]:
        """Put dead letters back into the outbox at their old positions; return them, oldest first.

        An event goes back with all dead letters of its key, so that the key's order is kept: redriving the second of
        three alone would send it before the first. Attempts start again from zero. Events of the key that wait in the
        outbox follow. With `dry_run` nothing is changed.

        :raises NotFoundError: if one of the numbers that are meant is no dead letter.
        """
        chosen = and_(true(), *selection.clauses(self._dead, kit_of(connection)))
        keys = select(self._dead.c.partitionkey).where(chosen, self._dead.c.partitionkey.is_not(None))
        rows = await self._take(connection, chosen | self._dead.c.partitionkey.in_(keys), selection)
        letters = [_letter(row) for row in rows]
        if letters and not dry_run:
            positions = [letter.position for letter in letters]
            await self._record(connection, decision, "redrive", rows)
            await connection.execute(self._put_back(connection.dialect), {"positions": positions})
            await connection.execute(delete(self._dead).where(self._dead.c.position.in_(positions)))
        return letters

    async def discard(
        self, connection: AsyncConnection, selection: Selection, decision: Decision, *, dry_run: bool = False
    ) -> Sequence[DeadLetter]:
        """Delete dead letters; return them. Events that waited behind them go on without them.

        Each is kept in the audit, with its payload. With `dry_run` nothing is changed.

        :raises NotFoundError: if one of the numbers that are meant is no dead letter.
        """
        chosen = and_(true(), *selection.clauses(self._dead, kit_of(connection)))
        rows = await self._take(connection, chosen, selection)
        letters = [_letter(row) for row in rows]
        if letters and not dry_run:
            await self._record(connection, decision, "discard", rows)
            result = await connection.execute(
                delete(self._dead).where(self._dead.c.position.in_([letter.position for letter in letters]))
            )
            assert cast("CursorResult[Any]", result).rowcount == len(letters)  # noqa: S101 - the rows are locked
        return letters

    def _put_back(self, dialect: Dialect) -> TextClause:
        """Copy dead letters into the outbox.

        The position is the row's place in its key, so it must be the old one. SQLAlchemy has no words for writing an
        identity column on purpose.
        """
        quote = dialect.identifier_preparer
        columns = ", ".join(quote.quote(name) for name in ("position", *ENVELOPE_COLUMNS))
        statement = text(
            f"INSERT {ONE_PHASE} INTO {quote.format_table(self._outbox)} ({columns}) "  # noqa: S608 - names of ours
            f"{kit_of(dialect.name).overrides_identity}"
            f"SELECT {columns} FROM {quote.format_table(self._dead)} WHERE position IN :positions ORDER BY position"
        )
        return statement.bindparams(bindparam("positions", expanding=True))

    async def _take(
        self, connection: AsyncConnection, wanted: ColumnElement[bool], selection: Selection
    ) -> Sequence[Mapping[Any, Any]]:
        """Lock and read; two operators take turns."""
        query = select(self._dead).where(wanted).order_by(self._dead.c.position).with_for_update()
        rows = (await connection.execute(query)).mappings().all()
        _require(selection.numbers, rows)
        return rows

    async def _record(
        self, connection: AsyncConnection, decision: Decision, action: Action, rows: Sequence[Mapping[Any, Any]]
    ) -> None:
        kept = action == "discard"
        await connection.execute(
            self._audit.record(decision, "dead", action),
            [
                {
                    "subject": str(row["position"]),
                    "event_id": str(row["event_id"]),
                    "source": row["source"],
                    "type": row["type"],
                    "partitionkey": row["partitionkey"],
                    "correlationid": row["correlationid"],
                    "original": _original(row) if kept else None,
                    "data": row["data"] if kept else None,
                }
                for row in rows
            ],
        )


def _require(numbers: Sequence[int], rows: Sequence[Mapping[Any, Any]]) -> None:
    found = {row["position"] for row in rows}
    missing = [str(number) for number in numbers if number not in found]
    if missing:
        raise NotFoundError(
            f"The outbox has no dead letter at position {', '.join(missing)}. List them with `sagapost dead list`."
        )


def _original(row: Mapping[Any, Any]) -> str:
    """Return the envelope of a letter as JSON, for the audit: it may be no event that could be read."""
    envelope = {name: row[name] for name in ENVELOPE_COLUMNS if name != "data" and row[name] is not None}
    return json.dumps(envelope, default=str)


def _letter(row: Any) -> DeadLetter:
    return DeadLetter(
        position=row["position"],
        event_id=str(row["event_id"]),
        type=row["type"],
        key=row["partitionkey"],
        correlationid=row["correlationid"],
        attempts=row["attempts"],
        reason=row["last_error"],
        died_at=row["died_at"],
        blocks_key=bool(row["blocks_key"]),
        size=len(row["data"]),
    )
