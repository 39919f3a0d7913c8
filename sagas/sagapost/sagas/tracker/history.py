"""A saga's history as a set: merging is the same in any order and any number of times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sagapost.sagas.tracker.entries import Entry

__all__ = ["History", "causal_order"]


@dataclass(frozen=True, slots=True)
class History:
    """The newest events of a saga, oldest first by the clocks of who said them.

    The union of sets is commutative, associative and idempotent, and so is taking the newest of it: what a history
    holds depends on which events arrived, never on their order or on how often.
    """

    entries: tuple[Entry, ...] = ()
    started: int | None = None
    """Time of the first event, also when it is no longer kept."""
    truncated: bool = False
    """There were more events than are kept."""

    def merge(self, new: Iterable[Entry], *, limit: int) -> History:
        """Return the history with these events; the same object if all of them are known.

        :param limit: the newest so many are kept.
        """
        known = {(entry.source, entry.id): entry for entry in self.entries}
        before = len(known)
        for entry in new:
            known.setdefault((entry.source, entry.id), entry)
        if len(known) == before:
            return self
        entries = sorted(known.values(), key=_age)
        started = entries[0].at if self.started is None else min(self.started, entries[0].at)
        kept = tuple(entries[-limit:])
        if kept == self.entries and started == self.started and self.truncated:
            return self  # what was dropped before has come again
        return History(kept, started, self.truncated or len(entries) > limit)


def _age(entry: Entry) -> tuple[int, str, str]:
    return (entry.at, entry.id, entry.source)


def causal_order(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries by time, but none before its cause: the clocks of two services may disagree."""
    by_id = {entry.id: entry for entry in entries}
    # A cause comes earlier in the list of almost every history, and then there is nothing to do.
    seen: set[str] = set()
    for entry in entries:
        if entry.cause is not None and entry.cause in by_id and entry.cause not in seen:
            return _sorted_by_cause(entries, by_id)
        seen.add(entry.id)
    return list(entries)


def _sorted_by_cause(entries: Sequence[Entry], by_id: dict[str, Entry]) -> list[Entry]:
    waiting: dict[str, list[Entry]] = {}
    ordered: list[Entry] = []
    placed: set[str] = set()

    def place(entry: Entry) -> None:
        stack = [entry]
        while stack:
            each = stack.pop()
            ordered.append(each)
            placed.add(each.id)
            stack += reversed(waiting.pop(each.id, []))

    for entry in entries:
        if entry.cause is not None and entry.cause in by_id and entry.cause not in placed:
            waiting.setdefault(entry.cause, []).append(entry)
        else:
            place(entry)
    # Causes that go in a circle: nobody's library makes them, another producer's may.
    for rest in waiting.values():
        ordered += rest
    return ordered
