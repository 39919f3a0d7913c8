"""What a tracker tells an operator."""

from __future__ import annotations

from sagapost.core.observer import Observation
from sagapost.ops.log_lines.line import DEBUG, ERROR, INFO, READABLE, WARNING, Line
from sagapost.sagas.tracker import observations as tracker

__all__ = ["line_for"]


def line_for(event: Observation) -> Line | None:
    """Return the line for an event of a tracker."""
    return _tracker_line(event) if isinstance(event, tracker.TrackerObservation) else None


_LEFT_OUT = {
    "message": "passed over a message that is no event",
    "event": "passed over an event that cannot be folded; its saga is shown without it",
    "data": "an event of the library is of another shape than this release knows, so it says nothing of its saga",
    "key": "passed over a business key; the saga is not found by it",
    "saga": "a saga cannot be derived anew; it shows what it showed before",
}


def _passed_over_line(event: tracker.PassedOver) -> Line:
    extra = {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "correlationid": event.saga,
        "reason": event.reason,
    }
    which = f" ({event.event_type} {event.event_id})" if event.event_id is not None else ""
    return Line(WARNING, f"{_LEFT_OUT[event.part]}{which}: {event.reason}", extra, READABLE)


def _tracker_line(event: tracker.TrackerObservation) -> Line | None:
    """What a tracker does, and what it waits for."""
    match event:
        case tracker.Folded(events=events, sagas=changed):
            return Line(DEBUG, f"{events} events folded into {changed} sagas", every=READABLE)
        case tracker.PassedOver():
            return _passed_over_line(event)
        case tracker.ActionFailed(saga=saga, rule=rule, error=error):
            text = f"the rule {rule!r} cannot be applied to saga {saga}: {error}"
            return Line(ERROR, text, {"correlationid": saga, "rule": rule}, READABLE)
        case tracker.RuleFailed(rule=rule, error=error):
            return Line(ERROR, f"the rule {rule!r} could not be applied: {error}", {"rule": rule}, READABLE)
        case tracker.TrackerPruned(sagas=forgotten):
            return Line(INFO, f"{forgotten} sagas forgotten that ended long ago")
        case tracker.ActionTaken(saga=saga, rule=rule, reason=reason):
            return Line(WARNING, f"acted on saga {saga}: {reason}", {"correlationid": saga, "rule": rule})
        case tracker.WebhookSent(saga=saga, rule=rule):
            return Line(INFO, f"webhook sent about saga {saga}", {"correlationid": saga, "rule": rule})
        case tracker.WebhookFailed(saga=saga, rule=rule, error=error, retry_in=again):
            then = f"again in {again:.0f} s" if again is not None else "given up"
            return Line(
                WARNING, f"webhook about saga {saga} failed ({error}); {then}", {"correlationid": saga, "rule": rule}
            )
        case _:
            return None
