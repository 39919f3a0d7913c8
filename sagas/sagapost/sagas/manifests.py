"""From what a service declares in code to its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sagapost.core.naming import event_type_of
from sagapost.inbox.declared.handlers import Handler
from sagapost.inbox.declared.inbox import Inbox
from sagapost.sagas.choreography import manifest as parts
from sagapost.sagas.choreography.schemas import schema_of
from sagapost.sagas.declaration import StepDeclaration, type_names
from sagapost.sagas.sagas import Sagas

__all__ = ["manifest_of", "sagas_of"]

_PLAIN = StepDeclaration(None, (), (), (), (), changes_nothing=False, likely_to_fail=False)


def manifest_of(inbox: Inbox, sagas: Sagas | None = None) -> parts.Manifest:
    """Return the manifest of a service: its handlers, and what `Sagas` knows about them.

    :param sagas: default: the one whose context class the inbox was made with, if any.
    """
    found = sagas if sagas is not None else sagas_of(inbox)
    schemas: dict[str, Mapping[str, Any]] = {}
    steps: list[parts.Step] = []
    for handler in inbox.handlers:
        if getattr(handler.function, "__module__", "").startswith("sagapost."):
            # The library's own handlers are declared by `rolls_back_on`, and drawn as one step below.
            continue
        steps.append(_step(handler, found))
        for type_, cls in handler.accepts.items():
            _note_schema(schemas, type_, cls)
    if found is not None and found.rollback_events:
        steps.append(
            parts.Step(
                name="roll_back",
                handles=found.rollback_events,
                rolls_back=True,
                changes_nothing=True,
                summary="Undoes what this service did in the saga.",
            )
        )
    if found is not None:
        for island in found.islands:
            steps.extend(island.drawn())
        for item in found.declared_events:
            if not isinstance(item, str):
                _note_schema(schemas, event_type_of(item), item)
    return parts.Manifest(
        service=inbox.name,
        source=inbox.outbox.source if inbox.outbox is not None else "",
        steps=tuple(steps),
        starts=type_names(found.starts) if found is not None else (),
        ends=type_names(found.ends) if found is not None else (),
        schemas=dict(sorted(schemas.items())),
    )


def sagas_of(inbox: Inbox) -> Sagas | None:
    """Return the `Sagas` whose context class the inbox was made with, if any."""
    found: Sagas | None = getattr(inbox.context, "sagas", None)
    return found


def _step(handler: Handler, sagas: Sagas | None) -> parts.Step:
    declared = sagas.steps.get(handler.function, _PLAIN) if sagas is not None else _PLAIN
    failures = type_names(declared.fails_with)
    deadlines = tuple(
        parts.DeclaredDeadline(
            name=deadline.name, event=event_type_of(deadline.event), after_seconds=deadline.after.total_seconds()
        )
        for deadline in declared.deadlines
    )
    apart = {*failures, *(deadline.event for deadline in deadlines)}
    compensation = None
    if declared.compensation is not None and sagas is not None:
        name = sagas.name_of(declared.compensation)
        compensation = parts.Compensation(name=name, emits=sagas.compensations[name].emits)
    return parts.Step(
        name=getattr(handler.function, "__name__", handler.name),
        handles=tuple(sorted({*handler.accepts, *handler.patterns})),
        emits=tuple(sorted(handler.emits - apart)),
        fails_with=failures,
        compensation=compensation,
        compensates=type_names(declared.undoes),
        sets=deadlines,
        cancels=tuple(deadline.name for deadline in declared.cancels),
        changes_nothing=declared.changes_nothing,
        likely_to_fail=declared.likely_to_fail,
        transaction=handler.transaction,
        summary=_first_line(handler.function),
    )


def _note_schema(schemas: dict[str, Mapping[str, Any]], type_: str, cls: type) -> None:
    schema = schema_of(cls)
    if schema is not None:
        schemas[type_] = schema


def _first_line(function: object) -> str:
    return (getattr(function, "__doc__", None) or "").strip().partition("\n")[0]
