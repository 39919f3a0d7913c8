"""Steps that the tracker expects of a service: has the saga's next step a handler in the code that is to run?"""

from __future__ import annotations

from sqlalchemy import Connection, select

from sagapost.core.databases import kit_of
from sagapost.core.findings import Severity
from sagapost.inbox.declared.inbox import Inbox
from sagapost.sagas.choreography.manifest import Manifest, may_publish
from sagapost.sagas.inflight.code import Code
from sagapost.sagas.inflight.findings import Collector
from sagapost.sagas.inflight.paging import batches
from sagapost.sagas.manifests import manifest_of
from sagapost.sagas.tracker.derive import derive
from sagapost.sagas.tracker.route import Route, read_declared
from sagapost.sagas.tracker.store import TrackerStore
from sagapost.sagas.tracker.tables import TrackerTables
from sagapost.sagas.tracker.view import ExpectedStep

__all__ = ["check_expected"]

_PAGE = 500
_RUNNING = ("running", "waiting")


def check_expected(connection: Connection, tables: TrackerTables, code: Code, found: Collector) -> None:
    """Hold the steps that are expected next against the handlers of the services that are to be deployed."""
    store = TrackerStore(tables, kit_of(connection))
    declared = store.declared(connection)
    if declared is None:
        return
    route = read_declared(declared)
    ours = {manifest.service: (inbox, manifest) for inbox in code.inboxes for manifest in [manifest_of(inbox)]}
    columns = tables.sagas.c
    running = select(columns.saga).where(columns.state.in_(_RUNNING))
    for rows in batches(connection, running, columns.saga, size=_PAGE):
        for saga, kept in store.load(connection, [row.saga for row in rows]).items():
            found.looked_at["sagas of the tracker"] += 1
            for step in derive(saga, kept.history, route).expected:
                if step.service in ours:
                    _check_step(saga, step, *ours[step.service], route, found)


def _check_step(
    saga: str, step: ExpectedStep, inbox: Inbox, manifest: Manifest, route: Route, found: Collector
) -> None:
    if not inbox.calls(step.after, step.after):
        found.add(
            Severity.ERROR,
            "step",
            step.service,
            step.step,
            f"sagas wait for this step, which {step.after!r} has told, and no handler takes that any more",
            "Keep the handler until no saga waits for it.",
            saga=saga,
        )
    elif not _says(route, step) & _says_after(manifest, step.after):
        found.add(
            Severity.WARNING,
            "step",
            step.service,
            step.step,
            f"sagas wait for what this step says after {step.after!r}, and its handlers say nothing of it",
            "Keep publishing what the sagas in flight wait for, or let the steps after it take both.",
            saga=saga,
        )


def _says(route: Route, expected: ExpectedStep) -> set[str]:
    """Return what the tracker waits for."""
    steps = (stop for stop in route.stops.get(expected.service, ()) if stop.name == expected.step)
    return {type_ for stop in steps for type_ in stop.emits | stop.fails_with}


def _says_after(manifest: Manifest, type_: str) -> set[str]:
    """Return what the code says when it is told this."""
    return {emitted for step in manifest.steps if type_ in step.handles for emitted in may_publish(step)}
