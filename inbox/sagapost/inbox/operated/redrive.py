"""What a person does about parked messages: look, let them be handled again, give them up, correct them.

Every decision leaves a row in the audit (`sagapost.core.audit`) for each message, in the transaction that carries it
out; a discard and an edit keep there what they removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Text, and_, cast, delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.core.audit import Action, Decision
from sagapost.core.clock import Clock
from sagapost.core.databases import aware
from sagapost.core.errors import ConfigurationError, ConflictError, NotFoundError
from sagapost.core.observer import NullObserver, Observer
from sagapost.core.where import Selection
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.declared.settings import DeadLetterPolicy
from sagapost.inbox.declared.tables import InboxTables
from sagapost.inbox.kept.envelope import envelope_of, restore, shown_columns
from sagapost.inbox.kept.parked_order import ParkedOrder
from sagapost.inbox.operated.editing import edited
from sagapost.inbox.operated.inspection import Inspection
from sagapost.inbox.operated.selection import PARKED

__all__ = ["ParkedMessages", "Redrive"]

_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Redrive:
    """What a redrive did, or with `dry_run` would do."""

    waiting: int
    """Handled again from now on, at the given rate."""
    behind: int
    """Handled again after an earlier parked message of their ordering key."""
    unreadable: int
    """Among those that are handled again: messages that were no events. A consumer reads them again, with its own
    settings; what is still none is parked anew, with the reason."""
    in_work: int
    """Left alone: a round is running."""


class ParkedMessages(Inspection):
    """The parked messages of one consumer, for an operator. Safe beside running consumers.

    :param consumer: name of the inbox.
    :param on_dead: as the consumer is set; decides whether dead letters hold back the later messages of their key.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        tables: InboxTables,
        consumer: str,
        *,
        on_dead: DeadLetterPolicy = "block",
        observer: Observer | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(engine, tables, consumer, clock=clock)
        self._on_dead: DeadLetterPolicy = on_dead
        self._observer = observer if observer is not None else NullObserver()

    async def redrive(
        self,
        selection: Selection,
        decision: Decision,
        *,
        per_second: float | None = None,
        dry_run: bool = False,
    ) -> Redrive:
        """Let parked messages be handled again, with a fresh budget of attempts.

        The order of a key is kept: in an ordered inbox a message goes after the earlier ones of its key that are
        still parked. A running consumer picks them up within its poll interval.

        :param per_second: spread them over time; default: all at once, as fast as the consumer's concurrency allows.
        :param dry_run: change nothing, only count.
        :raises ConfigurationError: if `per_second` is not positive.
        :raises NotFoundError: if one of the numbers that are meant is not parked.
        """
        if per_second is not None and per_second <= 0:
            raise ConfigurationError(f"per_second is {per_second}; it must be positive.")
        waiting = behind = 0
        after, end = 0, await self._last(selection)
        unreadable, in_work = await self._count(selection)
        while after < end:
            place = waiting

            def chunk(connection: Connection, consumer: int, after: int = after, place: int = place) -> list[int]:
                rows = self._lock(connection, consumer, selection, after, end)
                if not dry_run:
                    self._release(connection, rows, place, per_second)
                    self._record(connection, decision, "redrive", [row.id for row in rows])
                numbers = [row.id for row in rows]
                return [numbers[-1] if len(numbers) == _CHUNK else end, *(int(row.follows) for row in rows)]

            after, *follows = await self._run(chunk, [end])
            behind += sum(follows)
            waiting += len(follows) - sum(follows)
        if waiting + behind and not dry_run:
            self._observer.notify(obs.Redriven(self._name, waiting + behind, decision.actor))
        return Redrive(waiting, behind, unreadable, in_work)

    async def discard(self, selection: Selection, decision: Decision, *, dry_run: bool = False) -> int:
        """Give parked messages up; return how many. Each is kept in the audit, and its dedup key stays.

        In an ordered inbox the next message of each key goes on. What is being handled just now is left alone.

        :raises NotFoundError: if one of the numbers that are meant is not parked.
        """
        discarded = 0
        after, end = 0, await self._last(selection)
        while after < end:

            def chunk(connection: Connection, consumer: int, after: int = after) -> tuple[int, int, set[str]]:
                rows = self._lock(connection, consumer, selection, after, end)
                numbers = [row.id for row in rows]
                if not dry_run:
                    self._record(connection, decision, "discard", numbers)
                    connection.execute(delete(self._table).where(self._table.c.id.in_(numbers)))
                keys = {row.partitionkey for row in rows if row.ordered and row.partitionkey is not None}
                return (numbers[-1] if len(numbers) == _CHUNK else end), len(numbers), keys

            after, number, keys = await self._run(chunk, (end, 0, set[str]()))
            discarded += number
            if not dry_run:
                await self._promote(keys)
        if discarded and not dry_run:
            self._observer.notify(obs.Discarded(self._name, discarded, decision.actor))
        return discarded

    async def edit(
        self,
        parked_id: int,
        decision: Decision,
        *,
        data: bytes | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Correct a parked message; the original goes to the audit. Redrive it afterwards.

        :param attributes: CloudEvents attributes to replace. A message that could not be read as an event becomes one
            with `id`, `source` and `type`; with some of them it is read again by the consumer once it is redriven.
        :raises NotFoundError: if there is no such message.
        :raises ConflictError: if a round of it is running.
        :raises ConfigurationError: if an attribute is unknown or missing.
        :raises InvalidEventError: if an attribute breaks a rule.
        """
        missing = NotFoundError(f"The inbox {self._name!r} has no parked message {parked_id}.")

        def change(connection: Connection, consumer: int) -> bool:
            table = self._table
            rows = self._lock(connection, consumer, PARKED.equal(id=parked_id), 0, parked_id)
            if not rows:
                there = select(table.c.id).where(table.c.id == parked_id, table.c.consumer == consumer)
                if connection.execute(there).first() is not None:
                    raise ConflictError(f"The parked message {parked_id} is being handled just now. Try again later.")
                raise missing
            row = connection.execute(select(table).where(table.c.id == parked_id)).one()
            content = edited(restore(row.envelope, row.data), aware(row.parked_at), data, attributes or {})
            # Its place in the order stays.
            kept = {name: value for name, value in shown_columns(content).items() if name != "partitionkey"}
            self._record(connection, decision, "edit", [parked_id])
            connection.execute(
                update(table).where(table.c.id == parked_id).values(envelope=envelope_of(content), **kept)
            )
            return True

        if not await self._run(change, False):
            raise missing
        self._observer.notify(obs.Edited(self._name, parked_id, decision.actor))

    # --- inside ---

    async def _last(self, selection: Selection) -> int:
        """Return the last id that is meant: what is parked later was not seen by whoever decided.

        :raises NotFoundError: if one of the numbers that are meant is not parked.
        """

        def read(connection: Connection, consumer: int) -> int:
            column, conditions = self._table.c.id, self._chosen(selection, consumer)
            if selection.numbers:
                found = set(connection.execute(select(column).where(*conditions)).scalars())
                missing = [str(number) for number in selection.numbers if number not in found]
                if missing:
                    raise NotFoundError(f"The inbox {self._name!r} has no parked message {', '.join(missing)}.")
            return connection.execute(select(func.max(column)).where(*conditions)).scalar() or 0

        return await self._run(read, 0)

    async def _count(self, selection: Selection) -> tuple[int, int]:
        def read(connection: Connection, consumer: int) -> tuple[int, int]:
            conditions = self._chosen(selection, consumer)
            unreadable = select(func.count()).where(*conditions, self._idle(), self._table.c.source.is_(None))
            in_work = select(func.count()).where(*conditions, ~self._idle())
            return connection.execute(unreadable).scalar() or 0, connection.execute(in_work).scalar() or 0

        return await self._run(read, (0, 0))

    def _idle(self) -> Any:
        """No round is running; one whose process died is over when its claim lapses."""
        columns = self._table.c
        return or_(columns.claimed == 0, and_(columns.claimed == 1, columns.next_attempt_at <= self._moments.now()))

    def _lock(
        self, connection: Connection, consumer: int, selection: Selection, after: int, end: int
    ) -> Sequence[Any]:
        """Lock the next rows that are meant; `follows` tells which wait behind an earlier one of their key."""
        table, earlier = self._table, self._table.alias("earlier")
        follows = exists().where(
            earlier.c.consumer == table.c.consumer,
            earlier.c.ordered == 1,
            earlier.c.partitionkey == table.c.partitionkey,
            earlier.c.id < table.c.id,
        )
        return connection.execute(
            select(
                table.c.id,
                table.c.ordered,
                table.c.partitionkey,
                and_(table.c.ordered == 1, follows).label("follows"),
            )
            .where(*self._chosen(selection, consumer), table.c.id > after, table.c.id <= end, self._idle())
            .order_by(table.c.id)
            .limit(_CHUNK)
            .with_for_update(skip_locked=True, of=table)
        ).all()

    def _release(self, connection: Connection, rows: Sequence[Any], place: int, per_second: float | None) -> None:
        """Make rows due: those that follow an earlier one of their key behind it, the rest at the given rate."""
        columns = self._table.c
        fresh = {"attempts": 0, "crashes": 0, "claimed": 0}
        behind = [row.id for row in rows if row.follows]
        if behind:
            connection.execute(
                update(self._table).where(columns.id.in_(behind)).values(state="behind", next_attempt_at=None, **fresh)
            )
        heads = [row.id for row in rows if not row.follows]
        batches = [(heads, timedelta(0))] if per_second is None else [
            ([id_], timedelta(seconds=(place + n) / per_second)) for n, id_ in enumerate(heads)
        ]  # fmt: skip
        for ids, delay in batches:
            if ids:
                connection.execute(
                    update(self._table)
                    .where(columns.id.in_(ids))
                    .values(state="waiting", next_attempt_at=self._moments.after(delay), **fresh)
                )

    def _record(self, connection: Connection, decision: Decision, action: Action, ids: Sequence[int]) -> None:
        columns = self._table.c
        kept = action != "redrive"
        connection.execute(
            self._tables.audit.record_rows(
                decision,
                "parked",
                action,
                {
                    "place": self._name,
                    "subject": cast(columns.id, Text),
                    **{
                        name: columns[name] for name in ("event_id", "source", "type", "partitionkey", "correlationid")
                    },
                    "original": columns.envelope if kept else None,
                    "data": columns.data if kept else None,
                },
                select(self._table).where(columns.id.in_(ids)).order_by(columns.id),
            )
        )

    async def _promote(self, keys: set[str]) -> None:
        """Let the next message of each key go, after the commit that removed the one before."""

        def promote(connection: Connection, consumer: int) -> None:
            order = ParkedOrder(self._tables, self._moments, consumer=consumer, on_dead=self._on_dead)
            order.promote(connection, keys)

        if keys:
            await self._run(promote, None)
