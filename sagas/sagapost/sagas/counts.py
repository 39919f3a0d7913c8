"""Which sagas are not over in a database, and which wait for an operator: what people look at first.

For reading beside running services. Every statement is bounded: it follows an index, and counting stops at 10,000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, FromClause, and_, func, select

from sagapost.core.databases import aware
from sagapost.core.databases.looking import count_up_to, moment
from sagapost.sagas.tables import SagaTables

if TYPE_CHECKING:
    from sagapost.sagas.tracker.tables import TrackerTables

__all__ = ["FailingCompensation", "SagaCounts", "TrackedSaga", "TrackerCounts", "saga_counts", "tracker_counts"]

COUNTED = 10_000


@dataclass(frozen=True, slots=True)
class FailingCompensation:
    """A compensation that was tried and has not succeeded."""

    saga: str
    name: str
    state: str
    """`pending`: it is tried again. `stuck`: it was given up, and an operator decides."""
    attempts: int
    error: str | None
    rolling_back_since: datetime


@dataclass(frozen=True, slots=True)
class SagaCounts:
    """What is not over in one service, and what waits for an operator."""

    rolling_back: int = 0
    oldest_rollback: timedelta | None = None
    """For how long the first of those that roll back has done so."""
    stuck: int = 0
    tasks: int = 0
    """Open ones."""
    late_tasks: int = 0
    """Open ones whose decision was expected before now."""
    pending_compensations: int = 0
    """Not done yet, of the sagas that roll back or are stuck."""
    failing: Sequence[FailingCompensation] = ()
    """Some of those that were tried and failed."""


@dataclass(frozen=True, slots=True)
class TrackedSaga:
    """A saga that a tracker finds stuck or late."""

    saga: str
    state: str
    reason: str | None
    late_for: timedelta | None
    """None: no deadline of it has passed."""


@dataclass(frozen=True, slots=True)
class TrackerCounts:
    """What a tracker finds in all services together."""

    stuck: int
    late: int
    """Sagas with a deadline that has passed."""
    sagas: Sequence[TrackedSaga]
    """Some of both."""


def saga_counts(connection: Connection, tables: SagaTables, *, examples: int = 5) -> dict[str, SagaCounts]:
    """Return the counts of every service that keeps its ledger here and has something to count; each by an index.

    :param examples: how many failing compensations of a service are named.
    """
    states, tasks = tables.states, tables.tasks
    now = moment(connection)
    rolling_back = states.c.state == "rolling_back"
    open_ = tasks.c.state == "open"
    found: dict[str, dict[str, Any]] = {}

    def note(what: str, values: Mapping[str, Any]) -> None:
        for service, value in values.items():
            found.setdefault(service, {})[what] = value

    note("rolling_back", _by_service(connection, states, rolling_back))
    note("stuck", _by_service(connection, states, states.c.state == "stuck"))
    note("tasks", _by_service(connection, tasks, open_))
    note("late_tasks", _by_service(connection, tasks, and_(open_, tasks.c.due_at <= now)))
    for service in found:
        found[service] |= _rollbacks(connection, tables, service, now, examples)
    return {name: SagaCounts(**counts) for name, counts in sorted(found.items())}


def _by_service(connection: Connection, table: FromClause, which: ColumnElement[bool]) -> dict[str, int]:
    some = select(table.c.service).where(which).limit(COUNTED).subquery()
    counted = select(some.c.service, func.count()).group_by(some.c.service)
    return dict(connection.execute(counted).all())


def _rollbacks(
    connection: Connection, tables: SagaTables, service: str, now: datetime, examples: int
) -> dict[str, Any]:
    states, compensations = tables.states, tables.compensations
    # A thousand at most: the intents of each are found by an index.
    open_ = [
        select(states.c.saga, states.c.rollback_started_at)
        .where(states.c.service == service, states.c.state == state)
        .limit(500)
        for state in ("rolling_back", "stuck")
    ]
    rolling, stuck = (each.subquery() for each in open_)
    pending, failing = 0, list[FailingCompensation]()
    for sagas in (stuck, rolling):
        left = and_(
            compensations.c.service == service,
            compensations.c.saga == sagas.c.saga,
            compensations.c.state.in_(("pending", "stuck")),
        )
        joined = sagas.join(compensations, left)
        pending += connection.execute(select(func.count()).select_from(joined)).scalar_one()
        columns = compensations.c
        rows = connection.execute(
            select(
                columns.saga,
                columns.name,
                columns.state,
                columns.attempts,
                columns.last_error,
                sagas.c.rollback_started_at,
            )
            .select_from(joined)
            .where(columns.last_error.is_not(None))
            .order_by(columns.id)
            .limit(examples - len(failing))
        )
        failing += [FailingCompensation(*row[:5], aware(row[5])) for row in rows]
    first = connection.execute(select(func.min(rolling.c.rollback_started_at))).scalar_one()
    return {
        "oldest_rollback": None if first is None else now - aware(first),
        "pending_compensations": pending,
        "failing": tuple(failing),
    }


def tracker_counts(connection: Connection, tables: TrackerTables, *, examples: int = 5) -> TrackerCounts:
    """Return what is stuck and late in the sagas of a tracker; each by an index.

    :param examples: how many sagas of each kind are named.
    """
    sagas, now = tables.sagas, moment(connection)
    stuck, late = sagas.c.state == "stuck", sagas.c.due_at <= now
    named: dict[str, TrackedSaga] = {}
    for which, order in ((stuck, sagas.c.started_at), (late, sagas.c.due_at)):
        rows = connection.execute(
            select(sagas.c.saga, sagas.c.state, sagas.c.reason, sagas.c.due_at)
            .where(which)
            .order_by(order)
            .limit(examples)
        )
        for saga, state, reason, due in rows:
            late_for = None if due is None or aware(due) > now else now - aware(due)
            named.setdefault(saga, TrackedSaga(saga, state, reason, late_for))
    return TrackerCounts(
        stuck=count_up_to(COUNTED, connection, sagas, stuck, sagas.c.started_at),
        late=count_up_to(COUNTED, connection, sagas, late, sagas.c.due_at),
        sagas=tuple(named.values()),
    )
