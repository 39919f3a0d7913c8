"""What a person does about tasks: list them, look at one, decide. From the CLI, a dashboard, or a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from sagapost.core.audit import Decision
from sagapost.core.broker import Malformed
from sagapost.core.clock import Clock, SystemClock
from sagapost.core.context import SagaContext, bind
from sagapost.core.databases import aware, kit_of
from sagapost.core.errors import ConfigurationError, ConflictError, NotFoundError
from sagapost.core.where import Field, Fields, Selection
from sagapost.inbox.declared.tables import InboxTables
from sagapost.inbox.kept.envelope import restore
from sagapost.inbox.kept.redo import redo
from sagapost.outbox.outbox import Outbox
from sagapost.outbox.tables import OutboxTables
from sagapost.sagas.choreography.schemas import fields_of, misfit
from sagapost.sagas.events import RollbackRequested, TaskEnded
from sagapost.sagas.participant import Participant
from sagapost.sagas.rollbacks import Rollbacks
from sagapost.sagas.tables import SagaTables

__all__ = ["TASKS", "Resolution", "Task", "TaskDesk"]

TASKS = Fields(
    Field("id", "id", "number"),
    Field("service", "service"),
    Field("saga", "saga"),
    Field("name", "name"),
    Field("title", "title"),
    Field("state", "state", "choice", ("open", "resolved", "withdrawn")),
    Field("outcome", "outcome"),
    Field("decided_by", "decided_by"),
    Field("due", "due_at", "time"),
    Field("before", "opened_at", "before"),
    Field("after", "opened_at", "after"),
)
"""What can be asked about tasks."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task as recorded."""

    id: int
    service: str
    saga: str
    name: str
    title: str
    details: Mapping[str, Any]
    outcomes: Mapping[str, str]
    """Name -> what choosing it does, in a sentence."""
    asks: Mapping[str, tuple[str, ...]]
    """Outcome -> fields the person must give."""
    state: str
    opened_at: datetime
    due_at: datetime | None
    ended_at: datetime | None
    outcome: str | None
    decided_by: str | None
    note: str | None


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a decision did."""

    task: int
    saga: str
    outcome: str
    did: str
    """In a sentence."""
    event_id: str | None
    """Of the event that was published, if one was."""


class TaskDesk:
    """The tasks in one database, of every service that keeps its ledger there. Safe beside running services.

    :param inbox: where a step to be retried is put; the service's inbox must be in the same database.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        sagas: SagaTables,
        outbox: OutboxTables,
        inbox: InboxTables,
        clock: Clock | None = None,
    ) -> None:
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        self._moments = kit_of(engine).moments(clock if clock is not None else SystemClock())
        self._clock = clock
        self._saga_tables = sagas
        self._table = sagas.tasks
        self._outbox_tables = outbox
        self._inbox_tables = inbox

    async def list(
        self,
        *,
        state: str | None = "open",
        service: str | None = None,
        saga: str | None = None,
        name: str | None = None,
        selection: Selection | None = None,
        after: int = -1,
        limit: int = 100,
    ) -> Sequence[Task]:
        """Return tasks, oldest first; None as `state` means any.

        :param selection: of `TASKS`: only those that are meant.
        """
        table = self._table
        wanted = [
            column == value
            for column, value in (
                (table.c.state, state),
                (table.c.service, service),
                (table.c.saga, saga),
                (table.c.name, name),
            )
            if value is not None
        ]
        if selection is not None:
            wanted += selection.clauses(table, self._moments.kit)
        async with self._sessions() as session:
            rows = await session.execute(
                select(table).where(table.c.id > after, *wanted).order_by(table.c.id).limit(limit)
            )
            return [_task(row) for row in rows]

    async def show(self, task: int) -> Task:
        """Return one task.

        :raises NotFoundError: if there is no such task.
        """
        async with self._sessions() as session:
            return _task(await self._row(session, task))

    async def resolve(
        self,
        task: int,
        outcome: str,
        *,
        by: str,
        note: str,
        fields: Mapping[str, Any] | None = None,
        until: datetime | None = None,
        dry_run: bool = False,
    ) -> Resolution:
        """Carry out one of a task's outcomes and record who chose it and why, in one transaction.

        Exactly once: of two people who decide at the same time one finds the task resolved.

        :param fields: what the outcome asks for.
        :param until: for an outcome that retries the step: not before this time.
        :param dry_run: carry it out and undo it: nothing is changed, and what would fail fails.
        :raises NotFoundError: if there is no such task.
        :raises ConflictError: if the task is not open any more, or its step cannot be retried as things are.
        :raises ConfigurationError: if it has no such outcome, name, note or fields are missing, or the event could not
            be read again with a field's value.
        """
        if not by.strip() or not note.strip():
            raise ConfigurationError("Resolving a task needs a name and a note: the record is read years later.")
        decision = Decision(by, note)
        if until is not None and until.tzinfo is None:
            raise ConfigurationError(f"The time {until} has no timezone. Give one, e.g. 2026-12-01T08:00+01:00.")
        async with self._sessions() as session, session.begin() as transaction:
            row = await self._locked(session, task)
            chosen = row.outcomes.get(outcome)
            if chosen is None:
                known = ", ".join(sorted(row.outcomes))
                raise ConfigurationError(f"Task {task} has no outcome {outcome!r}; it has: {known}.")
            if until is not None and chosen["do"] != "retry":
                raise ConfigurationError(f"The outcome {outcome!r} of task {task} retries nothing, so it has no time.")
            await session.execute(
                update(self._table)
                .where(self._table.c.id == task)
                .values(state="resolved", ended_at=self._moments.now(), outcome=outcome, decided_by=by, note=note)
            )
            sagas = Rollbacks(
                row.service,
                outbox=Outbox(source=row.source, tables=self._outbox_tables),
                tables=self._saga_tables,
                announce=row.announce,
                clock=self._clock,
            )
            # Told before anything the outcome does, since it is what caused that.
            await sagas.tell(session, TaskEnded(row.service, row.id, row.name, "resolved", outcome, by), row.saga)
            with bind(SagaContext(correlationid=row.saga, causationid=row.step_event)):
                did, event_id = await self._carry_out(session, sagas, row, outcome, chosen, by, note, fields, until)
            await self._record(session, decision, row, f"{outcome}: {did}", event_id)
            if dry_run:
                await transaction.rollback()
            return Resolution(task, row.saga, outcome, did, event_id)

    # --- inside ---

    async def _record(
        self, session: AsyncSession, decision: Decision, row: Row[Any], did: str, event_id: str | None
    ) -> None:
        statement = self._saga_tables.audit.record(decision, "tasks", "resolve")
        kept = {"place": row.service, "subject": str(row.id), "correlationid": row.saga}
        await session.execute(statement, [{**kept, "did": did, "event_id": event_id or row.step_event}])

    async def _carry_out(
        self,
        session: AsyncSession,
        sagas: Rollbacks,
        row: Row[Any],
        outcome: str,
        chosen: Mapping[str, Any],
        by: str,
        note: str,
        fields: Mapping[str, Any] | None,
        until: datetime | None,
    ) -> tuple[str, str | None]:
        data = _filled(row.id, outcome, chosen, fields or {})
        match chosen["do"]:
            case "emit":
                event_id = await _publish(session, sagas, row.saga, chosen, data)
                return f"published {chosen['type']}", event_id
            case "retry":
                await self._retry(session, row, chosen, note, until)
                return f"the step handles event {row.step_event} again", None
            case "roll-back":
                reason = f"task {row.id} ({row.name}) resolved as {outcome!r} by {by}: {note}"
                await sagas.begin_rollback(
                    session, row.saga, reason=reason, cause=row.step_event, force=bool(chosen.get("force"))
                )
                if "type" in chosen:
                    event_id = await _publish(session, sagas, row.saga, chosen, data)
                else:
                    asked = RollbackRequested(reason=reason, by=by)
                    event_id = (await sagas.outbox.publish(session, asked)).id
                return "the rollback of the saga has started", event_id
            case _:
                return "nothing further", None

    async def _retry(
        self, session: AsyncSession, row: Row[Any], chosen: Mapping[str, Any], note: str, until: datetime | None
    ) -> None:
        event = restore(row.envelope, row.data)
        if isinstance(event, Malformed):
            raise ConfigurationError(f"The event that task {row.id} keeps cannot be read: {event.reason}.")
        connection = await session.connection()
        tables, moments = self._inbox_tables, self._moments

        def put(sync: Connection) -> str | None:
            return redo(
                sync,
                tables,
                moments,
                consumer=chosen["inbox"],
                transaction=chosen["transaction"],
                event=event,
                topic=row.topic,
                why=note,
                until=until,
            )

        refusal = await connection.run_sync(put)
        if refusal is not None:
            raise ConflictError(f"Task {row.id} stays open: {refusal}")

    async def _locked(self, session: AsyncSession, task: int) -> Row[Any]:
        """Lock the task's saga, then read the task: in the order in which a rollback takes them."""
        row = await self._row(session, task)
        ledger = Participant(
            row.service, outbox=Outbox(source=row.source, tables=self._outbox_tables), tables=self._saga_tables
        ).ledger(session)
        await session.execute(ledger.ensure(row.saga))
        await session.execute(ledger.lock(row.saga))
        row = await self._row(session, task)
        if row.state != "open":
            how = f"resolved as {row.outcome!r} by {row.decided_by}" if row.state == "resolved" else "withdrawn"
            raise ConflictError(
                f"Task {task} is not open any more: it was {how} at {aware(row.ended_at):%Y-%m-%d %H:%M:%S} UTC."
            )
        return row

    async def _row(self, session: AsyncSession, task: int) -> Row[Any]:
        row = (await session.execute(select(self._table).where(self._table.c.id == task))).one_or_none()
        if row is None:
            raise NotFoundError(f"There is no task {task}. List them with `sagapost tasks list`.")
        return row


async def _publish(session: AsyncSession, sagas: Rollbacks, saga: str, chosen: Mapping[str, Any], data: Any) -> str:
    event = await sagas.outbox.publish(
        session,
        msgspec.json.encode(data),
        type=chosen["type"],
        datacontenttype="application/json",
        correlationid=saga,
        key=chosen["key"],
    )
    return event.id


def _filled(task: int, outcome: str, chosen: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
    """Return the event's data with what the person gave."""
    asks = set(chosen.get("asks", ()))
    if asks != set(fields):
        wanted = ", ".join(sorted(asks)) or "no fields"
        given = ", ".join(sorted(fields)) or "none"
        raise ConfigurationError(f"The outcome {outcome!r} of task {task} asks for {wanted}; given: {given}.")
    data = chosen.get("data")
    for name, value in fields.items():
        why = _misfit(name, value, chosen.get("shape"))
        if why is not None:
            raise ConfigurationError(
                f"Task {task} stays open: the field {name!r} of {chosen['type']} cannot be that: {why}. "
                "Give another value; on the command line, text that looks like a number is quoted: NAME='\"4711\"'."
            )
    return {**data, **fields} if fields and isinstance(data, dict) else data


def _misfit(name: str, value: object, shape: Mapping[str, Any] | None) -> str | None:
    """Return why the event that is published could not be read again with this value; None if that is not known."""
    fields = fields_of(shape) if shape is not None else None
    if shape is None or fields is None:
        return None
    if name not in fields:
        return f"the event has no such field; it has: {', '.join(sorted(fields))}"
    return misfit(value, fields[name], shape)


_SENTENCES = {
    "retry": "the step handles its event again",
    "roll-back": "the saga is rolled back",
    "close": "nothing: the saga has gone on by other means",
}


def _task(row: Row[Any]) -> Task:
    return Task(
        id=row.id,
        service=row.service,
        saga=row.saga,
        name=row.name,
        title=row.title,
        details=row.details,
        outcomes={
            name: _SENTENCES.get(chosen["do"]) or f"publishes {chosen['type']}"
            for name, chosen in sorted(row.outcomes.items())
        },
        asks={name: tuple(chosen["asks"]) for name, chosen in row.outcomes.items() if chosen.get("asks")},
        state=row.state,
        opened_at=aware(row.opened_at).astimezone(UTC),
        due_at=None if row.due_at is None else aware(row.due_at).astimezone(UTC),
        ended_at=None if row.ended_at is None else aware(row.ended_at).astimezone(UTC),
        outcome=row.outcome,
        decided_by=row.decided_by,
        note=row.note,
    )
