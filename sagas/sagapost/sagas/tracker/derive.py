"""From a saga's history to where it is: a pure function, so replay and order of arrival make no difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec

from sagapost.sagas import events
from sagapost.sagas.tracker.entries import Entry, moment
from sagapost.sagas.tracker.history import History, causal_order
from sagapost.sagas.tracker.lifecycle import Detail, clean, lifecycle_of
from sagapost.sagas.tracker.route import Route, Stop
from sagapost.sagas.tracker.view import (
    ExpectedStep,
    OpenTask,
    PendingDeadline,
    Rollback,
    SagaState,
    SagaView,
    StepDone,
    TrackedIslandStep,
)

__all__ = ["derive"]

_AFTER_PIVOT = "rollback-past-pivot"

_ISLAND_AT_WORK = frozenset({"waiting", "rolling_back", "stuck"})
"""States of an island's step whose answer, or whose decision, is still to come."""


@dataclass(slots=True)
class _Part:
    """What one service has said about its rollback."""

    total: int | None = None
    reason: str | None = None
    done: list[str] = field(default_factory=list[str])
    remaining: int = 0
    rolled_back: bool = False
    given_up: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class _Facts:
    """What one pass over the history finds."""

    types: dict[str, Entry] = field(default_factory=dict[str, Entry])
    done: dict[Stop, Entry] = field(default_factory=dict[Stop, Entry])
    failed: dict[Stop, Entry] = field(default_factory=dict[Stop, Entry])
    undone: set[Stop] = field(default_factory=set[Stop])
    parts: dict[str, _Part] = field(default_factory=dict[str, _Part])
    told: list[tuple[str, Entry]] = field(default_factory=list[tuple[str, Entry]])
    """(service, event) of what makes services roll back."""
    requested: events.RollbackRequested | None = None
    tasks: dict[tuple[str, int], OpenTask] = field(default_factory=dict[tuple[str, int], OpenTask])
    ended_tasks: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    islands: dict[tuple[str, str, str, str], TrackedIslandStep] = field(
        default_factory=dict[tuple[str, str, str, str], TrackedIslandStep]
    )
    over: Entry | None = None


def derive(saga: str, history: History, route: Route) -> SagaView:
    """Say where a saga is.

    Depends on the set of events and on the choreography only: not on the order of arrival, and not on the time at
    which it is asked. Whether a deadline has passed is asked of the view.
    """
    entries = causal_order(history.entries)
    facts = _read(entries, route)
    rollbacks = _rollbacks(facts, route)
    tasks = tuple(task for key, task in facts.tasks.items() if key not in facts.ended_tasks)
    expected = _expected(facts, route)
    state, reason = _state(facts, rollbacks, tasks, expected, route)
    if state is SagaState.COMPLETED or state is SagaState.ROLLED_BACK:
        expected = ()
    last = history.entries[-1].at
    ended = None
    if state is SagaState.COMPLETED and facts.over is not None:
        spoken = (*facts.done.values(), *facts.failed.values(), facts.over)
        ended = moment(max(entry.at for entry in spoken))
    elif state is SagaState.ROLLED_BACK:
        ended = moment(last)
    services = dict.fromkeys(entry.source for entry in entries)
    return SagaView(
        saga=saga,
        state=state,
        reason=clean(reason) if reason is not None else None,
        started=moment(history.started if history.started is not None else last),
        last=moment(last),
        ended=ended,
        history=tuple(entries),
        truncated=history.truncated,
        steps=tuple(
            StepDone(stop.service, stop.name, entry.type, moment(entry.at), failed=failed, undone=stop in facts.undone)
            for stops, failed in ((facts.done, False), (facts.failed, True))
            for stop, entry in stops.items()
        ),
        expected=expected,
        deadlines=() if state.over else _deadlines(facts, route),
        rollbacks=rollbacks,
        tasks=tasks,
        islands=tuple(facts.islands.values()),
        services=tuple((source, route.service(source)) for source in services),
    )


# --- reading ---


def _read(entries: Sequence[Entry], route: Route) -> _Facts:
    facts = _Facts()
    by_id = {entry.id: entry for entry in entries}
    for entry in entries:
        facts.types.setdefault(entry.type, entry)
        if entry.type in route.rolls_back:
            facts.told += [(service, entry) for service in route.rolls_back[entry.type]]
        if entry.detail is not None:
            _read_lifecycle(facts, entry, entry.detail)
            continue
        if entry.type in route.ends and facts.over is None:
            facts.over = entry
        for stop in route.said.get((entry.source, entry.type), ()):
            cause = by_id.get(entry.cause) if entry.cause is not None else None
            if entry.type in stop.undone_by:
                facts.undone.add(stop)
            elif cause is not None and cause.type not in stop.handles:
                continue  # another step of the service, which says the same
            elif entry.type in stop.emits:
                facts.done.setdefault(stop, entry)
            else:
                facts.failed.setdefault(stop, entry)
    return facts


def _read_lifecycle(facts: _Facts, entry: Entry, detail: Detail) -> None:
    try:
        said = lifecycle_of(entry.type, detail)
    except msgspec.ValidationError:
        return  # of another shape; reported when it arrived, see `intake`
    match said:
        case events.RollbackRequested():
            facts.requested = facts.requested or said
        case events.TaskOpened(service, task, name, title, outcomes):
            facts.tasks.setdefault((service, task), OpenTask(service, task, name, title, outcomes, moment(entry.at)))
        case events.TaskEnded(service, task):
            facts.ended_tasks.add((service, task))
        case events.IslandStepChanged(service, island, run, step, state, attempt, reason):
            # Its place in the list is that of its first change; what it shows is the last.
            shown = TrackedIslandStep(service, island, run, step, state, attempt, reason)
            facts.islands[service, island, run, step] = shown
        case events.RetryRequested():
            # Whoever was asked tries again; it says so if it gives up again.
            for part in facts.parts.values():
                part.given_up.clear()
        case _:
            _read_rollback(facts, said)


def _read_rollback(facts: _Facts, said: object) -> None:
    match said:
        case events.RollbackStarted(service, reason, compensations):
            part = facts.parts.setdefault(service, _Part())
            part.total, part.reason = compensations, reason
        case events.CompensationDone(service, name, remaining):
            part = facts.parts.setdefault(service, _Part())
            part.done.append(name)
            part.remaining = remaining
            part.rolled_back = False
            part.given_up.pop(name, None)
        case events.CompensationStuck(service, name, error):
            facts.parts.setdefault(service, _Part()).given_up[name] = error
        case events.RolledBack(service):
            part = facts.parts.setdefault(service, _Part())
            part.rolled_back = True
            part.given_up.clear()
        case _:
            pass  # another release's; part of the history


# --- judging ---


def _rollbacks(facts: _Facts, route: Route) -> tuple[Rollback, ...]:
    """Return every service that is to undo its part: those that say so, and those the choreography says must."""
    services = dict.fromkeys(facts.parts)
    if facts.told or facts.requested is not None:
        services.update(dict.fromkeys(service for service, _ in facts.told))
        if facts.requested is not None:
            services.update(dict.fromkeys(name for names in route.rolls_back.values() for name in names))
    # Past the point of no return a service asks a person instead, who may have decided to go on.
    kept = {task.service for task in facts.tasks.values() if task.name == _AFTER_PIVOT}
    found: list[Rollback] = []
    for service in services:
        part = facts.parts.get(service)
        if part is not None and (part.total is not None or part.done or part.rolled_back or part.given_up):
            done = tuple(part.done)
            total = max(part.total or 0, len(done) + part.remaining)
            finished = part.rolled_back or (part.total == 0 and not done and not part.given_up)
            stuck = "; ".join(f"{name}: {error}" for name, error in part.given_up.items()) or None
            found.append(Rollback(service, total, done, finished, stuck))
        elif service not in kept:
            found.append(_unannounced(service, facts, route))
    return tuple(found)


def _unannounced(service: str, facts: _Facts, route: Route) -> Rollback:
    """Judge the rollback of a service that says nothing about it by what its compensations publish."""
    stops = [stop for stop in route.stops.get(service, ()) if stop in facts.done and stop.undone_by]
    done = tuple(stop.name for stop in stops if stop in facts.undone)
    return Rollback(service, len(stops), done, len(done) == len(stops), None)


def _expected(facts: _Facts, route: Route) -> tuple[ExpectedStep, ...]:
    expected: dict[Stop, ExpectedStep] = {}
    for type_, entry in facts.types.items():
        for stop in route.after.get(type_, ()):
            if stop.visible and stop not in facts.done and stop not in facts.failed and stop not in expected:
                expected[stop] = ExpectedStep(stop.service, stop.name, type_, moment(entry.at))
    return tuple(expected.values())


def _state(
    facts: _Facts,
    rollbacks: Sequence[Rollback],
    tasks: Sequence[OpenTask],
    expected: Sequence[ExpectedStep],
    route: Route,
) -> tuple[SagaState, str | None]:
    given_up = [f"{rollback.service}: {rollback.stuck}" for rollback in rollbacks if rollback.stuck]
    if given_up:
        return SagaState.STUCK, "; ".join(given_up)
    if tasks:
        return SagaState.WAITING, f"{tasks[0].service}: {tasks[0].title}"
    if rollbacks:
        reason = _why(facts)
        ended = facts.over is not None or not expected or not route.ends
        if all(rollback.finished for rollback in rollbacks) and ended:
            return SagaState.ROLLED_BACK, reason
        return SagaState.ROLLING_BACK, reason
    at_work = any(step.state in _ISLAND_AT_WORK for step in facts.islands.values())
    if facts.over is not None and not expected and not at_work:
        return SagaState.COMPLETED, None
    return SagaState.RUNNING, None


def _why(facts: _Facts) -> str | None:
    if facts.requested is not None:
        return f"{facts.requested.reason} (asked for by {facts.requested.by})"
    for part in facts.parts.values():
        if part.reason:
            return part.reason
    return facts.told[0][1].type if facts.told else None


def _deadlines(facts: _Facts, route: Route) -> tuple[PendingDeadline, ...]:
    """Return the deadlines that were set, have not been cancelled, and have not fired."""
    found: list[PendingDeadline] = []
    for stops in route.stops.values():
        cancelled = {
            name for stop in stops for name in stop.cancels if any(type_ in facts.types for type_ in stop.handles)
        }
        for stop in stops:
            for deadline in stop.sets:
                began = facts.done.get(stop) or next(
                    (facts.types[type_] for type_ in sorted(stop.handles) if type_ in facts.types), None
                )
                if began is None or deadline.name in cancelled or deadline.event in facts.types:
                    continue
                due = _later(moment(began.at), deadline.after_seconds)
                found.append(PendingDeadline(stop.service, deadline.name, deadline.event, due))
    return tuple(sorted(found, key=lambda deadline: (deadline.due, deadline.service, deadline.name)))


def _later(began: datetime, seconds: float) -> datetime:
    try:
        return began + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return datetime.max.replace(tzinfo=UTC)  # a deadline beyond the calendar never passes
