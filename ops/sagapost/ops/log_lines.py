"""The words for what relays and consumers report: one line for each kind of observer event."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from sagapost.core.observer import Observation
from sagapost.inbox import observations as inbox
from sagapost.outbox.relay import observations as relay
from sagapost.sagas import observations as sagas
from sagapost.sagas.tracker import observations as tracker

__all__ = ["Line", "line_for"]

_DEBUG, _INFO, _WARNING, _ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR
_READABLE = 1.0


@dataclass(frozen=True, slots=True)
class Line:
    """What to write."""

    level: int
    text: str
    extra: Mapping[str, object] = field(default_factory=dict[str, object])
    every: float = 0.0
    """Least seconds between two such lines; 0: write each."""


def line_for(event: Observation) -> Line | None:
    """Return the line for an event; None for one that a log has no use for."""
    match event:
        case relay.Relayed():
            return _batch_line(event) or _relay_line(event)
        case inbox.Step():
            return _step_line(event)
        case inbox.Consuming():
            return _consumer_line(event)
        case sagas.SagaObservation():
            return _saga_line(event)
        case tracker.TrackerObservation():
            return _tracker_line(event)
        case _:
            return None


def _batch_line(event: relay.Relayed) -> Line | None:
    """What happens per batch: many times a second, for whoever debugs."""
    match event:
        case relay.Sent(rows=rows):
            return Line(_DEBUG, f"{rows} events sent", {"rows": rows}, _READABLE)
        case relay.Confirmed(rows=rows):
            return Line(_DEBUG, f"{rows} events confirmed", {"rows": rows}, _READABLE)
        case relay.Settled(rows=rows):
            return Line(_DEBUG, f"{rows} events settled", {"rows": rows}, _READABLE)
        case relay.Fetched(rows=rows, caught_up=caught_up):
            return Line(_DEBUG, f"{rows} events fetched", {"rows": rows, "caught_up": caught_up}, _READABLE)
        case relay.Moved(rows=rows):
            return Line(_DEBUG, f"{rows} scheduled events became due", {"rows": rows}, _READABLE)
        case relay.Idle():
            return Line(_DEBUG, "nothing left to publish; sleeping", every=_READABLE)
        case relay.Woken(rung=rung):
            return Line(_DEBUG, "woken by a writer" if rung else "woke to look around", every=_READABLE)
        case _:
            return None


def _relay_line(event: relay.Relayed) -> Line | None:
    match event:
        case relay.RelayStarted(relay=identity):
            return Line(_INFO, "relay starting", {"relay": identity})
        case relay.RelayStopped(relay=identity, left_in_flight=left):
            return Line(_WARNING if left else _INFO, "relay stopped", {"relay": identity, "left_in_flight": left})
        case relay.BrokerReady(address=address):
            return Line(_INFO, f"publishing to {address}", {"broker": address})
        case relay.BrokerLost(address=address, reason=reason, attempt=attempt, retry_in=retry_in):
            return _lost({"broker": address}, reason, attempt, retry_in)
        case relay.StoreLost(address=address, reason=reason, attempt=attempt, retry_in=retry_in):
            return _lost({"database": address}, reason, attempt, retry_in)
        case relay.LeasesChanged(owned=owned, gained=gained, given_up=given_up):
            counts = {"owned": len(owned), "gained": len(gained), "given_up": len(given_up)}
            return Line(_INFO, f"owns {len(owned)} partitions now", counts)
        case relay.LeaseLost(partitions=partitions, reason=reason):
            text = f"lost {len(partitions)} partitions: {reason}"
            return Line(_WARNING, text, {"partitions": sorted(partitions)})
        case relay.Blocked(blocked=True):
            return Line(_WARNING, "the broker asked publishers to pause (a resource alarm); waiting")
        case relay.Blocked():
            return Line(_INFO, "the broker lets publishers go on")
        case relay.Held():
            text = (
                f"the broker refused {event.event_type}: {event.reason}; attempt {event.attempt}, "
                f"next in {event.retry_in:.1f} s, later events of its key wait"
            )
            return Line(_WARNING, text, _row(event), _READABLE)
        case relay.Released(key=key, position=position):
            extra = {"key": key, "position": position}
            return Line(_INFO, "a held event is through or gone; its key flows again", extra, _READABLE)
        case relay.Buried():
            after = {
                "block": "later events of its key wait until somebody redrives or discards it",
                "park": "later events of its key join it",
                "skip": "later events of its key go on without it",
            }.get(event.policy, event.policy)
            text = f"{event.event_type} is a dead letter after {event.attempts} attempts: {event.reason}; {after}"
            return Line(_ERROR, text, _row(event))
        case relay.Overtaken(key=key, position=position, by=by):
            text = f"the event at {by} was confirmed after an earlier one of its key was refused in the same window"
            return Line(_ERROR, text, {"key": key, "position": position, "by": by})
        case relay.Saturated(saturated=True, held=held):
            text = (
                f"{held} keys wait behind a refused event or a dead letter, and no more are kept in mind: nothing new "
                "is published, of any key, until some clear; `sagapost status` says what they wait for"
            )
            return Line(_ERROR, text, {"held": held})
        case relay.Saturated(held=held):
            return Line(_INFO, "held keys have cleared; publishing goes on", {"held": held})
        case _:
            return None


def _row(event: relay.Held | relay.Buried) -> dict[str, object]:
    return {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "key": event.key,
        "position": event.position,
        "reason": event.reason,
    }


def _lost(where: Mapping[str, object], reason: str, attempt: int, retry_in: float) -> Line:
    extra = {**where, "attempt": attempt, "retry_in": round(retry_in, 3)}
    if not attempt:
        # Reported on the way out, where nothing is tried again.
        return Line(_WARNING, reason, extra)
    return Line(_WARNING, f"{reason} Attempt {attempt}; next in {retry_in:.1f} s.", extra)


def _step_line(event: inbox.Step) -> Line | None:
    """What happens to single messages: lines only for what went wrong, the rest for whoever debugs."""
    extra: dict[str, object] = {"consumer": event.consumer}
    match event:
        case inbox.Handled(event_id=event_id, event_type=event_type, seconds=seconds, failure=failure):
            extra |= {"event_id": event_id, "event_type": event_type, "seconds": round(seconds, 4)}
            if failure is not None:
                text = f"{event_type} ended in a business failure, published as {failure}"
                return Line(_INFO, text, extra | {"failure": failure}, _READABLE)
            return Line(_DEBUG, f"{event_type} handled", extra, _READABLE)
        case inbox.Duplicate(event_id=event_id, event_type=event_type):
            extra |= {"event_id": event_id, "event_type": event_type}
            return Line(_DEBUG, f"{event_type} was handled before; nothing done", extra, _READABLE)
        case inbox.HandlerFailed():
            extra |= {"event_id": event.event_id, "event_type": event.event_type, "attempt": event.attempt}
            return Line(_WARNING, f"handling {event.event_type} failed: {event.error}", extra, _READABLE)
        case inbox.Parked():
            return _parked_line(event, extra)
        case inbox.AttemptBegun(event_id=event_id, unended=unended) if unended:
            text = f"a message was in hand {unended} times when a process ended; trying once more"
            return Line(_WARNING, text, extra | {"event_id": event_id, "unended": unended}, _READABLE)
        case inbox.Ignored(event_id=event_id, event_type=event_type):
            extra |= {"event_id": event_id, "event_type": event_type}
            return Line(_DEBUG, f"no handler takes {event_type}; ignored", extra, _READABLE)
        case inbox.GroupHandled(types=types, duplicates=duplicates, seconds=seconds):
            handled = sum(types.values())
            extra |= {"types": types, "duplicates": duplicates, "seconds": round(seconds, 4)}
            return Line(_DEBUG, f"{handled} messages handled in one transaction", extra, _READABLE)
        case inbox.GroupUndone(messages=messages, error=error):
            text = f"a transaction of {messages} messages was undone, which are handled one by one: {error}"
            return Line(_WARNING, text, extra | {"messages": messages}, _READABLE)
        case inbox.RoundClaimed(messages=messages):
            return Line(_DEBUG, f"{messages} parked messages are due", extra | {"messages": messages}, _READABLE)
        case inbox.Promoted(messages=messages):
            return Line(_DEBUG, f"{messages} messages may follow in their key", extra, _READABLE)
        case inbox.Acknowledged(messages=messages):
            return Line(_DEBUG, f"{messages} messages acknowledged", extra | {"messages": messages}, _READABLE)
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
        return Line(_WARNING, f"{what} parked ({event.reason}); next try in {event.retry_in:.1f} s", extra, _READABLE)
    if event.state == "behind":
        return Line(_INFO, f"{what} parked behind an earlier message of its key", extra, _READABLE)
    return Line(_ERROR, f"{what} is a dead letter ({event.reason}); an operator decides", extra, _READABLE)


def _consumer_line(event: inbox.Consuming) -> Line | None:
    extra: dict[str, object] = {"consumer": event.consumer}
    match event:
        case inbox.ConsumerStarted(consumer=consumer):
            return Line(_INFO, f"inbox {consumer} starting", extra)
        case inbox.ConsumerReady(consumer=consumer, address=address, prefetch=prefetch):
            text = f"inbox {consumer} consumes from {address}"
            return Line(_INFO, text, extra | {"broker": address, "prefetch": prefetch})
        case inbox.ConsumerStopped(consumer=consumer, unfinished=unfinished):
            level = _WARNING if unfinished else _INFO
            return Line(level, f"inbox {consumer} stopped", extra | {"unfinished": unfinished})
        case inbox.BrokerLost(address=address, reason=reason, attempt=attempt, retry_in=retry_in):
            return _lost(extra | {"broker": address}, reason, attempt, retry_in)
        case inbox.StoreLost(address=address, reason=reason, attempt=attempt, retry_in=retry_in):
            return _lost(extra | {"database": address}, reason, attempt, retry_in)
        case inbox.PrunedKeys(rows=rows):
            return Line(_DEBUG, f"{rows} dedup keys from before the window deleted", extra | {"rows": rows}, _READABLE)
        case inbox.Redriven(messages=messages, actor=actor):
            return Line(_INFO, f"{messages} parked messages redriven by {actor}", extra | {"actor": actor})
        case inbox.Discarded(messages=messages, actor=actor):
            return Line(_WARNING, f"{messages} parked messages discarded by {actor}", extra | {"actor": actor})
        case inbox.Edited(parked_id=parked_id, actor=actor):
            text = f"parked message {parked_id} edited by {actor}"
            return Line(_WARNING, text, extra | {"actor": actor, "parked_id": parked_id})
        case inbox.StoreReady():
            return Line(_INFO, "the database answers again; consuming", extra)
        case inbox.Released(messages=messages):
            text = f"{messages} messages given back to the queue"
            return Line(_INFO, text, extra | {"messages": messages}, _READABLE)
        case _:
            return None


def _saga_line(event: sagas.SagaObservation) -> Line | None:
    """What happens to rollbacks: rare, and each worth a line."""
    extra: dict[str, object] = {"service": event.service}
    match event:
        case sagas.Compensated(saga=saga, compensation=name, remaining=remaining):
            text = f"{name} has undone its step; {remaining} to go"
            return Line(_INFO, text, extra | {"correlation_id": saga, "compensation": name, "remaining": remaining})
        case sagas.SagaRolledBack(saga=saga):
            return Line(_INFO, "the saga is rolled back here", extra | {"correlation_id": saga})
        case sagas.CompensationFailed(saga=saga, compensation=name, attempts=attempts, retry_in=retry_in, error=error):
            text = f"{name} failed: {error}; attempt {attempts}, next in {retry_in:.1f} s"
            return Line(_WARNING, text, extra | {"correlation_id": saga, "compensation": name})
        case sagas.CompensationGivenUp(saga=saga, compensation=name, attempts=attempts, error=error):
            text = f"{name} is given up after {attempts} attempts: {error}; a person must decide"
            return Line(_ERROR, text, extra | {"correlation_id": saga, "compensation": name})
        case sagas.LedgerUnavailable(reason=reason, attempt=attempt, retry_in=retry_in):
            text = f"the database cannot be reached ({reason}). Attempt {attempt}; next in {retry_in:.1f} s."
            return Line(_WARNING, text, extra)
        case _:
            return None


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
    return Line(_WARNING, f"{_LEFT_OUT[event.part]}{which}: {event.reason}", extra, _READABLE)


def _tracker_line(event: tracker.TrackerObservation) -> Line | None:
    """What a tracker does, and what it waits for."""
    match event:
        case tracker.Folded(events=events, sagas=changed):
            return Line(_DEBUG, f"{events} events folded into {changed} sagas", every=_READABLE)
        case tracker.PassedOver():
            return _passed_over_line(event)
        case tracker.ActionFailed(saga=saga, rule=rule, error=error):
            text = f"the rule {rule!r} cannot be applied to saga {saga}: {error}"
            return Line(_ERROR, text, {"correlationid": saga, "rule": rule}, _READABLE)
        case tracker.RuleFailed(rule=rule, error=error):
            return Line(_ERROR, f"the rule {rule!r} could not be applied: {error}", {"rule": rule}, _READABLE)
        case tracker.TrackerUnavailable(reason=reason, attempt=attempt, retry_in=wait):
            return Line(_WARNING, f"tracker: {reason}; again in {wait:.1f} s", {"attempt": attempt}, _READABLE)
        case tracker.TrackerPruned(sagas=forgotten):
            return Line(_INFO, f"{forgotten} sagas forgotten that ended long ago")
        case tracker.ActionTaken(saga=saga, rule=rule, reason=reason):
            return Line(_WARNING, f"acted on saga {saga}: {reason}", {"saga": saga, "rule": rule})
        case tracker.WebhookSent(saga=saga, rule=rule):
            return Line(_INFO, f"webhook sent about saga {saga}", {"saga": saga, "rule": rule})
        case tracker.WebhookFailed(saga=saga, rule=rule, error=error, retry_in=again):
            then = f"again in {again:.0f} s" if again is not None else "given up"
            return Line(_WARNING, f"webhook about saga {saga} failed ({error}); {then}", {"saga": saga, "rule": rule})
        case _:
            return None
