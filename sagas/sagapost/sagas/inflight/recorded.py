"""What a service has recorded of its sagas: intents, runs of islands, open tasks."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, func, select

from sagapost.core.errors import ConfigurationError, SagapostError
from sagapost.core.findings import Severity
from sagapost.sagas.inflight.code import Code
from sagapost.sagas.inflight.findings import Collector
from sagapost.sagas.inflight.paging import pages
from sagapost.sagas.sagas import DeclaredIsland, Sagas

__all__ = ["check_intents", "check_runs", "check_tasks"]

_UNDONE = ("pending", "stuck")
_STATE_IN_FLIGHT = ("running", "rolling_back")


def check_intents(connection: Connection, sagas: Sagas, found: Collector, *, deep: bool) -> None:
    """Hold every intent that is not undone against the compensations: their names, and the arguments recorded."""
    intents, states, known = sagas.tables.compensations, sagas.tables.states, sagas.compensations
    columns = intents.c
    same = (states.c.service == columns.service) & (states.c.saga == columns.saga)
    recorded = intents.outerjoin(states, same)
    # Of a saga that has completed nothing is in flight any more, however long what it did is kept.
    in_flight = states.c.completed_at.is_(None) | (states.c.state != "running")
    mine = (columns.service == sagas.service, columns.state.in_(_UNDONE), in_flight)
    past_pivot = ((states.c.state == "running") & states.c.pivoted_at.is_not(None)).label("past_pivot")
    counts = select(columns.name, past_pivot, func.count().label("intents"), func.min(columns.saga).label("saga"))
    grouped = counts.select_from(recorded).where(*mine).group_by(columns.name, past_pivot)
    for row in connection.execute(grouped.order_by(columns.name)):
        found.looked_at["intents"] += row.intents
        if row.name not in known:
            island = row.name.removeprefix("island ")
            what = f"the island {island!r}" if island != row.name else f"a compensation named {row.name!r}"
            found.add(
                _severity_of(row),
                "compensation",
                sagas.service,
                row.name,
                f"steps {_whose(row)}are recorded that {what} undoes, and nothing is registered under that name",
                f"Register it as long as a saga may need it; with @sagas.compensation(name={row.name!r}) the function "
                "may have another name. Or settle the intents, when the steps are undone by other means.",
                count=row.intents,
                saga=row.saga,
            )
    if not deep or not known:
        return
    listed = select(columns.id, columns.name, columns.saga, columns.arguments, past_pivot).select_from(recorded)
    for row in pages(connection, listed.where(*mine, columns.name.in_(sorted(known))), columns.id):
        try:
            known[row.name].unpack(row.arguments)
        except ConfigurationError as error:
            found.add(
                _severity_of(row),
                "arguments",
                sagas.service,
                row.name,
                f"steps {_whose(row)}are recorded with the arguments {', '.join(sorted(row.arguments)) or '(none)'}, "
                f"which the compensation does not take any more: {error.__cause__}",
                "Keep accepting what was recorded: give new parameters a default, and keep removed or renamed ones.",
                saga=row.saga,
            )


def _severity_of(row: Any) -> Severity:
    # Past the point of no return a saga is undone only if a person says so.
    return Severity.WARNING if row.past_pivot else Severity.ERROR


def _whose(row: Any) -> str:
    return "of sagas past their point of no return " if row.past_pivot else ""


def check_runs(connection: Connection, sagas: Sagas, found: Collector, *, deep: bool) -> None:
    """Hold every run of an island, and the state of those in flight, against the islands and their steps."""
    declared = {island.name: island for island in sagas.islands}
    runs, steps = sagas.tables.islands.runs.c, sagas.tables.islands.steps.c
    counts = (
        select(
            runs.island,
            steps.step,
            steps.undo,
            runs.state.in_(_STATE_IN_FLIGHT).label("in_flight"),
            func.count().label("runs"),
            func.min(runs.saga).label("saga"),
        )
        .join_from(sagas.tables.islands.runs, sagas.tables.islands.steps, runs.id == steps.run)
        .where(runs.service == sagas.service, runs.state != "rolled_back")
        .group_by(runs.island, steps.step, steps.undo, "in_flight")
    )
    for row in connection.execute(counts):
        found.looked_at["steps of islands"] += row.runs
        _check_step(sagas, declared.get(row.island), row, found)
    if not deep:
        return
    listed = select(runs.id, runs.island, runs.saga, runs.data)
    in_flight = (runs.service == sagas.service, runs.state.in_(_STATE_IN_FLIGHT))
    for row in pages(connection, listed.where(*in_flight), runs.id):
        found.looked_at["runs of islands"] += 1
        if row.island not in declared:
            continue
        try:
            declared[row.island].load(row.data)
        except SagapostError as error:
            found.add(
                Severity.ERROR,
                "island-state",
                sagas.service,
                row.island,
                f"the state of runs in flight does not fit its class any more: {error.__cause__ or error}",
                "Keep reading what was recorded: give new fields a default, and keep the types of old ones.",
                saga=row.saga,
            )


def _check_step(sagas: Sagas, island: DeclaredIsland | None, row: Any, found: Collector) -> None:
    # A run that is completed needs its steps only if the saga is rolled back later.
    severity = Severity.ERROR if row.in_flight else Severity.WARNING
    runs = "in flight" if row.in_flight else "that may have to be undone"
    if island is None:
        found.add(
            severity,
            "island",
            sagas.service,
            row.island,
            f"there are runs {runs} of an island that is not declared",
            "Keep declaring it until no run is in flight.",
            count=row.runs,
            saga=row.saga,
        )
        return
    step = island.find_step(row.step)
    subject = f"{row.island}.{row.step}"
    if step is None:
        found.add(
            severity,
            "island-step",
            sagas.service,
            subject,
            f"there are runs {runs} that have a step of this name, and the island declares none",
            f"Declare it until no run has it; with step(name={row.step!r}) the function may have another name.",
            count=row.runs,
            saga=row.saga,
        )
    elif row.undo and row.in_flight and step.undo is None:
        found.add(
            Severity.ERROR,
            "island-step",
            sagas.service,
            subject,
            "there are runs that are rolling this step back, which has no compensation any more",
            "Keep the step's compensation until they are rolled back.",
            count=row.runs,
            saga=row.saga,
        )


def check_tasks(connection: Connection, sagas: Sagas, code: Code, found: Collector) -> None:
    """Hold every open task against the handlers: what it would have handled again must have one."""
    columns = sagas.tables.tasks.c
    listed = select(columns.id, columns.name, columns.saga, columns.envelope, columns.topic)
    for row in pages(connection, listed.where(columns.service == sagas.service, columns.state == "open"), columns.id):
        found.looked_at["open tasks"] += 1
        type_ = json.loads(row.envelope).get("type") if row.envelope is not None else None
        if type_ is not None and not code.takers(type_, row.topic):
            found.add(
                Severity.WARNING,
                "task",
                sagas.service,
                row.name,
                f"open tasks can have an event of type {type_!r} handled again, which no handler takes",
                "Keep the handler until the tasks are resolved, or resolve them in another way.",
                saga=row.saga,
            )
