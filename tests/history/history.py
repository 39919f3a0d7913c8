"""The account of a run: what writers committed or rolled back, what a consumer saw, which faults there were.

    history = History()
    history.wrote(7, key="order-1", version=3, inserted=12.5)
    history.committed(7, at=12.6)                 # or rolled_back(7), or in_doubt(7) and later resolve({7})
    history.saw(7, at=12.9)
    report = history.judge()

Events are numbers, unique over the run. Times are seconds on one clock that all processes share (`time.monotonic` on
one machine). Order is judged causally, never by position or clock alone:

* by version: whoever takes a key's row lock and counts its version up knows what came before;
* by time: what was committed (and the writer had been told) before another event of its key was inserted, goes first.

Kept small enough for millions: a few words per event.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import Enum

import msgspec

__all__ = ["Cause", "History", "Reordering", "Report"]


class Cause(Enum):
    """Why an event was seen twice."""

    REDELIVERED = "redelivered by the broker"
    RELAY_KILLED = "a relay was killed"
    CONNECTION_LOST = "a connection was lost"
    SERVER_RESTARTED = "a server was restarted"
    UNEXPLAINED = "no fault explains it"


@dataclass(frozen=True, slots=True)
class Reordering:
    """Two events of a key that were seen the wrong way round."""

    key: str
    first: int
    """Must come first, and was seen later."""
    second: int


@dataclass(frozen=True, slots=True)
class Report:
    """The judgement."""

    committed: int
    rolled_back: int
    seen: int
    """Different events."""
    lost: tuple[int, ...]
    """Committed and never seen."""
    unexpected: tuple[int, ...]
    """Seen although rolled back, or never written."""
    reordered: tuple[Reordering, ...]
    """By their first sighting: what a consumer sees that drops duplicates."""
    duplicates: Counter[Cause] = field(default_factory=Counter[Cause])

    @property
    def clean(self) -> bool:
        """Nothing lost, invented or out of order; duplicates are part of at-least-once."""
        return not (self.lost or self.unexpected or self.reordered)

    def __str__(self) -> str:
        lines = [
            f"committed    {self.committed:>9,}",
            f"rolled back  {self.rolled_back:>9,}",
            f"seen         {self.seen:>9,}",
            f"lost         {len(self.lost):>9,}{_some(self.lost)}",
            f"unexpected   {len(self.unexpected):>9,}{_some(self.unexpected)}",
            f"reordered    {len(self.reordered):>9,}{_some(self.reordered)}",
            f"duplicates   {self.duplicates.total():>9,}",
        ]
        lines += [f"  {cause.value:<28} {count:>9,}" for cause, count in self.duplicates.most_common()]
        return "\n".join(lines)


def _some(what: Collection[object]) -> str:
    shown = ", ".join(str(each) for each, _ in zip(what, range(3), strict=False))
    return f"   {shown}{', ...' if len(what) > 3 else ''}" if what else ""


class _Written(msgspec.Struct, gc=False):
    key: str | None
    version: int
    inserted: float
    committed: float
    """Infinite until the writer was told; such an event is nobody's cause, since nobody knew of it."""
    there: bool
    """Whether it is in the database."""


_NO_VERSION = -1


class History:
    """The account of one run.

    :param explains: seconds after a fault in which duplicates are put down to it.
    """

    def __init__(self, *, explains: float = 30.0) -> None:
        self._explains = explains
        self._written: dict[int, _Written] = {}
        self._keys: dict[str, str] = {}
        self._doubtful: set[int] = set()
        self._rolled_back = 0
        # In the order of first sightings.
        self._order = array("q")
        self._first: dict[int, float] = {}
        self._again: list[tuple[int, float, bool]] = []
        self._fault_times: list[float] = []
        self._faults: list[Cause] = []

    # --- writers ---

    def wrote(self, event: int, *, key: str | None, inserted: float, version: int | None = None) -> None:
        """An event is about to be inserted, in a transaction that is open.

        :raises ValueError: if the number was used before; events could not be told apart.
        """
        if event in self._written:
            raise ValueError(f"event {event} was written before")
        if key is not None:
            key = self._keys.setdefault(key, key)
        self._written[event] = _Written(key, _NO_VERSION if version is None else version, inserted, math.inf, False)

    def committed(self, event: int, *, at: float) -> None:
        """The writer was told that its transaction committed."""
        written = self._written[event]
        written.committed, written.there = at, True
        self._doubtful.discard(event)

    def rolled_back(self, event: int) -> None:
        """Its transaction, or a savepoint around it, was rolled back."""
        self._rolled_back += 1
        self._doubtful.discard(event)

    def in_doubt(self, event: int) -> None:
        """The connection broke during the commit: only the database knows, see `resolve`."""
        self._doubtful.add(event)

    def resolve(self, there: Collection[int]) -> None:
        """Tell which of the events in doubt are in the database."""
        for event in self._doubtful:
            if event in there:
                self._written[event].there = True
            else:
                self._rolled_back += 1
        self._doubtful.clear()

    # --- the consumer ---

    def saw(self, event: int, *, at: float, redelivered: bool = False) -> bool:
        """The consumer saw an event; returns whether for the first time. `redelivered`: by the broker's own word."""
        if event in self._first:
            self._again.append((event, at, redelivered))
            return False
        self._first[event] = at
        self._order.append(event)
        return True

    @property
    def seen(self) -> int:
        """How many different events were seen."""
        return len(self._order)

    # --- faults ---

    def fault(self, cause: Cause, *, at: float) -> None:
        """Something was broken on purpose. In the order of time."""
        self._fault_times.append(at)
        self._faults.append(cause)

    # --- the judgement ---

    def judge(self) -> Report:
        """Compare what was seen with what was committed.

        :raises ValueError: if events are still in doubt.
        """
        if self._doubtful:
            raise ValueError(
                f"{len(self._doubtful)} events are in doubt: look them up in the database and resolve() them"
            )
        lost = [event for event, written in self._written.items() if written.there and event not in self._first]
        unexpected = [event for event in self._order if not self._is_there(event)]
        duplicates = Counter(self._cause(*again) for again in self._again)
        return Report(
            committed=sum(written.there for written in self._written.values()),
            rolled_back=self._rolled_back,
            seen=len(self._order),
            lost=tuple(lost),
            unexpected=tuple(unexpected),
            reordered=tuple(self._reordered()),
            duplicates=duplicates,
        )

    def _is_there(self, event: int) -> bool:
        written = self._written.get(event)
        return written is not None and written.there

    def _reordered(self) -> Iterator[Reordering]:
        """One pass: each event against the latest of its key that was seen before, by version and by insertion."""
        newest: dict[str, int] = {}
        latest: dict[str, int] = {}
        for event in self._order:
            written = self._written.get(event)
            if written is None or written.key is None or not written.there:
                continue
            key = written.key
            by_version, by_time = newest.get(key), latest.get(key)
            if by_version is not None and written.version != _NO_VERSION:
                ahead = self._written[by_version]
                if ahead.version > written.version:
                    yield Reordering(key, first=event, second=by_version)
                    continue
            if by_time is not None and written.committed < self._written[by_time].inserted:
                yield Reordering(key, first=event, second=by_time)
                continue
            if written.version != _NO_VERSION:
                newest[key] = event
            if by_time is None or written.inserted > self._written[by_time].inserted:
                latest[key] = event

    def _cause(self, event: int, at: float, redelivered: bool) -> Cause:
        if redelivered:
            return Cause.REDELIVERED
        # The latest fault before it, unless that was over long before the event was first seen.
        place = bisect_right(self._fault_times, at) - 1
        if place >= 0 and at - self._fault_times[place] <= self._explains:
            return self._faults[place]
        return Cause.UNEXPLAINED
