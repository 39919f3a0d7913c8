"""Which steps an event sets off, and what can still happen once a step has committed."""

from __future__ import annotations

from collections.abc import Iterable

from sagapost.sagas.choreography.manifest import Choreography, DeclaredDeadline, Manifest, Step, may_publish

__all__ = [
    "covered",
    "failures_after",
    "is_rollback",
    "needs",
    "path_back",
    "reachable",
    "steps_after",
    "undoes",
]


def undoes(step: Step) -> bool:
    """Return whether a step undoes what its service did: it starts the rollback, or is a compensation itself."""
    return step.rolls_back or bool(step.compensates)


def is_rollback(step: Step, failures: frozenset[str]) -> bool:
    """Return whether a step belongs to a rollback: it undoes, or only failures set it off."""
    return undoes(step) or all(event in failures for event in step.handles)


def reachable(choreography: Choreography, *events: str) -> list[tuple[Manifest, Step]]:
    """Return every step that one of these events sets off, directly or not.

    Where a service starts its rollback, what its compensations publish follows too.
    """
    handled = choreography.handled()
    found: dict[tuple[str, str], tuple[Manifest, Step]] = {}
    waiting, seen = list(events), set(events)
    while waiting:
        for manifest, step in handled.get(waiting.pop(), []):
            if (manifest.service, step.name) in found:
                continue
            found[manifest.service, step.name] = (manifest, step)
            for emitted in _follows(manifest, step):
                if emitted not in seen:
                    seen.add(emitted)
                    waiting.append(emitted)
    return list(found.values())


def _follows(manifest: Manifest, step: Step) -> Iterable[str]:
    yield from may_publish(step)
    if step.rolls_back:
        for other in manifest.steps:
            yield from other.compensation.emits if other.compensation is not None else ()


def steps_after(choreography: Choreography, step: Step) -> list[tuple[Manifest, Step]]:
    """Return the steps that a step's results set off, directly or not."""
    return [(manifest, later) for manifest, later in reachable(choreography, *step.emits) if later is not step]


def covered(choreography: Choreography, owner: Manifest, setter: Step, deadline: DeclaredDeadline) -> list[Step]:
    """Return the steps that a deadline waits for: those between the setting and the cancelling, both included.

    Steps that handle the same event as the one that sets it run beside it, and are waited for as well. Only steps of
    the same service can cancel it.
    """
    handled = choreography.handled()
    found: list[Step] = [setter]
    waiting = [*setter.handles, *setter.emits]
    seen = set(waiting)
    while waiting:
        for manifest, step in handled.get(waiting.pop(), []):
            if any(step is known for known in found):
                continue
            found.append(step)
            if manifest is owner and deadline.name in step.cancels:
                continue
            fresh = [event for event in step.emits if event not in seen]
            seen.update(fresh)
            waiting += fresh
    return found


def failures_after(choreography: Choreography, manifest: Manifest, step: Step) -> list[str]:
    """Return the events that fail the saga and can still come once this step has committed."""
    found: list[str] = []
    for _, later in steps_after(choreography, step):
        found += later.fails_with
    for owner, setter in choreography.steps():
        for deadline in setter.sets:
            cancelled = owner is manifest and deadline.name in step.cancels
            if not cancelled and any(step is other for other in covered(choreography, owner, setter, deadline)):
                found.append(deadline.event)
    return list(dict.fromkeys(found))


def needs(later: Step, step: Step) -> bool:
    """Return whether a step handles an earlier one's result directly, and so may need its effect."""
    return bool(set(later.handles) & set(step.emits))


def path_back(step: Step, handled: dict[str, list[tuple[Manifest, Step]]]) -> list[str] | None:
    """Return the names of the steps on a shortest way from a step's results or failures back to itself."""
    waiting: list[tuple[Step, list[str]]] = [(step, [step.name])]
    seen: list[Step] = []
    while waiting:
        current, path = waiting.pop(0)
        for event in (*current.emits, *current.fails_with, *(deadline.event for deadline in current.sets)):
            for _, following in handled.get(event, []):
                if following is step:
                    return path
                if not any(following is known for known in seen):
                    seen.append(following)
                    waiting.append((following, [*path, following.name]))
    return None
