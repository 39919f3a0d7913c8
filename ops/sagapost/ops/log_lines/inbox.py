"""What a consumer tells an operator."""

from __future__ import annotations

from sagapost.core.observer import Observation
from sagapost.inbox.declared import observations as inbox
from sagapost.ops.log_lines.line import DEBUG, ERROR, INFO, READABLE, WARNING, Line

__all__ = ["line_for"]


def line_for(event: Observation) -> Line | None:
    """Return the line for an event of a consumer."""
    match event:
        case inbox.DeliveryStep():
            return _step_line(event)
        case inbox.Consuming():
            return _consumer_line(event)
        case _:
            return None


def _step_line(event: inbox.DeliveryStep) -> Line | None:
    """What happens to single messages: lines only for what went wrong, the rest for whoever debugs."""
    extra: dict[str, object] = {"consumer": event.consumer}
    match event:
        case inbox.Handled(event_id=event_id, event_type=event_type, seconds=seconds, failure=failure):
            extra |= {"event_id": event_id, "event_type": event_type, "seconds": round(seconds, 4)}
            if failure is not None:
                text = f"{event_type} ended in a business failure, published as {failure}"
                return Line(INFO, text, extra | {"failure": failure}, READABLE)
            return Line(DEBUG, f"{event_type} handled", extra, READABLE)
        case inbox.Duplicate(event_id=event_id, event_type=event_type):
            extra |= {"event_id": event_id, "event_type": event_type}
            return Line(DEBUG, f"{event_type} was handled before; nothing done", extra, READABLE)
        case inbox.HandlerFailed():
            extra |= {"event_id": event.event_id, "event_type": event.event_type, "attempt": event.attempt}
            extra |= {"traceback": event.traceback} if event.traceback else {}
            said = event.text or event.error
            return Line(WARNING, f"handling {event.event_type} failed: {said}", extra, READABLE)
        case inbox.Parked():
            return _parked_line(event, extra)
        case inbox.AttemptBegun(event_id=event_id, unended=unended) if unended:
            text = f"a message was in flight {unended} times when a process ended; trying once more"
            return Line(WARNING, text, extra | {"event_id": event_id, "unended": unended}, READABLE)
        case inbox.Ignored(event_id=event_id, event_type=event_type):
            extra |= {"event_id": event_id, "event_type": event_type}
            return Line(DEBUG, f"no handler takes {event_type}; ignored", extra, READABLE)
        case inbox.GroupHandled(types=types, duplicates=duplicates, seconds=seconds):
            handled = sum(types.values())
            extra |= {"types": types, "duplicates": duplicates, "seconds": round(seconds, 4)}
            return Line(DEBUG, f"{handled} messages handled in one transaction", extra, READABLE)
        case inbox.GroupUndone(messages=messages, error=error):
            text = f"a transaction of {messages} messages was undone, which are handled one by one: {error}"
            return Line(WARNING, text, extra | {"messages": messages}, READABLE)
        case inbox.RoundClaimed(messages=messages):
            return Line(DEBUG, f"{messages} parked messages are due", extra | {"messages": messages}, READABLE)
        case inbox.Promoted(messages=messages):
            return Line(DEBUG, f"{messages} messages may follow in their key", extra, READABLE)
        case inbox.Acknowledged(messages=messages):
            return Line(DEBUG, f"{messages} messages acknowledged", extra | {"messages": messages}, READABLE)
        case _:
            return None


def _parked_line(event: inbox.Parked, extra: dict[str, object]) -> Line:
    what = event.event_type or "a message that is no event"
    extra |= {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "reason": event.reason,
        "state": event.state,
        "attempts": event.attempts,
    }
    if event.retry_in is not None:
        return Line(WARNING, f"{what} parked ({event.reason}); next try in {event.retry_in:.1f} s", extra, READABLE)
    if event.state == "behind":
        return Line(INFO, f"{what} parked behind an earlier message of its key", extra, READABLE)
    return Line(ERROR, f"{what} is a dead letter ({event.reason}); an operator decides", extra, READABLE)


def _consumer_line(event: inbox.Consuming) -> Line | None:
    extra: dict[str, object] = {"consumer": event.consumer}
    match event:
        case inbox.ConsumerStarted(consumer=consumer):
            return Line(INFO, f"inbox {consumer} starting", extra)
        case inbox.ConsumerReady(consumer=consumer, address=address, prefetch=prefetch):
            text = f"inbox {consumer} consumes from {address}"
            return Line(INFO, text, extra | {"broker": address, "prefetch": prefetch})
        case inbox.ConsumerStopped(consumer=consumer, unfinished=unfinished):
            level = WARNING if unfinished else INFO
            return Line(level, f"inbox {consumer} stopped", extra | {"unfinished": unfinished})
        case inbox.PrunedKeys(rows=rows):
            return Line(DEBUG, f"{rows} dedup keys from before the window deleted", extra | {"rows": rows}, READABLE)
        case inbox.StrandedEnded(connections=connections):
            text = f"{connections} transactions ended that a lost client had left in the middle of a statement"
            return Line(WARNING, text, extra | {"connections": connections})
        case inbox.Redriven(messages=messages, actor=actor):
            return Line(INFO, f"{messages} parked messages redriven by {actor}", extra | {"actor": actor})
        case inbox.Discarded(messages=messages, actor=actor):
            return Line(WARNING, f"{messages} parked messages discarded by {actor}", extra | {"actor": actor})
        case inbox.Edited(parked_id=parked_id, actor=actor):
            text = f"parked message {parked_id} edited by {actor}"
            return Line(WARNING, text, extra | {"actor": actor, "parked_id": parked_id})
        case inbox.GivenBack(messages=messages):
            text = f"{messages} messages given back to the queue"
            return Line(INFO, text, extra | {"messages": messages}, READABLE)
        case _:
            return None
