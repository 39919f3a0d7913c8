"""The ledger's statements: recording what to undo, starting a rollback, and deciding between the two.

Progress and rollback of one saga meet on its row in `saga_states`: both lock it first, so the database decides which
came first. If the rollback did, the late step's intent is due at once. Statements run in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Executable, Row, case, func, insert, select, update
from sqlalchemy.sql import ColumnElement

from sagapost.core.databases import Moments
from sagapost.sagas.tables import SagaTables

__all__ = ["Intent", "Ledger", "intent_of"]


@dataclass(frozen=True, slots=True)
class Intent:
    """One undo intent as recorded."""

    id: int
    name: str
    arguments: Mapping[str, Any]
    step_event: str | None
    key: str | None
    """Ordering key of the step's event."""
    attempts: int


class Ledger:
    """Statements for one service. Builders only: whoever holds the transaction executes them, sync or async."""

    def __init__(self, service: str, tables: SagaTables, moments: Moments) -> None:
        self.service = service
        self._kit = moments.kit
        self._moments = moments
        self.tables = tables
        self._states = tables.states
        self._intents = tables.compensations

    def now(self) -> Executable:
        """The time by which deadlines and compensations are due."""
        return select(self._moments.now())

    def ensure(self, saga: str) -> Executable:
        """Make sure that the saga has a row; changes nothing if it has."""
        values = {"service": self.service, "saga": saga, "state": "running"}
        return self._kit.insert_once(self._states).values(values)

    def lock(self, saga: str) -> Executable:
        """Lock the saga's row until the transaction ends, and read its state.

        SQLite has no row locks and needs none: the insert in `ensure` made this the only writing transaction.
        """
        return (
            select(
                self._states.c.state,
                self._states.c.rollback_started_at,
                self._states.c.rollback_reason,
                self._states.c.rollback_cause,
                self._states.c.pivot_reason,
                self._states.c.completed_at,
            )
            .where(self._mine(saga))
            .with_for_update()
        )

    def record(
        self, saga: str, name: str, arguments: Mapping[str, Any], step_event: str | None, key: str | None
    ) -> Executable:
        """Write an undo intent."""
        return insert(self._intents).values(self._intent(saga, name, arguments, step_event, key))

    def record_first(
        self, saga: str, name: str, arguments: Mapping[str, Any], step_event: str | None, key: str | None
    ) -> Executable | None:
        """Write an undo intent and, if it is missing, the saga's row; reads whether it was missing (1 or 0).

        One statement instead of three for what nearly every step does. If the row was missing, it is this
        transaction's own, and whoever wants to begin a rollback waits for its end. If not, the caller locks the row
        after this and reads what has become of the saga. None where WITH takes no INSERT (SQLite).
        """
        if not self._kit.writes_in_with:
            return None
        created = (
            self._kit.insert_once(self._states)
            .values(service=self.service, saga=saga, state="running")
            .returning(self._states.c.state)
            .cte("created")
        )
        return (
            insert(self._intents)
            .values(self._intent(saga, name, arguments, step_event, key))
            .add_cte(created)
            .returning(select(func.count()).select_from(created).scalar_subquery())
        )

    def _intent(
        self, saga: str, name: str, arguments: Mapping[str, Any], step_event: str | None, key: str | None
    ) -> dict[str, Any]:
        return {
            "service": self.service,
            "saga": saga,
            "name": name,
            "arguments": dict(arguments),
            "step_event": step_event,
            "partitionkey": key,
        }

    def begun_by_others(self, saga: str, step_event: str | None) -> Executable:
        """How many intents of the saga other events than this one have recorded."""
        return (
            select(func.count())
            .select_from(self._intents)
            .where(
                self._intents.c.service == self.service,
                self._intents.c.saga == saga,
                self._intents.c.step_event.is_distinct_from(step_event),
            )
        )

    def begin(self, saga: str, *, reason: str, cause: str | None, trace: tuple[str | None, str | None]) -> Executable:
        """Turn a running saga into one that is rolling back; the first reason stands.

        :param trace: traceparent and tracestate of what began it.
        """
        return (
            update(self._states)
            .where(self._mine(saga), self._states.c.state == "running")
            .values(
                state="rolling_back",
                rollback_started_at=self._moments.now(),
                rollback_reason=reason,
                rollback_cause=cause,
                rollback_traceparent=trace[0],
                rollback_tracestate=trace[1],
                due_at=self._moments.now(),
            )
        )

    def pivot(self, saga: str, reason: str) -> Executable:
        """Record that a running saga is past the point of no return; the first reason stands."""
        return (
            update(self._states)
            .where(self._mine(saga), self._states.c.state == "running", self._states.c.pivoted_at.is_(None))
            .values(pivoted_at=self._moments.now(), pivot_reason=reason)
        )

    def complete(self, saga: str) -> Executable:
        """Record that a running saga has ended well; the first time stands."""
        return (
            update(self._states)
            .where(self._mine(saga), self._states.c.state == "running", self._states.c.completed_at.is_(None))
            .values(completed_at=self._moments.now())
        )

    def reopen(self, saga: str) -> Executable:
        """A step came after the rollback had ended: there is something to undo again."""
        return (
            update(self._states)
            .where(self._mine(saga), self._states.c.state == "rolled_back")
            .values(state="rolling_back", rolled_back_at=None, due_at=self._moments.now())
        )

    def claim(self, besides: Collection[str] = ()) -> Executable:
        """Take the saga whose next compensation has been due the longest; another compensator takes another one.

        What is locked is the saga's first intent and not its row: a compensation may wait for somebody for long, and
        the saga's steps and events, which need the row, must not wait with it. Look again what is `due` then.

        :param besides: sagas that are not to be taken.
        """
        first, every = self._intents.alias("first"), self._intents.alias("every")
        earliest = (
            select(func.min(every.c.id))
            .where(every.c.service == self.service, every.c.saga == self._states.c.saga)
            .correlate(self._states)
            .scalar_subquery()
        )
        return (
            select(
                self._states.c.saga,
                self._states.c.rollback_reason,
                self._states.c.rollback_cause,
                self._states.c.rollback_traceparent,
                self._states.c.rollback_tracestate,
            )
            .join_from(self._states, first, first.c.id == earliest)
            .where(*self._due(), self._states.c.saga.not_in(sorted(besides)))
            .order_by(self._states.c.due_at)
            .limit(1)
            .with_for_update(of=first, skip_locked=True)
        )

    def due(self, saga: str) -> Executable:
        """Read whether a saga that was taken is still due."""
        return select(self._states.c.saga).where(self._mine(saga), *self._due())

    def _due(self) -> tuple[ColumnElement[bool], ...]:
        return (
            self._states.c.service == self.service,
            self._states.c.state == "rolling_back",
            self._states.c.due_at <= self._moments.now(),
        )

    def take_turn(self) -> Executable | None:
        """On SQLite: become the only writing transaction before anything is read that decides what is written.

        It has no row locks, and its driver begins a transaction with the first statement that writes: until then reads
        stand alone, and the end of an outermost savepoint is a commit. None where locks do this.
        """
        return self._kit.writers_turn(self._states)

    def next_intent(self, saga: str) -> Executable:
        """Lock the newest intent that is not undone: compensations run in reverse order."""
        return (
            select(
                self._intents.c.id,
                self._intents.c.name,
                self._intents.c.arguments,
                self._intents.c.step_event,
                self._intents.c.partitionkey,
                self._intents.c.attempts,
            )
            .where(
                self._intents.c.service == self.service,
                self._intents.c.saga == saga,
                self._intents.c.state == "pending",
            )
            .order_by(self._intents.c.id.desc())
            .limit(1)
            .with_for_update()
        )

    def remaining(self, saga: str) -> Executable:
        """How many intents are not undone."""
        return (
            select(func.count())
            .select_from(self._intents)
            .where(
                self._intents.c.service == self.service,
                self._intents.c.saga == saga,
                self._intents.c.state.in_(("pending", "stuck")),
            )
        )

    def done(self, intent: int, *, attempts: int) -> Executable:
        """An intent was carried out."""
        return (
            update(self._intents)
            .where(self._intents.c.id == intent)
            .values(state="done", attempts=attempts, ended_at=self._moments.now())
        )

    def failed(self, intent: int, *, attempts: int, error: str, give_up: bool) -> Executable:
        """An intent could not be carried out this time, or is left to a person; counted once."""
        return (
            update(self._intents)
            .where(
                self._intents.c.id == intent,
                self._intents.c.state == "pending",
                self._intents.c.attempts == attempts - 1,
            )
            .values(state="stuck" if give_up else "pending", attempts=attempts, last_error=error)
        )

    def note(self, intent: int, error: str) -> Executable:
        """Say why an intent waits, without counting; changes nothing if that has been said."""
        return (
            update(self._intents)
            .where(
                self._intents.c.id == intent,
                self._intents.c.state == "pending",
                self._intents.c.last_error.is_distinct_from(error),
            )
            .values(last_error=error)
        )

    def next_since(self, saga: str) -> Executable:
        """Since when the next intent has been the next: since the rollback began, or the one before it ended."""
        ended = (
            select(func.max(self._intents.c.ended_at))
            .where(self._intents.c.service == self.service, self._intents.c.saga == saga)
            .scalar_subquery()
        )
        began = self._states.c.rollback_started_at
        return select(case((ended > began, ended), else_=began)).where(self._mine(saga))

    def postpone(self, saga: str, delay: timedelta) -> Executable:
        """Try the saga's next compensation later."""
        return update(self._states).where(self._mine(saga)).values(due_at=self._moments.after(delay))

    def poke(self, saga: str) -> Executable:
        """Try the next compensation of a saga that is rolling back now, not later: what it waited for has happened."""
        return (
            update(self._states)
            .where(self._mine(saga), self._states.c.state == "rolling_back")
            .values(due_at=self._moments.now())
        )

    def finish(self, saga: str) -> Executable:
        """Everything is undone."""
        return (
            update(self._states)
            .where(self._mine(saga))
            .values(state="rolled_back", rolled_back_at=self._moments.now(), due_at=None)
        )

    def stick(self, saga: str) -> Executable:
        """A person must decide."""
        return update(self._states).where(self._mine(saga)).values(state="stuck", due_at=None)

    def resume(self, saga: str) -> Executable:
        """A person has decided; go on."""
        return (
            update(self._states)
            .where(self._mine(saga), self._states.c.state == "stuck")
            .values(state="rolling_back", due_at=self._moments.now())
        )

    def retry(self, saga: str) -> Executable:
        """Give the intents that were given up another round of attempts."""
        return (
            update(self._intents)
            .where(
                self._intents.c.service == self.service,
                self._intents.c.saga == saga,
                self._intents.c.state == "stuck",
            )
            .values(state="pending", attempts=0)
        )

    def take(self, intent: int) -> Executable:
        """Lock an intent: waits for the end of its compensation if it is running. Before the saga's row is locked."""
        return select(self._intents.c.id).where(self._intents.c.id == intent).with_for_update()

    def settle(self, intent: int, *, by: str, note: str) -> Executable:
        """A person has undone it by other means, or decided that it stands."""
        return (
            update(self._intents)
            .where(
                self._intents.c.id == intent,
                self._intents.c.service == self.service,
                self._intents.c.state.in_(("pending", "stuck")),
            )
            .values(state="settled", ended_at=self._moments.now(), decided_by=by, note=note)
        )

    def history(self, saga: str) -> Executable:
        """Every intent of a saga, oldest first."""
        return (
            select(self._intents)
            .where(self._intents.c.service == self.service, self._intents.c.saga == saga)
            .order_by(self._intents.c.id)
        )

    def _mine(self, saga: str) -> ColumnElement[bool]:
        return (self._states.c.service == self.service) & (self._states.c.saga == saga)


def intent_of(row: Row[Any]) -> Intent:
    """Read a row of `Ledger.next_intent`."""
    return Intent(row.id, row.name, row.arguments, row.step_event, row.partitionkey, row.attempts)
