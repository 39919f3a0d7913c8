"""An island in its service's manifest: one step for each of its own, one for its end, one for its undoing."""

from __future__ import annotations

import msgspec

from sagapost.sagas.choreography import manifest as parts
from sagapost.sagas.orchestration.plan import IslandPlan

__all__ = ["steps_of"]


def steps_of(island: IslandPlan) -> list[parts.Step]:
    """Return how the island looks in the choreography around it."""
    drawn: list[parts.Step] = []
    before = island.started_by
    for stage in sorted({step.stage for step in island.steps}):
        members = [step for step in island.steps if step.stage == stage]
        for step in members:
            deadlines: tuple[parts.DeclaredDeadline, ...] = ()
            if step.deadline is not None:
                deadlines = (
                    parts.DeclaredDeadline(
                        name=f"{island.name}.{step.name}",
                        event=island.timeout_type,
                        after_seconds=step.deadline.total_seconds(),
                    ),
                )
            undoing = step.undo_command
            drawn.append(
                parts.Step(
                    name=f"{island.name}.{step.name}",
                    handles=before,
                    emits=(step.command,),
                    compensation=parts.Compensation(name=f"{island.name}.{step.name}.undo", emits=(undoing,))
                    if undoing is not None
                    else None,
                    sets=deadlines,
                    changes_nothing=undoing is None,
                    summary=f"Step {step.position + 1} of the island {island.name}, which this service orchestrates.",
                )
            )
        before = tuple(dict.fromkeys(reply for step in members for reply in step.replies))
    drawn.append(
        parts.Step(
            name=f"{island.name}.end",
            handles=before,
            emits=(island.completes_with,) if island.completes_with is not None else (),
            cancels=tuple(f"{island.name}.{step.name}" for step in island.steps if step.deadline is not None),
            changes_nothing=True,
            summary=f"All steps of the island {island.name} are done.",
        )
    )
    failed = dict.fromkeys(type_ for step in island.steps for type_ in (*step.failures, *step.retry_on, *step.undone))
    timeouts = [island.timeout_type] if any(step.deadline is not None for step in island.steps) else []
    handles = (*failed, *timeouts)
    if handles:
        drawn.append(
            parts.Step(
                name=f"{island.name}.undo",
                handles=handles,
                fails_with=(island.fails_with,) if island.fails_with is not None else (),
                changes_nothing=True,
                summary=f"Tries again where a step says so, else undoes the island {island.name} in reverse order.",
            )
        )
    return [msgspec.structs.replace(step, transaction=f"island {island.name}") for step in drawn]
