"""From a saga's history to where it is: a pure function, so replay and order of arrival make no difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sagapost.sagas.tracker.entries import LIFECYCLE, Entry, moment
from sagapost.sagas.tracker.history import History, causal_order
from sagapost.sagas.tracker.route import Route, Stop
from sagapost.sagas.tracker.view import (
    Deadline,
    ExpectedStep,
    IslandStep,
    OpenTask,
    Rollback,
    SagaState,
    SagaView,
    StepDone,
)

__all__ = ["derive"]

_REQUESTED = f"{LIFECYCLE}rollback-requested.v1"
_STARTED = f"{LIFECYCLE}rollback-started.v1"
_DONE = f"{LIFECYCLE}compensation-done.v1"
_HUMAN = f"{LIFECYCLE}compensation-needs-human.v1"
_ROLLED_BACK = f"{LIFECYCLE}rolled-back.v1"
_TASK_OPENED = f"{LIFECYCLE}task-opened.v1"
_TASK_ENDED = f"{LIFECYCLE}task-ended.v1"
_ISLAND_STEP = f"{LIFECYCLE}island-step.v1"
_RETRY = f"{LIFECYCLE}retry-requested.v1"

_AFTER_PIVOT = "rollback-past-pivot"


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
    requested: Entry | None = None
    tasks: dict[tuple[str, Any], Entry] = field(default_factory=dict[tuple[str, Any], Entry])
    ended_tasks: dict[tuple[str, Any], Entry] = field(default_factory=dict[tuple[str, Any], Entry])
    islands: dict[tuple[str, str, str, str], IslandStep] = field(
        default_factory=dict[tuple[str, str, str, str], IslandStep]
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
    tasks = tuple(_task(entry) for key, entry in facts.tasks.items() if key not in facts.ended_tasks)
    expected = _expected(facts, route)
    state, reason = _state(facts, rollbacks, tasks, expected, route)
    if state is SagaState.COMPLETED or state is SagaState.COMPENSATED:
        expected = ()
    last = history.entries[-1].at
    ended = None
    if state is SagaState.COMPLETED and facts.over is not None:
        ended = moment(facts.over.at)
    elif state is SagaState.COMPENSATED:
        ended = moment(last)
    services = dict.fromkeys(entry.source for entry in entries)
    return SagaView(
        saga=saga,
        state=state,
        reason=reason,
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
            elif cause is not None and cause.type not in stop.hears:
                continue  # another step of the service, which says the same
            elif entry.type in stop.emits:
                facts.done.setdefault(stop, entry)
            else:
                facts.failed.setdefault(stop, entry)
    return facts


def _read_lifecycle(facts: _Facts, entry: Entry, detail: Any) -> None:
    service = str(detail.get("service", ""))
    if entry.type == _REQUESTED:
        facts.requested = facts.requested or entry
    elif entry.type == _TASK_OPENED:
        facts.tasks.setdefault((service, detail.get("task")), entry)
    elif entry.type == _TASK_ENDED:
        facts.ended_tasks.setdefault((service, detail.get("task")), entry)
    elif entry.type == _ISLAND_STEP:
        _read_island_step(facts, service, detail)
    elif entry.type in {_STARTED, _DONE, _HUMAN, _ROLLED_BACK}:
        part = facts.parts.setdefault(service, _Part())
        name = str(detail.get("compensation", ""))
        if entry.type == _STARTED:
            part.total = int(detail.get("compensations", 0))
            part.reason = detail.get("reason")
        elif entry.type == _DONE:
            part.done.append(name)
            part.remaining = int(detail.get("remaining", 0))
            part.rolled_back = False
            part.given_up.pop(name, None)
        elif entry.type == _HUMAN:
            part.given_up[name] = str(detail.get("error", ""))
        else:
            part.rolled_back = True
            part.given_up.clear()
    elif entry.type == _RETRY:
        # Whoever was asked tries again; it says so if it gives up again.
        for part in facts.parts.values():
            part.given_up.clear()


def _read_island_step(facts: _Facts, service: str, detail: Any) -> None:
    place = (service, str(detail.get("island")), str(detail.get("run")), str(detail.get("step")))
    # Its place in the list is that of its first change; what it shows is the last.
    facts.islands[place] = IslandStep(
        *place, str(detail.get("state")), int(detail.get("attempt") or 0), detail.get("reason")
    )


def _task(entry: Entry) -> OpenTask:
    detail: Any = entry.detail or {}
    return OpenTask(
        str(detail.get("service", "")),
        int(detail.get("task") or 0),
        str(detail.get("name", "")),
        str(detail.get("title", "")),
        tuple(str(outcome) for outcome in detail.get("outcomes") or ()),
        moment(entry.at),
    )


# --- judging ---


def _rollbacks(facts: _Facts, route: Route) -> tuple[Rollback, ...]:
    """Return every service that is to undo its part: those that say so, and those the choreography says must."""
    services = dict.fromkeys(facts.parts)
    if facts.told or facts.requested is not None:
        services.update(dict.fromkeys(service for service, _ in facts.told))
        if facts.requested is not None:
            services.update(dict.fromkeys(name for names in route.rolls_back.values() for name in names))
    # Past the point of no return a service asks a person instead, who may have decided to go on.
    kept = {service for (service, _), entry in facts.tasks.items() if (entry.detail or {}).get("name") == _AFTER_PIVOT}
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
    """Judge the rollback of a service that says nothing about it by what its compensations say."""
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
            return SagaState.COMPENSATED, reason
        return SagaState.COMPENSATING, reason
    if facts.over is not None:
        return SagaState.COMPLETED, None
    return SagaState.RUNNING, None


def _why(facts: _Facts) -> str | None:
    if facts.requested is not None:
        detail: Any = facts.requested.detail or {}
        return f"{detail.get('reason')} (asked for by {detail.get('by')})"
    for part in facts.parts.values():
        if part.reason:
            return part.reason
    return facts.told[0][1].type if facts.told else None


def _deadlines(facts: _Facts, route: Route) -> tuple[Deadline, ...]:
    """Return the deadlines that were set, have not been cancelled, and have not fired."""
    found: list[Deadline] = []
    for stops in route.stops.values():
        cancelled = {
            name for stop in stops for name in stop.cancels if any(type_ in facts.types for type_ in stop.hears)
        }
        for stop in stops:
            for deadline in stop.sets:
                began = facts.done.get(stop) or next(
                    (facts.types[type_] for type_ in sorted(stop.hears) if type_ in facts.types), None
                )
                if began is None or deadline.name in cancelled or deadline.event in facts.types:
                    continue
                due = moment(began.at) + timedelta(seconds=deadline.after_seconds)
                found.append(Deadline(stop.service, deadline.name, deadline.event, due))
    return tuple(sorted(found, key=lambda deadline: (deadline.due, deadline.service, deadline.name)))
