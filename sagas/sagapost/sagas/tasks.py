"""Human tasks: a step hands a decision to a person, and the saga waits.

A task is opened in the step's own transaction, with everything each of its outcomes will do already prepared. Whoever
resolves it (`sagapost tasks resolve`, `TaskDesk.resolve`) needs the database and no code of the service. Opening,
resolving and rolling back meet on the saga's row in `saga_states`: a rollback withdraws open tasks, and a task opened
after it is withdrawn at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias, assert_never

import msgspec
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from sagapost.core.codec import encode_data
from sagapost.core.databases import kit_of
from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError
from sagapost.core.naming import event_type_of
from sagapost.inbox.declared.context import Context
from sagapost.inbox.declared.outcomes import Instead
from sagapost.inbox.kept.envelope import envelope_of
from sagapost.sagas.choreography.schemas import schema_of
from sagapost.sagas.events import TaskEnded, TaskOpened
from sagapost.sagas.participant import Participant

__all__ = [
    "CHOICES",
    "CHOICES_BESIDE_AN_EFFECT",
    "Close",
    "Emit",
    "Escalate",
    "Outcome",
    "RetryStep",
    "RollBack",
    "end_task",
    "has_open_task",
    "open_task",
    "withdraw_tasks",
]

_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Emit:
    """Publish an event in the saga: the choreography goes on from there.

    :param event: complete but for what is asked for.
    :param asks: fields of the event that the person fills in; they replace what `event` has there.
    :param key: its ordering key; default: that of the event whose handling opened the task.
    :param type: event type; default: that of the event's class.
    """

    event: object
    asks: tuple[str, ...] = ()
    key: str | None = None
    type: str | None = None


@dataclass(frozen=True, slots=True)
class RetryStep:
    """Handle the event whose handling opened the task once more, with a fresh budget of attempts.

    By the same handlers, those that share the step's transaction. For a step that was undone: offered beside one whose
    effect was kept (`StepContext.open_task`), it repeats that effect.
    """


@dataclass(frozen=True, slots=True)
class RollBack:
    """Start the rollback of the saga.

    :param event: the failure event that tells the other services; default: `RollbackRequested`, which every service
        handles that has `Sagas.rolls_back_on`.
    :param force: also after the point of no return.
    """

    event: object | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Close:
    """Do nothing: the saga has gone on by other means."""


Outcome: TypeAlias = Emit | RetryStep | RollBack | Close

CHOICES: Mapping[str, Outcome] = {"retry": RetryStep(), "roll-back": RollBack(), "close": Close()}
"""What a person can choose where a step was undone and says nothing else."""

CHOICES_BESIDE_AN_EFFECT: Mapping[str, Outcome] = {each: CHOICES[each] for each in ("roll-back", "close")}
"""What a person can choose where the effect of a step was kept: handled again, its event would have a second one."""


class Escalate(Instead):
    """Raise in a step: undo what it did, and open a task in its place. The message counts as handled.

    Needs an inbox made with ``context=sagas.context``. Parameters as for `StepContext.open_task`; by default
    the person can also let the step be tried again.
    """

    def __init__(
        self,
        name: str,
        *,
        title: str,
        outcomes: Mapping[str, Outcome] = CHOICES,
        details: Mapping[str, Any] | None = None,
        due: timedelta | None = None,
    ) -> None:
        async def work(ctx: Context) -> None:
            sagas: Participant | None = getattr(ctx, "sagas", None)
            if sagas is None:
                raise ConfigurationError(
                    f"The step escalated to the task {name!r}, but the inbox {ctx.consumer!r} knows no Sagas. "
                    "Make it with Inbox(..., context=sagas.context)."
                )
            await open_task(
                sagas,
                ctx.session,
                ctx.event.correlationid or ctx.event.id,
                name,
                title=title,
                outcomes=outcomes,
                details=details,
                due=due,
                step=ctx,
            )

        super().__init__(work, reason=f"escalated to a person: {name}")


async def open_task(
    sagas: Participant,
    session: AsyncSession,
    saga: str,
    name: str,
    *,
    title: str,
    outcomes: Mapping[str, Outcome] = CHOICES,
    details: Mapping[str, Any] | None = None,
    due: timedelta | None = None,
    step: Context | None = None,
    of_rollback: bool = False,
) -> int:
    """Open a task in the caller's transaction; return its number. See `StepContext.open_task`.

    If the saga is rolling back already, or has, the task is recorded as withdrawn.

    :param step: what opens it, for outcomes that have to do with its event.
    :param of_rollback: the decision is about undoing something, so it is asked for all the same.
    :raises ConfigurationError: if there is no outcome, or one cannot be prepared.
    """
    prepared, event = _prepared(name, outcomes, step), step.event if step is not None else None
    table, ledger = sagas.tables.tasks, sagas.ledger(session)
    await session.execute(ledger.ensure(saga))
    running = of_rollback or (await session.execute(ledger.lock(saga))).one().state == "running"
    moments = kit_of(session.get_bind()).moments(sagas.clock)
    number: int = (
        await session.execute(
            insert(table)
            .values(
                service=sagas.service,
                saga=saga,
                name=name,
                title=title,
                details=msgspec.to_builtins(dict(details or {}), str_keys=True),
                outcomes=prepared,
                step_event=event.id if event is not None else None,
                topic=step.topic if step is not None else None,
                envelope=envelope_of(event) if event is not None else None,
                data=event.data if event is not None else None,
                source=sagas.outbox.source,
                announce=sagas.announce,
                of_rollback=of_rollback,
                state="open" if running else "withdrawn",
                due_at=moments.after(due) if due is not None else None,
                ended_at=None if running else moments.now(),
                note=None if running else "The saga was rolled back before.",
            )
            .returning(table.c.id)
        )
    ).scalar_one()
    if running:
        await sagas.tell(session, TaskOpened(sagas.service, number, name, title, tuple(prepared)), saga)
    return number


async def withdraw_tasks(sagas: Participant, session: AsyncSession, saga: str, *, why: str) -> int:
    """Close the open tasks of a saga that no person need decide any more; return how many.

    The caller holds the lock on the saga's row.
    """
    table = sagas.tables.tasks
    moments = kit_of(session.get_bind()).moments(sagas.clock)
    mine = (
        table.c.service == sagas.service,
        table.c.saga == saga,
        table.c.state == "open",
        table.c.of_rollback.is_(False),
    )
    rows = (await session.execute(select(table.c.id, table.c.name).where(*mine).order_by(table.c.id))).all()
    if rows:
        await session.execute(update(table).where(*mine).values(state="withdrawn", ended_at=moments.now(), note=why))
    for row in rows:
        await sagas.tell(session, TaskEnded(sagas.service, row.id, row.name, "withdrawn", None, None), saga)
    return len(rows)


async def end_task(sagas: Participant, session: AsyncSession, saga: str, task: int, *, why: str) -> None:
    """Withdraw one task, if it is still open: what it asks has settled itself. The caller holds the saga's lock."""
    table = sagas.tables.tasks
    moments = kit_of(session.get_bind()).moments(sagas.clock)
    name = (
        await session.execute(
            update(table)
            .where(table.c.id == task, table.c.state == "open")
            .values(state="withdrawn", ended_at=moments.now(), note=why)
            .returning(table.c.name)
        )
    ).scalar_one_or_none()
    if name is not None:
        await sagas.tell(session, TaskEnded(sagas.service, task, name, "withdrawn", None, None), saga)


async def has_open_task(sagas: Participant, session: AsyncSession, saga: str, name: str) -> bool:
    """Return whether the saga waits for a decision of this name."""
    table = sagas.tables.tasks
    found: int = (
        await session.execute(
            select(func.count())
            .select_from(table)
            .where(
                table.c.service == sagas.service,
                table.c.saga == saga,
                table.c.state == "open",
                table.c.name == name,
            )
        )
    ).scalar_one()
    return found > 0


def _prepared(name: str, outcomes: Mapping[str, Outcome], step: Context | None) -> dict[str, dict[str, Any]]:
    if not outcomes:
        raise ConfigurationError(f"The task {name!r} has no outcome a person could choose.")
    return {choice: _recorded(name, choice, outcome, step) for choice, outcome in outcomes.items()}


def _recorded(name: str, choice: str, outcome: Outcome, step: Context | None) -> dict[str, Any]:
    """Return an outcome as plain data; whoever resolves the task reads it back."""
    event = step.event if step is not None else None
    match outcome:
        case Emit(event=payload, asks=asks, key=key, type=type_):
            recorded = _event(name, choice, payload, key, type_, event)
            missing = [field for field in asks if not isinstance(recorded["data"], dict)]
            if missing:
                raise ConfigurationError(
                    f"The outcome {choice!r} of the task {name!r} asks for {missing}, but its event is no JSON object."
                )
            # Whoever resolves the task has no code of the service; an answer that does not fit is refused by this.
            shape = schema_of(type(payload)) if asks else None
            return {"do": "emit", "asks": list(asks), "shape": shape, **recorded}
        case RetryStep():
            if step is None:
                raise ConfigurationError(
                    f"The outcome {choice!r} of the task {name!r} is RetryStep, but no event was being handled."
                )
            return {"do": "retry", "inbox": step.consumer, "transaction": step.transaction}
        case RollBack(event=payload, force=force):
            recorded = _event(name, choice, payload, None, None, event) if payload is not None else {}
            return {"do": "roll-back", "force": force, **recorded}
        case Close():
            return {"do": "close"}
        case _:
            assert_never(outcome)


def _event(
    name: str, choice: str, payload: object, key: str | None, type_: str | None, event: Event | None
) -> dict[str, Any]:
    type_ = type_ if type_ is not None else event_type_of(type(payload))
    data, media_type = encode_data(payload, event_type=type_)
    if media_type != _JSON:
        raise ConfigurationError(
            f"The outcome {choice!r} of the task {name!r} publishes {type_!r}, which is not encoded as JSON."
        )
    chosen = key if key is not None or event is None else event.partitionkey
    return {"type": type_, "data": msgspec.json.decode(data), "key": chosen}
