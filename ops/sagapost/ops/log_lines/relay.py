"""What a relay tells an operator."""

from __future__ import annotations

from sagapost.core.observer import Observation
from sagapost.ops.log_lines.line import DEBUG, ERROR, INFO, READABLE, WARNING, Line
from sagapost.outbox.relay import observations as relay

__all__ = ["line_for"]


def line_for(event: Observation) -> Line | None:
    """Return the line for an event of a relay."""
    return (_batch_line(event) or _relay_line(event)) if isinstance(event, relay.Relayed) else None


def _batch_line(event: relay.Relayed) -> Line | None:
    """What happens per batch: many times a second, for whoever debugs."""
    match event:
        case relay.Sent(rows=rows):
            return Line(DEBUG, f"{rows} events sent", {"rows": rows}, READABLE)
        case relay.Published(rows=rows):
            return Line(DEBUG, f"{rows} events confirmed", {"rows": rows}, READABLE)
        case relay.Settled(rows=rows):
            return Line(DEBUG, f"{rows} events settled", {"rows": rows}, READABLE)
        case relay.Fetched(rows=rows, caught_up=caught_up):
            return Line(DEBUG, f"{rows} events fetched", {"rows": rows, "caught_up": caught_up}, READABLE)
        case relay.Moved(rows=rows):
            return Line(DEBUG, f"{rows} scheduled events became due", {"rows": rows}, READABLE)
        case relay.Idle():
            return Line(DEBUG, "nothing left to publish; sleeping", every=READABLE)
        case relay.Woken(rung=rung):
            return Line(DEBUG, "woken by a writer" if rung else "woke to look around", every=READABLE)
        case _:
            return None


def _relay_line(event: relay.Relayed) -> Line | None:
    match event:
        case relay.RelayStarted(relay=identity):
            return Line(INFO, "relay starting", {"relay": identity})
        case relay.RelayStopped(relay=identity, left_in_flight=left):
            return Line(WARNING if left else INFO, "relay stopped", {"relay": identity, "left_in_flight": left})
        case relay.BrokerReady(address=address):
            return Line(INFO, f"publishing to {address}", {"broker": address})
        case relay.LeasesChanged(owned=owned, gained=gained, given_up=given_up):
            counts = {"owned": len(owned), "gained": len(gained), "given_up": len(given_up)}
            return Line(INFO, f"owns {len(owned)} partitions now", counts)
        case relay.LeaseLost(partitions=partitions, reason=reason):
            text = f"lost {len(partitions)} partitions: {reason}"
            return Line(WARNING, text, {"partitions": sorted(partitions)})
        case relay.Blocked(blocked=True):
            return Line(WARNING, "the broker asked publishers to pause (a resource alarm); waiting")
        case relay.Blocked():
            return Line(INFO, "the broker lets publishers go on")
        case relay.Held():
            text = (
                f"the broker refused {event.event_type}: {event.reason}; attempt {event.attempt}, "
                f"next in {event.retry_in:.1f} s, later events of its key wait"
            )
            return Line(WARNING, text, _row(event), READABLE)
        case relay.Released(key=key, position=position):
            extra = {"key": key, "position": position}
            return Line(INFO, "a held event is through or gone; its key flows again", extra, READABLE)
        case relay.Buried():
            after = {
                "block": "later events of its key wait until somebody redrives or discards it",
                "park": "later events of its key join it",
                "skip": "later events of its key go on without it",
            }.get(event.policy, event.policy)
            text = f"{event.event_type} is a dead letter after {event.attempts} attempts: {event.reason}; {after}"
            return Line(ERROR, text, _row(event))
        case relay.Overtaken(key=key, position=position, by=by):
            text = f"the event at {by} was confirmed after an earlier one of its key was refused in the same window"
            return Line(ERROR, text, {"key": key, "position": position, "by": by})
        case relay.Missed(rows=rows, position=position):
            text = (
                f"a sweep found {rows} events, from position {position} on, that no fetch had returned (restored, "
                "replicated or repaired by hand); the outbox is read from the oldest one again"
            )
            return Line(WARNING, text, {"rows": rows, "position": position}, READABLE)
        case relay.Saturated(saturated=True, held=held):
            text = (
                f"{held} keys wait behind a refused event or a dead letter, and no more are kept in mind: nothing new "
                "is published, of any key, until some clear; `sagapost status` says what they wait for"
            )
            return Line(ERROR, text, {"held": held})
        case relay.Saturated(held=held):
            return Line(INFO, "held keys have cleared; publishing goes on", {"held": held})
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
