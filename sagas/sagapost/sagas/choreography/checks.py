"""The checks behind the rules of the lint: each looks for one kind of mistake."""

from __future__ import annotations

from collections.abc import Iterator

from sagapost.sagas.choreography.flow import (
    covered,
    failures_after,
    is_rollback,
    needs,
    path_back,
    reachable,
    steps_after,
    undoes,
)
from sagapost.sagas.choreography.graph import short_name
from sagapost.sagas.choreography.manifest import Choreography, Step, may_publish
from sagapost.sagas.choreography.schemas import conflicts

__all__ = [
    "cheaper_order",
    "cycle",
    "deadline_nobody_cancels",
    "deadline_nobody_sets",
    "end_nobody_says",
    "failure_undoes_another",
    "no_compensation",
    "no_deadline",
    "no_end",
    "nothing_triggers",
    "step_nothing_waits_for",
    "type_conflict",
    "unfed",
    "unhandled",
]

Found = Iterator[tuple[str, str, str]]


def unhandled(choreography: Choreography) -> Found:
    """SP001."""
    handled, ends = choreography.handled(), choreography.ends()
    for event, publishers in choreography.emitted().items():
        if event not in handled and event not in ends:
            manifest, step = publishers[0]
            who = "published outside handlers" if step is None else f"published by {step.name}"
            yield (
                manifest.service,
                event,
                f"{event} is {who} and nobody handles it. Handle it somewhere, declare it as an end of the saga "
                "(ends=[...]), or stop publishing it.",
            )


def unfed(choreography: Choreography) -> Found:
    """SP002."""
    emitted = choreography.emitted()
    for manifest, step in choreography.steps():
        for event in step.handles:
            if event not in emitted and not _is_pattern(event):
                yield (
                    manifest.service,
                    step.name,
                    f"{step.name} handles {event}, which nobody publishes. Declare it where it is published "
                    "(emits=[...] or starts=[...]), or remove the handler.",
                )


def no_compensation(choreography: Choreography) -> Found:
    """SP003."""
    failures = choreography.failures()
    for manifest, step in choreography.steps():
        if step.compensation is not None or step.changes_nothing or is_rollback(step, failures):
            continue
        later = failures_after(choreography, manifest, step)
        if later:
            yield (
                manifest.service,
                step.name,
                f"{step.name} commits, and the saga can still fail afterwards ({', '.join(map(short_name, later))}), "
                "but nothing undoes the step. Declare compensation=..., or changes_nothing=True if there is nothing "
                "to undo.",
            )


def no_deadline(choreography: Choreography) -> Found:
    """SP004."""
    ends = choreography.ends()
    for manifest in choreography.services:
        for event in manifest.starts:
            if event in ends:
                continue
            steps = reachable(choreography, event)
            if steps and not any(step.sets for _, step in steps):
                yield (
                    manifest.service,
                    event,
                    f"The saga that {event} starts has no deadline anywhere: if a service stays silent, nobody "
                    "notices. Set one (deadlines=[...]) in an early step and cancel it at the end.",
                )


def no_end(choreography: Choreography) -> Found:
    """SP005: neither the saga as a whole, nor one that has failed, reaches a declared end."""
    ends = choreography.ends()
    for manifest in choreography.services:
        for event in manifest.starts:
            reached = {event}.union(*(may_publish(step) for _, step in reachable(choreography, event)))
            if not reached & ends:
                yield (
                    manifest.service,
                    event,
                    f"The saga that {event} starts never reaches a declared end, so it can never be seen as "
                    "completed. Declare its last events with ends=[...].",
                )
    handled = choreography.handled()
    for manifest, step in choreography.steps():
        for event in (*step.fails_with, *(deadline.event for deadline in step.sets)):
            if event not in handled:
                continue
            after = reachable(choreography, event)
            reached = {event}.union(*(may_publish(later) for _, later in after))
            if not reached & ends and not any(undoes(later) for _, later in after):
                yield (
                    manifest.service,
                    event,
                    f"A saga that fails with {event} neither reaches a declared end nor is rolled back: it stays "
                    "open for ever. Declare what it ends with (ends=[...]), or let services roll back on it.",
                )


def cycle(choreography: Choreography) -> Found:
    """SP006."""
    handled = choreography.handled()
    reported: set[frozenset[str]] = set()
    for manifest, step in choreography.steps():
        path = path_back(step, handled)
        if path is None or frozenset(path) in reported:
            continue
        reported.add(frozenset(path))
        yield (
            manifest.service,
            step.name,
            f"The steps {' -> '.join([*path, path[0]])} feed each other without end. Break the cycle, or give one of "
            "its events another type.",
        )


def type_conflict(choreography: Choreography) -> Found:
    """SP007."""
    handled = choreography.handled()
    for event, publishers in choreography.emitted().items():
        for manifest in {m.service: m for m, _ in publishers}.values():
            emitted = manifest.schemas.get(event)
            for other in {m.service: m for m, _ in handled.get(event, [])}.values():
                expected = other.schemas.get(event)
                if emitted is None or expected is None or other.service == manifest.service:
                    continue
                for problem in conflicts(emitted, expected):
                    yield (
                        other.service,
                        event,
                        f"{manifest.service} and {other.service} disagree about {event}: {problem}. Align the "
                        "classes, or publish a new version of the event.",
                    )


def cheaper_order(choreography: Choreography) -> Found:
    """SP008: a step to be undone runs before, or beside, one that is likely to fail and does not handle its result."""
    risky = [(manifest, step) for manifest, step in choreography.steps() if step.likely_to_fail]
    sagas = [[step for _, step in reachable(choreography, event)] for event in choreography.starts()]
    for manifest, step in choreography.steps():
        if step.compensation is None or step.likely_to_fail:
            continue
        for other, later in risky:
            before = any(step is found for _, found in steps_after(choreography, later))
            together = any(_holds(saga, step) and _holds(saga, later) for saga in sagas)
            if together and not before and not needs(later, step):
                yield (
                    manifest.service,
                    step.name,
                    f"{step.name} must be undone by {step.compensation.name} whenever {other.service}'s {later.name} "
                    f"fails after or beside it, which is declared as likely. Let {step.name} wait for {later.name}: "
                    "then there is nothing to undo.",
                )


def deadline_nobody_cancels(choreography: Choreography) -> Found:
    """SP009."""
    for manifest, step in choreography.steps():
        cancelled = {name for other in manifest.steps for name in other.cancels}
        for deadline in step.sets:
            if deadline.name in cancelled:
                continue
            elsewhere = [m.service for m, other in choreography.steps() if deadline.name in other.cancels]
            hint = (
                f" {', '.join(elsewhere)} cancels one of that name, but a deadline is kept, and cancelled, by the "
                "service that sets it."
                if elsewhere
                else ""
            )
            yield (
                manifest.service,
                step.name,
                f"{step.name} sets the deadline {deadline.name!r} and no step of {manifest.service} cancels it, so "
                f"{short_name(deadline.event)} comes in every saga, also in those that went well.{hint} Call "
                "ctx.cancel_deadline in the step that it waits for, and declare cancels=[...].",
            )


def nothing_triggers(choreography: Choreography) -> Found:
    """SP010."""
    for manifest, step in choreography.steps():
        if step.compensation is None:
            continue
        missed = [
            event
            for event in failures_after(choreography, manifest, step)
            if not any(m is manifest and undoes(later) for m, later in reachable(choreography, event))
        ]
        if missed:
            yield (
                manifest.service,
                step.name,
                f"{step.compensation.name} is to undo {step.name}, but when {', '.join(map(short_name, missed))} "
                f"comes, nothing starts the rollback in {manifest.service}. Add the event, or one that follows from "
                "it, to sagas.rolls_back_on(inbox, ...).",
            )


def deadline_nobody_sets(choreography: Choreography) -> Found:
    """SP011."""
    for manifest, step in choreography.steps():
        own = {deadline.name for other in manifest.steps for deadline in other.sets}
        for name in step.cancels:
            if name not in own:
                yield (
                    manifest.service,
                    step.name,
                    f"{step.name} cancels the deadline {name!r}, which no step of {manifest.service} sets. Correct "
                    "the name, or cancel it in the service that sets it.",
                )


def step_nothing_waits_for(choreography: Choreography) -> Found:
    """SP012."""
    failures = choreography.failures()
    waited = [
        step
        for owner, setter in choreography.steps()
        for deadline in setter.sets
        for step in covered(choreography, owner, setter, deadline)
    ]
    if not waited:
        # SP004 has reported it.
        return
    for manifest, step in choreography.steps():
        if step.changes_nothing or is_rollback(step, failures) or any(step is other for other in waited):
            continue
        if all(event in choreography.ends() for event in step.handles):
            continue
        yield (
            manifest.service,
            step.name,
            f"No deadline is open while the saga waits for {step.name}: if {manifest.service} stays silent there, "
            "nobody notices. Cancel a deadline later, or set one in a step before.",
        )


def failure_undoes_another(choreography: Choreography) -> Found:
    """SP014."""
    for manifest, step in choreography.steps():
        if not step.fails_with:
            continue
        for event in step.handles:
            others = [
                other.name
                for other in manifest.steps
                if other is not step and event in other.handles and other.transaction == step.transaction
            ]
            if others:
                yield (
                    manifest.service,
                    step.name,
                    f"{step.name} and {', '.join(others)} handle {short_name(event)} in one transaction. When "
                    f"{step.name} fails with {short_name(step.fails_with[0])}, what the other did is undone, and not "
                    "done again. Give one of them a transaction of its own (on(..., transaction='a name')), or make "
                    "them one handler.",
                )


def end_nobody_says(choreography: Choreography) -> Found:
    """SP013."""
    emitted = choreography.emitted()
    for manifest in choreography.services:
        for event in manifest.ends:
            if event not in emitted:
                yield (
                    manifest.service,
                    event,
                    f"{event} is declared as an end of the saga and nobody publishes it. Correct the name, or declare "
                    "it where it is published (emits=[...]).",
                )


def _holds(steps: list[Step], step: Step) -> bool:
    return any(step is found for found in steps)


def _is_pattern(event: str) -> bool:
    return any(word in {"*", "#"} for word in event.split("."))
