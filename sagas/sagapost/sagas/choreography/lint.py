"""Mistakes in a choreography that can be seen before it ships."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from sagapost.sagas.choreography.graph import short_name
from sagapost.sagas.choreography.manifest import Choreography, Manifest, Step, sayings
from sagapost.sagas.choreography.schemas import conflicts

__all__ = ["RULES", "Finding", "Rule", "Severity", "lint"]


class Severity(Enum):
    """How sure it is that something is wrong."""

    ERROR = "error"
    WARNING = "warning"
    ADVICE = "advice"


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake."""

    code: str
    severity: Severity
    service: str
    subject: str
    """The step or event it is about."""
    message: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that is looked for."""

    code: str
    severity: Severity
    title: str
    explanation: str
    check: Callable[[Choreography], Iterator[tuple[str, str, str]]]


def lint(choreography: Choreography, *, ignore: frozenset[str] = frozenset()) -> list[Finding]:
    """Return the findings of all rules, in the order of the rules."""
    return [
        Finding(rule.code, rule.severity, service, subject, message)
        for rule in RULES
        if rule.code not in ignore
        for service, subject, message in rule.check(choreography)
    ]


def _unheard(choreography: Choreography) -> Iterator[tuple[str, str, str]]:
    heard, ends = choreography.heard(), choreography.ends()
    for event, sayers in choreography.said().items():
        if event not in heard and event not in ends:
            manifest, step = sayers[0]
            who = "published outside handlers" if step is None else f"said by {step.name}"
            yield (
                manifest.service,
                event,
                f"{event} is {who} and nobody hears it. Handle it somewhere, declare it as an end of the saga "
                "(ends=[...]), or stop saying it.",
            )


def _unfed(choreography: Choreography) -> Iterator[tuple[str, str, str]]:
    said = choreography.said()
    for manifest, step in choreography.steps():
        for event in step.hears:
            if event not in said:
                yield (
                    manifest.service,
                    step.name,
                    f"{step.name} hears {event}, which nobody says. Declare it where it is published (emits=[...] or "
                    "starts=[...]), or remove the handler.",
                )


def _no_compensation(choreography: Choreography) -> Iterator[tuple[str, str, str]]:
    failures = choreography.failures()
    for manifest, step in choreography.steps():
        if step.compensation is not None or step.changes_nothing or _is_rollback(step, failures):
            continue
        later = _failures_after(choreography, step)
        if later:
            yield (
                manifest.service,
                step.name,
                f"{step.name} commits, and the saga can still fail afterwards ({', '.join(map(short_name, later))}), "
                "but nothing undoes the step. Declare compensation=..., or changes_nothing=True if there is nothing "
                "to undo.",
            )


def _no_deadline(choreography: Choreography) -> Iterator[tuple[str, str, str]]:
    ends = choreography.ends()
    for manifest in choreography.services:
        for event in manifest.starts:
            if event in ends:
                continue
            steps = _reachable(choreography, event)
            if steps and not any(step.sets for _, step in steps):
                yield (
                    manifest.service,
                    event,
                    f"The saga that {event} starts has no deadline anywhere: if a service stays silent, nobody "
                    "notices. Set one (deadlines=[...]) in an early step and cancel it at the end.",
                )


def _no_end(choreography: Choreography) -> Iterator[tuple[str, str, str]]:
    ends = choreography.ends()
    for manifest in choreography.services:
        for event in manifest.starts:
            reached = {event}.union(*(sayings(step) for _, step in _reachable(choreography, event)))
            if not reached & ends:
                yield (
                    manifest.service,
                    event,
                    f"The saga that {event} starts never reaches a declared end, so it can never be seen as "
                    "completed. Declare its last events with ends=[...].",
                )


def _cycles(choreography: Choreography) -> Iterator[tuple[str, str, str]]:
    heard = choreography.heard()
    reported: set[frozenset[str]] = set()
    for manifest, step in choreography.steps():
        path = _path_back(step, heard)
        if path is None or frozenset(path) in reported:
            continue
        reported.add(frozenset(path))
        yield (
            manifest.service,
            step.name,
            f"The steps {' -> '.join([*path, path[0]])} feed each other without end. Break the cycle, or give one of "
            "its events another type.",
        )


def _type_conflicts(choreography: Choreography) -> Iterator[tuple[str, str, str]]:
    heard = choreography.heard()
    for event, sayers in choreography.said().items():
        for manifest in {m.service: m for m, _ in sayers}.values():
            said = manifest.schemas.get(event)
            for other in {m.service: m for m, _ in heard.get(event, [])}.values():
                expected = other.schemas.get(event)
                if said is None or expected is None or other.service == manifest.service:
                    continue
                for problem in conflicts(said, expected):
                    yield (
                        other.service,
                        event,
                        f"{manifest.service} and {other.service} disagree about {event}: {problem}. Align the "
                        "classes, or publish a new version of the event.",
                    )


def _cheaper_order(choreography: Choreography) -> Iterator[tuple[str, str, str]]:
    for manifest, step in choreography.steps():
        if step.compensation is None or step.likely_to_fail:
            continue
        for other, later in _steps_after(choreography, step):
            if later.likely_to_fail and not _needs(later, step):
                yield (
                    manifest.service,
                    step.name,
                    f"{step.name} must be undone by {step.compensation.name} whenever {other.service}'s {later.name} "
                    f"fails after it, which is declared as likely. Let {step.name} wait for {later.name}: then there "
                    "is nothing to undo.",
                )


def _is_rollback(step: Step, failures: frozenset[str]) -> bool:
    """Whether a step is itself part of a rollback."""
    return bool(step.compensates) or all(event in failures for event in step.hears)


def _reachable(choreography: Choreography, event: str) -> list[tuple[Manifest, Step]]:
    """Every step that an event sets off, directly or not."""
    heard = choreography.heard()
    found: dict[tuple[str, str], tuple[Manifest, Step]] = {}
    waiting, seen = [event], {event}
    while waiting:
        for manifest, step in heard.get(waiting.pop(), []):
            if (manifest.service, step.name) in found:
                continue
            found[manifest.service, step.name] = (manifest, step)
            for said in sayings(step):
                if said not in seen:
                    seen.add(said)
                    waiting.append(said)
    return list(found.values())


def _steps_after(choreography: Choreography, step: Step) -> list[tuple[Manifest, Step]]:
    """The steps that a step's results set off, directly or not."""
    found: dict[tuple[str, str], tuple[Manifest, Step]] = {}
    for event in step.emits:
        for manifest, later in _reachable(choreography, event):
            if later is not step:
                found[manifest.service, later.name] = (manifest, later)
    return list(found.values())


def _failures_after(choreography: Choreography, step: Step) -> list[str]:
    """Events that fail the saga and can still come once this step has committed."""
    found = [deadline.event for deadline in step.sets]
    for _, later in _steps_after(choreography, step):
        found += later.fails_with
        found += [deadline.event for deadline in later.sets]
    return list(dict.fromkeys(found))


def _needs(later: Step, step: Step) -> bool:
    """Whether a step hears an earlier one's result directly, and so may need its effect."""
    return bool(set(later.hears) & set(step.emits))


def _path_back(step: Step, heard: dict[str, list[tuple[Manifest, Step]]]) -> list[str] | None:
    """Return the names of the steps on a shortest way from a step's results back to itself."""
    waiting: list[tuple[Step, list[str]]] = [(step, [step.name])]
    seen: set[str] = set()
    while waiting:
        current, path = waiting.pop(0)
        for event in current.emits:
            for _, following in heard.get(event, []):
                if following is step:
                    return path
                if following.name not in seen:
                    seen.add(following.name)
                    waiting.append((following, [*path, following.name]))
    return None


RULES: tuple[Rule, ...] = (
    Rule(
        "SP001",
        Severity.ERROR,
        "event nobody hears",
        "An event is said, no handler hears it, and it is not declared as an end of the saga: the saga stops there.",
        _unheard,
    ),
    Rule(
        "SP002",
        Severity.ERROR,
        "handler nobody feeds",
        "A handler waits for an event that no service says: it never runs.",
        _unfed,
    ),
    Rule(
        "SP003",
        Severity.ERROR,
        "step without compensation",
        "A step commits an effect, a later step can fail the saga, and nothing undoes the effect.",
        _no_compensation,
    ),
    Rule(
        "SP004",
        Severity.WARNING,
        "saga without deadline",
        "No step sets a deadline: a service that stays silent leaves the saga open for ever, unnoticed.",
        _no_deadline,
    ),
    Rule(
        "SP005",
        Severity.ERROR,
        "saga without end",
        "No declared end can be reached from the event that starts the saga: it can never be seen as completed.",
        _no_end,
    ),
    Rule(
        "SP006",
        Severity.ERROR,
        "cycle",
        "Results of a step lead back to the same step: one event may go round for ever.",
        _cycles,
    ),
    Rule(
        "SP007",
        Severity.ERROR,
        "type conflict",
        "A service expects fields or types of an event that the service that says it does not promise.",
        _type_conflicts,
    ),
    Rule(
        "SP008",
        Severity.ADVICE,
        "cheaper step order",
        "A step that must be undone runs before a step that is likely to fail, and could run after it.",
        _cheaper_order,
    ),
)
"""Every rule, in the order of the codes."""
