"""What arrives, as the fold takes it; of an event that cannot be taken, or not whole, what and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import msgspec

from sagapost.core.envelope import Event
from sagapost.sagas.tracker.business_keys import Keys
from sagapost.sagas.tracker.entries import Entry, entry_of, saga_of
from sagapost.sagas.tracker.lifecycle import clean, detail_of, lifecycle_of
from sagapost.sagas.tracker.observations import PassedOver, PassedOverPart

__all__ = ["Arrival", "TrackerIntake", "Reader", "halves", "reason_of"]

T = TypeVar("T")


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """One event on its way into the history of its saga."""

    saga: str
    entry: Entry
    time: datetime
    keys: frozenset[tuple[str, str]]
    """Business keys as (name, value)."""

    def left_out(self, reason: str) -> PassedOver:
        """Return the report that it could not be folded."""
        return PassedOver(self.entry.id, self.entry.type, self.saga, "event", reason)


@dataclass(slots=True)
class TrackerIntake:
    """What a batch of events brings."""

    arrivals: list[Arrival] = field(default_factory=list[Arrival])
    passed_over: list[PassedOver] = field(default_factory=list[PassedOver])


class Reader:
    """Reads events for a fold.

    Never raises for what stands in an event, whoever made it: one event that cannot be read must not hold up the
    others of its batch.
    """

    def __init__(self, keys: Keys, starts: frozenset[str]) -> None:
        self._keys = keys
        self._starts = starts

    def read(self, events: Iterable[Event]) -> TrackerIntake:
        """Return what the events bring; those that are no part of a saga bring nothing."""
        intake = TrackerIntake()
        for event in events:
            try:
                self._read(event, intake)
            except Exception as error:  # whatever is wrong with it concerns this event alone
                self._pass_over(intake, event, "event", reason_of(error))
        return intake

    def _read(self, event: Event, intake: TrackerIntake) -> None:
        saga = saga_of(event, self._starts)
        if saga is None:
            return
        entry = entry_of(event)
        if entry.detail is not None:
            entry = self._with_detail(entry, event, intake)
        keys, flaws = self._keys.of(event, saga)
        for flaw in flaws:
            self._pass_over(intake, event, "key", flaw)
        intake.arrivals.append(Arrival(saga, entry, event.time, frozenset(keys)))

    def _with_detail(self, entry: Entry, event: Event, intake: TrackerIntake) -> Entry:
        """Return the entry of a lifecycle event with its data, as far as that can be read."""
        try:
            detail = detail_of(event.data)
        except (ValueError, RecursionError) as error:
            # Somebody else's use of the name: the event is part of the history all the same.
            self._pass_over(intake, event, "data", reason_of(error))
            return entry
        try:
            lifecycle_of(entry.type, detail)
        except msgspec.ValidationError as error:
            # Kept as it is: a release that knows this shape reads it when it derives the saga anew.
            self._pass_over(intake, event, "data", reason_of(error))
        return msgspec.structs.replace(entry, detail=detail)

    def _pass_over(self, intake: TrackerIntake, event: Event, part: PassedOverPart, reason: str) -> None:
        report = PassedOver(_shown(event.id), _shown(event.type), _shown(event.correlationid), part, reason)
        intake.passed_over.append(report)


def reason_of(error: Exception) -> str:
    """Return what went wrong in a line that any log can hold."""
    return clean(f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error))


def _shown(value: object) -> str | None:
    return None if value is None else clean(str(value))[:255]


def halves(batch: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Split a batch of more than one, to find what in it cannot be folded."""
    middle = len(batch) // 2
    return batch[:middle], batch[middle:]
