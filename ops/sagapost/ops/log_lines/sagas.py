"""What a compensator tells an operator."""

from __future__ import annotations

from sagapost.core.observer import Observation
from sagapost.ops.log_lines.line import ERROR, INFO, WARNING, Line
from sagapost.sagas import observations as sagas

__all__ = ["line_for"]


def line_for(event: Observation) -> Line | None:
    """Return the line for an event of a service's sagas."""
    return _saga_line(event) if isinstance(event, sagas.SagaObservation) else None


def _saga_line(event: sagas.SagaObservation) -> Line | None:
    """What happens to rollbacks: rare, and each worth a line."""
    extra: dict[str, object] = {"service": event.service}
    match event:
        case sagas.Compensated(saga=saga, compensation=name, remaining=remaining):
            text = f"{name} has undone its step; {remaining} to go"
            return Line(INFO, text, extra | {"correlationid": saga, "compensation": name, "remaining": remaining})
        case sagas.SagaRolledBack(saga=saga):
            return Line(INFO, "the saga is rolled back here", extra | {"correlationid": saga})
        case sagas.CompensationFailed(saga=saga, compensation=name, attempts=attempts, retry_in=retry_in, error=error):
            text = f"{name} failed: {error}; attempt {attempts}, next in {retry_in:.1f} s"
            return Line(WARNING, text, extra | {"correlationid": saga, "compensation": name})
        case sagas.CompensationNotKnown(saga=saga, compensation=name, reason=reason):
            text = f"the saga waits for another version: {reason}"
            return Line(WARNING, text, extra | {"correlationid": saga, "compensation": name})
        case sagas.InFlightNotKnown(kind=kind, subject=subject, count=count, saga=saga):
            text = f"{kind} {subject}: {event.message} ({count}, for instance of saga {saga}). {event.remedy}"
            return Line(WARNING, text, extra | {"subject": subject, "count": count})
        case sagas.SagaStuck(saga=saga, compensation=name, attempts=attempts, error=error):
            text = f"the saga is stuck at {name} after {attempts} attempts: {error}; an operator decides"
            return Line(ERROR, text, extra | {"correlationid": saga, "compensation": name})
        case _:
            return None
