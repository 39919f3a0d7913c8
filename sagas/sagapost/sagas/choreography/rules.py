"""The rules of the lint, in words. `docs/lint.md` has an example for each."""

from __future__ import annotations

from sagapost.core.findings import Severity
from sagapost.sagas.choreography import checks
from sagapost.sagas.choreography.findings import LintRule

__all__ = ["RULES", "STALE"]

STALE = LintRule(
    "SP000",
    Severity.WARNING,
    "acceptance of nothing",
    "A finding is accepted that is not found any more. The acceptance would hide the next mistake of its kind.",
    "Remove it from the file of acceptances, or correct its service and subject.",
    lambda _: iter(()),
)
"""About the acceptances themselves, so no choreography is searched for it."""

RULES: tuple[LintRule, ...] = (
    LintRule(
        "SP001",
        Severity.ERROR,
        "event nobody handles",
        "An event is published, no service handles it, and it is not declared as an end of the saga: it stops there, "
        "and the relay holds the event, since no queue is bound for it.",
        "Handle the event, declare it with ends=[...] if the saga is over then, or stop publishing it. Accept it if "
        "somebody outside these manifests listens.",
        checks.unhandled,
    ),
    LintRule(
        "SP002",
        Severity.ERROR,
        "handler nobody feeds",
        "A handler waits for an event that no service publishes. It never runs; often its name is wrong, or the "
        "version differs.",
        "Declare the event where it is published (emits=[...], starts=[...]), correct its name, or remove the "
        "handler. Accept it if the event comes from outside these manifests.",
        checks.unfed,
    ),
    LintRule(
        "SP003",
        Severity.ERROR,
        "step without compensation",
        "A step commits an effect, the saga can still fail afterwards, and nothing undoes the effect: money stays "
        "taken, stock stays reserved.",
        "Declare compensation=... and record it in the step with ctx.on_rollback, let a handler undo it "
        "(undoes=[...]), or say changes_nothing=True. Or move the step behind the last that can fail. Accept it if "
        "the business wants the effect to stay.",
        checks.no_compensation,
    ),
    LintRule(
        "SP004",
        Severity.WARNING,
        "saga without deadline",
        "No step sets a deadline. A service that stays silent leaves the saga open for ever, and nobody notices.",
        "Set a deadline in an early step of the service that cares (deadlines=[...], ctx.deadline) and cancel it in "
        "the step it waits for. Accept it if a tracker's lateness is watched instead.",
        checks.no_deadline,
    ),
    LintRule(
        "SP005",
        Severity.ERROR,
        "saga without end",
        "No declared end can be reached, from the event that starts the saga or from one that fails it, and no "
        "service rolls back. Such a saga is never seen as over.",
        "Declare the last events with ends=[...]; let the services that have something to undo roll back on the "
        "failure.",
        checks.no_end,
    ),
    LintRule(
        "SP006",
        Severity.ERROR,
        "cycle",
        "What a step publishes leads back to the step. Each round publishes new events, so deduplication does not end "
        "it: one event may go round for ever.",
        "Break the cycle, or give one of its events another type. Accept it if it is meant and something bounds it, "
        "such as a number of tries kept in a row; say in the reason what does.",
        checks.cycle,
    ),
    LintRule(
        "SP007",
        Severity.ERROR,
        "type conflict",
        "A service requires a field of an event that the publisher does not promise, or reads it as another type. "
        "Every such message is parked as undecodable.",
        "Align the classes; or publish the new shape as a new version of the event, with Inbox.upcast for the old. "
        "Fields that the consumer does not know are no conflict.",
        checks.type_conflict,
    ),
    LintRule(
        "SP008",
        Severity.ADVICE,
        "cheaper step order",
        "A step that has to be undone runs before or beside one that is likely to fail, and does not handle its "
        "result.",
        "Let the step handle the result of the later one: what has not happened need not be undone. Accept it if the "
        "effect must be early, for instance because it makes sure of something scarce.",
        checks.cheaper_order,
    ),
    LintRule(
        "SP009",
        Severity.ERROR,
        "deadline nobody cancels",
        "A step sets a deadline that no step of the same service cancels. It passes in every saga, also in those that "
        "went well.",
        "Call ctx.cancel_deadline in the step that the deadline waits for and declare cancels=[...]. The event is a "
        "row in the outbox of the service that set it, so only that service can take it back. Accept it if the event "
        "is harmless when all went well.",
        checks.deadline_nobody_cancels,
    ),
    LintRule(
        "SP010",
        Severity.ERROR,
        "compensation nothing triggers",
        "A step has a compensation, but when the saga fails nothing starts the rollback in its service: the intent "
        "stays in the ledger.",
        "Add the failure, or an event that follows from it, to sagas.rolls_back_on(inbox, ...). Accept it if the "
        "saga goes forward from that failure.",
        checks.nothing_triggers,
    ),
    LintRule(
        "SP011",
        Severity.WARNING,
        "deadline nobody sets",
        "A step cancels a deadline that no step of its service sets: the name is misspelt, or another service set it.",
        "Correct the name, or cancel the deadline in the service that sets it.",
        checks.deadline_nobody_sets,
    ),
    LintRule(
        "SP012",
        Severity.ADVICE,
        "step no deadline waits for",
        "The saga has deadlines, but none is open while it waits for this step.",
        "Cancel a deadline later, or set another one in a step before. Accept it where lateness is somebody else's "
        "concern.",
        checks.step_nothing_waits_for,
    ),
    LintRule(
        "SP013",
        Severity.WARNING,
        "end nobody publishes",
        "An event is declared as an end of the saga and no service publishes it.",
        "Correct its name, or declare it where it is published. Accept it if it comes from outside these manifests.",
        checks.end_nobody_says,
    ),
    LintRule(
        "SP014",
        Severity.WARNING,
        "failure that undoes another",
        "Two steps of a service handle one event in one transaction, and one of them can fail for a business reason. "
        "Then what the other did is undone with it, though nothing was wrong with that.",
        "Give one of them a transaction of its own with on(..., transaction='a name'), or make them one handler. "
        "Accept it if they belong together, all or nothing.",
        checks.failure_undoes_another,
    ),
)
"""Every rule, in the order of the codes."""
