"""Which saga an event belongs to, and how that saga is, as far as one database knows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC

from sqlalchemy import Connection, select

from sagapost.core.databases import aware
from sagapost.core.sightings import Sighting
from sagapost.sagas.tables import SagaTables
from sagapost.sagas.tracker.tables import TrackerTables

__all__ = ["saga_of_event", "saga_sightings", "tracked_sighting"]


def saga_of_event(connection: Connection, tables: SagaTables, event_id: str) -> str | None:
    """Return the saga in which a service recorded an intent or a task for an event; None: it recorded nothing."""
    for table in (tables.compensations, tables.tasks):
        query = select(table.c.saga).where(table.c.step_event == event_id).limit(1)
        found: str | None = connection.execute(query).scalar()
        if found is not None:
            return found
    return None


def saga_sightings(connection: Connection, tables: SagaTables, saga: str, event_id: str | None) -> Sequence[Sighting]:
    """Return how a saga is in each service here, with what an event made it record and the tasks that are open."""
    states, intents, tasks = tables.states.c, tables.compensations.c, tables.tasks.c
    sightings: list[Sighting] = []
    for row in connection.execute(select(tables.states).where(states.saga == saga).order_by(states.service)):
        why = "" if row.rollback_reason is None else f": {row.rollback_reason}"
        at = aware(row.started_at).astimezone(UTC)
        sightings.append(Sighting(f"saga {saga}", row.state, f"in the service {row.service}{why}", at))
    if event_id is not None:
        recorded = select(tables.compensations).where(intents.saga == saga, intents.step_event == event_id)
        for row in connection.execute(recorded.order_by(intents.id)):
            what = (
                f"would be undone in {row.service} by {row.name}" if row.state == "pending" else row.last_error or ""
            )
            at = aware(row.recorded_at).astimezone(UTC)
            sightings.append(Sighting(f"saga {saga}", f"intent {row.state}", what, at, {"compensation": row.id}))
    for row in connection.execute(select(tables.tasks).where(tasks.saga == saga, tasks.state == "open")):
        what = f"{row.title}. See: sagapost tasks show {row.id}"
        at = aware(row.opened_at).astimezone(UTC)
        sightings.append(Sighting(f"saga {saga}", "task open", what, at, {"task": row.id}))
    return sightings


def tracked_sighting(connection: Connection, tables: TrackerTables, saga: str) -> Sighting | None:
    """Return how the tracker sees a saga; None if it knows nothing of it."""
    columns = tables.sagas.c
    query = select(columns.state, columns.reason, columns.events, columns.last_at).where(columns.saga == saga)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    what = f"as the tracker sees it, after {row.events} events{'' if row.reason is None else f': {row.reason}'}"
    at = aware(row.last_at).astimezone(UTC)
    return Sighting(f"saga {saga}", row.state, f"{what}. See: sagapost saga show {saga}", at)
