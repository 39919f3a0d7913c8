"""Folding in memory: for tests, scenarios and archives. The same fold as in the database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sagapost.core.envelope import Event
from sagapost.core.observer import Observer
from sagapost.sagas.choreography.manifest import Choreography
from sagapost.sagas.tracker.business_keys import Keys
from sagapost.sagas.tracker.derive import derive
from sagapost.sagas.tracker.entries import Entry
from sagapost.sagas.tracker.history import History
from sagapost.sagas.tracker.intake import Reader
from sagapost.sagas.tracker.route import Route
from sagapost.sagas.tracker.view import SagaView

__all__ = ["fold"]

_UNBOUNDED = 2**62


def fold(
    events: Iterable[Event],
    choreography: Choreography | None = None,
    *,
    ends: Iterable[str] = (),
    keys: Iterable[str] = (),
    observer: Observer | None = None,
) -> dict[str, SagaView]:
    """Return where each saga is after these events, by saga; in any order, duplicates included.

    :param choreography: what the services declare; without it there are no expected steps and no deadlines, and a
        rollback is seen only where services announce it.
    :param ends: further event types after which a saga is over.
    :param keys: fields of payloads to note as business keys.
    :param observer: what is told of events that cannot be folded and are passed over.
    """
    route = Route.of(choreography, ends=ends)
    intake = Reader(Keys(keys), route.starts).read(events)
    entries: dict[str, list[Entry]] = {}
    found: dict[str, set[tuple[str, str]]] = {}
    for arrival in intake.arrivals:
        entries.setdefault(arrival.saga, []).append(arrival.entry)
        found.setdefault(arrival.saga, set()).update(arrival.keys)
    if observer is not None:
        for report in intake.passed_over:
            observer.notify(report)
    return {
        saga: replace(derive(saga, History().merge(arrived, limit=_UNBOUNDED), route), keys=tuple(sorted(found[saga])))
        for saga, arrived in entries.items()
    }
