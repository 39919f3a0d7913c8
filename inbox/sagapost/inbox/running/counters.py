"""Figures of one consumer, counted from what it tells its observers."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sagapost.core.observer import Observation, Observer
from sagapost.inbox.declared import observations as obs

__all__ = ["ConsumerStatistics", "Counters"]

_log = logging.getLogger("sagapost.inbox")


@dataclass(slots=True)
class ConsumerStatistics:
    """Totals since the consumer was made."""

    received: int = 0
    handled: int = 0
    business_failures: int = 0
    duplicates: int = 0
    ignored: int = 0
    failed_tries: int = 0
    parked_waiting: int = 0
    """Times a message was parked for another round, or behind another."""
    parked_dead: int = 0
    acknowledged: int = 0
    pruned_keys: int = 0
    handling_seconds: float = 0.0
    """Sum of the times of the committed transactions; by `handled` it is the mean latency."""
    lag_seconds: float = 0.0
    """Age of the event that was committed last."""
    in_hand: int = 0
    """Received and not yet settled, now."""
    bytes_in_hand: int = 0


class Counters:
    """Counts, and passes everything on."""

    def __init__(self, observer: Observer) -> None:
        self._pass_on = observer.notify
        self.totals = ConsumerStatistics()

    def notify(self, event: Observation, /) -> None:
        """Count `event` and pass it on."""
        totals = self.totals
        match event:
            case obs.Received():
                totals.received += 1
            case obs.Handled():
                totals.handled += 1
                totals.business_failures += event.failure is not None
                totals.handling_seconds += event.seconds
                totals.lag_seconds = event.lag_seconds
            case obs.Acknowledged():
                totals.acknowledged += event.messages
            case obs.GroupHandled():
                totals.handled += sum(event.types.values())
                totals.duplicates += event.duplicates
                totals.handling_seconds += event.seconds
                totals.lag_seconds = event.lag_seconds
            case obs.Duplicate():
                totals.duplicates += 1
            case obs.Screened():
                totals.duplicates += event.duplicates
            case obs.HandlerFailed():
                totals.failed_tries += 1
            case obs.Parked(state="dead"):
                totals.parked_dead += 1
            case obs.Parked():
                totals.parked_waiting += 1
            case obs.Ignored():
                totals.ignored += 1
            case obs.PrunedKeys():
                totals.pruned_keys += event.rows
            case _:
                # Starts, losses and the like have no figure here.
                ...
        try:
            self._pass_on(event)
        except BaseException:  # nothing is awaited here: whatever it is, it is the observer's
            _log.exception("an observer failed on %s; the work goes on", type(event).__name__)
