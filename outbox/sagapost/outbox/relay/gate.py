"""Which fetched row may be sent now: order per key, held keys, and the bound on what is in flight.

Pure bookkeeping, no I/O: the fetch stage admits rows, the send stage takes those that are ready, the confirm stage
reports outcomes, the settle stage reports deletions. All run in one event loop, so no locks.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from sagapost.core.outbox_store import OutboxRow, Partition, Position
from sagapost.outbox.relay.routes import Route, Routes

__all__ = ["Gate", "Hold", "HoldState"]

_MAX_UNROUTABLE = 10_000
"""Routes that are remembered to have no listener. Forgetting one means that what waits for it goes at its own time."""


class HoldState(Enum):
    """Where a held key stands."""

    WAITING = auto()
    """Until the retry is due."""
    PROBING = auto()
    """The refused row is being tried again, alone."""
    BLOCKED = auto()
    """Behind a dead letter, until an operator decides."""
    REPLAYING = auto()
    """Released: its rows come again, in order, from a later fetch on; until then rows of the key are ignored."""


@dataclass(slots=True)
class Hold:
    """A key (or a single row without a key) that waits."""

    position: Position
    partition: Partition
    state: HoldState
    attempts: int
    due: float
    """On the relay's monotonic clock."""
    dropped_from: Position | None = None
    """Rows of the key from this position on were seen and dropped from memory; they must be fetched again."""
    no_listener: Route | None = None
    """Where the row would go, if it was refused because nobody listens there."""
    found_listener: bool = False
    """Somebody does now, as was seen while the refusal was being written down."""

    @property
    def above(self) -> Position:
        """No row at or below this position waits for anything but, if it is the head, its own retry."""
        return self.position if self.dropped_from is None else min(self.position, Position(self.dropped_from - 1))

    def drop(self, position: Position | None) -> None:
        """Note that a row of the key was dropped from memory. It may lie before the head: it committed late."""
        if position is not None:
            self.dropped_from = position if self.dropped_from is None else min(self.dropped_from, position)


@dataclass(slots=True)
class _Key:
    """A key with rows in flight."""

    in_flight: int = 0
    serial: bool = False
    """A row on a route that is not proven is in flight: nothing of this key may follow it yet."""
    waiting: deque[OutboxRow] = field(default_factory=deque[OutboxRow])


class Gate:
    """Order and bounds of the rows a relay has in its hands.

    A row is *in flight* from `admit` until it is settled, forgotten or held. A row is *ready* when it may be sent.
    """

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._flight: dict[Position, Partition] = {}
        self._per_partition: Counter[Partition] = Counter()
        self._bytes = 0
        self._keys: dict[str, _Key] = {}
        self._holds: dict[str | Position, Hold] = {}
        self._ready: deque[OutboxRow] = deque()
        self._confirmed: set[Position] = set()
        self._recently_settled: set[Position] = set()
        self._next_due: float | None = None
        self._unroutable: set[Route] = set()
        """Routes on which a row has found no listener."""
        self.overtaken: list[tuple[OutboxRow, Hold]] = []
        """Rows confirmed after an earlier one of their key was refused in the same window, until reported."""
        self.max_message_bytes: int | None = None
        """What the broker takes; a larger row is about to be refused, so nothing of its key may follow it."""
        self.dropped_for_policy: set[tuple[str, Partition]] = set()
        """Blocked keys of which a later row was seen since last looked at (policy `park` moves them)."""

    # --- figures ---

    @property
    def in_flight(self) -> int:
        """Rows in flight."""
        return len(self._flight)

    @property
    def in_flight_bytes(self) -> int:
        """Bytes of data of the rows not yet confirmed."""
        return self._bytes

    @property
    def held(self) -> int:
        """Keys (and single rows) that wait."""
        return len(self._holds)

    @property
    def has_ready(self) -> bool:
        """Whether a row may be sent."""
        return bool(self._ready)

    def in_partition(self, partition: Partition) -> int:
        """Return the number of rows of a partition in flight."""
        return self._per_partition[partition]

    def knows(self, position: Position, key: str | None) -> bool:
        """Return whether a row is in flight, or waits behind a hold or a dead letter of its key."""
        if position in self._flight or position in self._recently_settled:
            return True
        return (position if key is None else key) in self._holds

    # --- fetch stage ---

    def begin_fetch(self) -> None:
        """Note which rows get settled from now on.

        A page read before a row was deleted may arrive after: such rows must not be sent again.
        """
        self._recently_settled.clear()

    def admit(self, rows: Sequence[OutboxRow], owned: Collection[Partition], now: float) -> None:
        """Take fetched rows, in position order; each is made ready, queued behind its key, or dropped for later."""
        flight, holds, recent, per_partition = self._flight, self._holds, self._recently_settled, self._per_partition
        largest = self.max_message_bytes
        topic, type_, proven = "", "", False
        for row in rows:
            position, partition = row.position, row.partition
            if position in flight or position in recent or partition not in owned:
                continue
            if holds and not self._passes_hold(row, now):
                continue
            if row.attempts and row.retry_in > 0 and not self._is_probe(row):
                self._hold(row, HoldState.WAITING, row.attempts, now + row.retry_in)
                continue
            event = row.event
            size = len(event.data)
            flight[position] = partition
            per_partition[partition] += 1
            self._bytes += size
            name = event.partitionkey
            if name is None:
                self._ready.append(row)
                continue
            if row.topic != topic or event.type != type_:
                # Nothing is confirmed or refused while this runs, so one look per run of rows of a route will do.
                topic, type_ = row.topic, event.type
                proven = self._routes.proven(row)
            risky = (
                not proven
                or row.attempts > 0
                or (largest is not None and size > largest)
                or row.unreadable is not None
            )
            key = self._keys.get(name)
            if key is None:
                key = self._keys[name] = _Key()
            elif key.waiting or key.serial or (risky and key.in_flight):
                key.waiting.append(row)
                continue
            self._start(key, row, risky=risky)

    def _passes_hold(self, row: OutboxRow, now: float) -> bool:
        """Return whether no hold stands in the way of this row; a due head becomes the probe of its key."""
        name = _name(row)
        hold = self._holds.get(name)
        if hold is None:
            return True
        if hold.position == row.position and hold.state in {HoldState.WAITING, HoldState.PROBING}:
            if hold.due > now:
                return False
            hold.state = HoldState.PROBING
            return True
        if hold.state is HoldState.BLOCKED:
            if isinstance(name, str):
                self.dropped_for_policy.add((name, row.partition))
        elif row.position <= hold.above:
            # It lies before the head and before all that was dropped, so it follows none of them.
            return True
        hold.drop(row.position)
        return False

    def _is_probe(self, row: OutboxRow) -> bool:
        hold = self._holds.get(_name(row))
        return hold is not None and hold.state is HoldState.PROBING

    def _start(self, key: _Key, row: OutboxRow, *, risky: bool) -> None:
        key.in_flight += 1
        if risky:
            key.serial = True
        self._ready.append(row)

    def _may_be_refused(self, row: OutboxRow) -> bool:
        """Whether nothing of the row's key may follow it before its answer."""
        return (
            row.attempts > 0
            or row.unreadable is not None
            or not self._routes.proven(row)
            or (self.max_message_bytes is not None and len(row.event.data) > self.max_message_bytes)
        )

    # --- send stage ---

    def take_ready(self, limit: int) -> list[OutboxRow]:
        """Take up to `limit` rows to send, in order."""
        ready = self._ready
        if self._holds:
            return self._take_unheld(limit)
        if len(ready) <= limit:
            taken = list(ready)
            ready.clear()
            return taken
        return [ready.popleft() for _ in range(limit)]

    def _take_unheld(self, limit: int) -> list[OutboxRow]:
        """As `take_ready`, without rows whose key was held after they became ready."""
        ready, taken = self._ready, list[OutboxRow]()
        while ready and len(taken) < limit:
            row = ready.popleft()
            name = row.event.partitionkey
            hold = self._holds.get(name) if name is not None else None
            if name is None or hold is None or (row.position <= hold.above and hold.state is not HoldState.BLOCKED):
                taken.append(row)
                continue
            if row.position == hold.position and hold.state is HoldState.PROBING:
                taken.append(row)
                continue
            hold.drop(row.position)
            self._forget(row)
            key = self._keys[name]
            key.in_flight -= 1
            if not key.in_flight:
                self._key_drained(name, key)
        return taken

    # --- confirm stage ---

    def confirmed(self, rows: Iterable[OutboxRow]) -> list[tuple[OutboxRow, Hold]]:
        """Note rows as published; return those that were held, with their hold, which now ends."""
        freed: list[tuple[OutboxRow, Hold]] = []
        holds, keys = self._holds, self._keys
        for row in rows:
            self._bytes -= len(row.event.data)
            self._confirmed.add(row.position)
            if holds:
                name = _name(row)
                hold = holds.get(name)
                if hold is not None and hold.position == row.position:
                    freed.append((row, hold))
                    self._end_hold(name, hold)
                elif hold is not None and hold.position < row.position:
                    self.overtaken.append((row, hold))
            key_name = row.event.partitionkey
            key = keys.get(key_name) if key_name is not None else None
            if key_name is not None and key is not None:
                key.in_flight -= 1
                if not key.in_flight:
                    self._key_drained(key_name, key)
        return freed

    def refused(self, row: OutboxRow, *, attempts: int, due: float, unroutable: bool = False) -> bool:
        """Hold the row's key; return False if it was already held by an earlier row (this one merely followed it).

        :param unroutable: nobody listens to it.
        """
        self._leave_flight(row)
        name = _name(row)
        hold = self._holds.get(name)
        if hold is not None and (hold.state is HoldState.BLOCKED or hold.position < row.position):
            hold.drop(row.position)
            self._drop_waiting(name, hold)
            return False
        hold = self._hold(row, HoldState.WAITING, attempts, due)
        if unroutable:
            if len(self._unroutable) >= _MAX_UNROUTABLE:
                self._unroutable.clear()
            hold.no_listener = self._routes.route_of(row)
            self._unroutable.add(hold.no_listener)
        return True

    def retry_at(self, row: OutboxRow, due: float) -> None:
        """Say when a refused row is tried again: at once if it has found a listener meanwhile."""
        hold = self._holds.get(_name(row))
        if hold is not None and hold.position == row.position and hold.state is HoldState.WAITING:
            self._set_due(hold, -math.inf if hold.found_listener else due)

    def listened_to(self, row: OutboxRow, now: float) -> bool:
        """A row has found a listener: let go what waits for one on the same route; return whether there may be any."""
        if not self._unroutable or (route := self._routes.route_of(row)) not in self._unroutable:
            return False
        self._unroutable.discard(route)
        for hold in self._holds.values():
            if hold.no_listener != route or hold.state is not HoldState.WAITING:
                continue
            if hold.due == math.inf:
                # Not on record yet: `retry_at` follows.
                hold.found_listener = True
            else:
                self._set_due(hold, now)
        return True

    def _set_due(self, hold: Hold, due: float) -> None:
        hold.due = due
        self._next_due = due if self._next_due is None else min(self._next_due, due)

    def abandon(self, row: OutboxRow) -> None:
        """A refused row of a partition that is being given up: its next owner decides."""
        self._leave_flight(row, wake=False)

    def block(self, name: str, partition: Partition, position: Position) -> None:
        """Hold a key behind a dead letter."""
        hold = self._holds.get(name)
        # One below the dead row: a redriven row comes back at its old position and is then the first to be replayed.
        blocked = Hold(Position(position - 1), partition, HoldState.BLOCKED, 0, 0.0)
        if hold is not None:
            blocked.drop(hold.dropped_from)
            if hold.state is not HoldState.BLOCKED and hold.position != position:
                blocked.drop(hold.position)
        self._holds[name] = blocked
        self._drop_waiting(name, blocked)

    def release(self, name: str | Position) -> Hold | None:
        """End a hold without its row having been published (gone, dead and skipped, or unblocked)."""
        hold = self._holds.get(name)
        if hold is not None:
            self._end_hold(name, hold)
        return hold

    def _end_hold(self, name: str | Position, hold: Hold) -> None:
        if hold.dropped_from is not None and isinstance(name, str):
            # Their rows are no longer in memory: ignore the key until they come again, in order.
            hold.state = HoldState.REPLAYING
        else:
            del self._holds[name]

    def replayed(self, names: Iterable[str]) -> None:
        """The rows of these keys come again from this page on."""
        for name in names:
            hold = self._holds.get(name)
            if hold is not None and hold.state is HoldState.REPLAYING:
                del self._holds[name]

    def replaying(self) -> dict[str, Position]:
        """Return the keys whose rows must be fetched again, each above the given position."""
        return {
            name: hold.above
            for name, hold in self._holds.items()
            if isinstance(name, str) and hold.state is HoldState.REPLAYING
        }

    def due(self, now: float, passed: float) -> list[Position]:
        """Return the held rows whose retry is due; they count as asked for.

        :param passed: how far the reader has come since it last started over. A row beyond it comes by itself, in
            order; asked for now, it might overtake rows of its key that are read again before it.
        """
        if self._next_due is None or now < self._next_due:
            return []
        positions: list[Position] = []
        for hold in self._holds.values():
            if hold.state is HoldState.WAITING and hold.due <= now and hold.position <= passed:
                hold.state = HoldState.PROBING
                positions.append(hold.position)
        self._find_next_due()
        return positions

    @property
    def next_due(self) -> float | None:
        """When the next retry is due, on the monotonic clock; a lower bound."""
        return self._next_due

    def _find_next_due(self) -> None:
        waiting = [hold.due for hold in self._holds.values() if hold.state is HoldState.WAITING]
        self._next_due = min(waiting, default=None)

    def gone(self, positions: Collection[Position]) -> list[tuple[str | Position, Hold]]:
        """Held rows that no longer exist: end their holds; return them."""
        ended = [
            (name, hold)
            for name, hold in self._holds.items()
            if hold.state is HoldState.PROBING and hold.position in positions
        ]
        for name, hold in ended:
            self._end_hold(name, hold)
        return ended

    def blocked_keys(self) -> frozenset[str]:
        """Return the keys behind a dead letter."""
        return frozenset(
            name for name, hold in self._holds.items() if isinstance(name, str) and hold.state is HoldState.BLOCKED
        )

    # --- settle stage ---

    def settled(self, partition: Partition, positions: Iterable[Position]) -> None:
        """Rows were deleted, or belong to another relay now: they are no longer in flight."""
        for position in positions:
            if self._flight.pop(position, None) is not None:
                self._per_partition[partition] -= 1
                self._confirmed.discard(position)
                self._recently_settled.add(position)

    # --- faults and hand-over ---

    def forget_unconfirmed(self) -> None:
        """Drop every row the broker has not confirmed; they are fetched again. Holds stay."""
        self._keys.clear()
        self._ready.clear()
        self._bytes = 0
        confirmed = self._confirmed
        self._flight = {position: p for position, p in self._flight.items() if position in confirmed}
        self._per_partition = Counter(self._flight.values())
        for hold in self._holds.values():
            if hold.state is HoldState.PROBING:
                hold.state = HoldState.WAITING
        self._find_next_due()

    def restarted(self) -> None:
        """The reader starts over: refused rows come again like all others, and hold their keys by what they say.

        Kept are the keys behind dead letters, which are not in the outbox, and those whose probe is on its way.
        """
        self._holds = {
            name: hold
            for name, hold in self._holds.items()
            if hold.state is HoldState.BLOCKED or (hold.state is HoldState.PROBING and hold.position in self._flight)
        }
        self._find_next_due()

    def forget_partitions(self, partitions: Collection[Partition]) -> None:
        """Drop what is not sent yet of partitions that are being given up, and their holds."""
        for name, hold in list(self._holds.items()):
            if hold.partition in partitions:
                del self._holds[name]
        kept: deque[OutboxRow] = deque()
        for row in self._ready:
            if row.partition in partitions:
                self._leave_flight(row, wake=False)
            else:
                kept.append(row)
        self._ready = kept
        for name, key in list(self._keys.items()):
            if key.waiting and key.waiting[0].partition in partitions:
                self._drop_waiting(name, None)

    # --- inside ---

    def _hold(self, row: OutboxRow, state: HoldState, attempts: int, due: float) -> Hold:
        name = _name(row)
        former = self._holds.get(name)
        hold = self._holds[name] = Hold(row.position, row.partition, state, attempts, due)
        if former is not None:
            hold.drop(former.dropped_from)
            if former.position != hold.position:
                hold.drop(former.position)
        self._drop_waiting(name, hold)
        self._set_due(hold, due)
        return hold

    def _drop_waiting(self, name: str | Position, hold: Hold | None) -> None:
        """Forget rows that wait behind a key; its hold, if there is one, remembers to fetch them again."""
        key = self._keys.get(name) if isinstance(name, str) else None
        if key is None or not isinstance(name, str):
            return
        while key.waiting:
            row = key.waiting.pop()
            self._forget(row)
            if hold is None:
                continue
            if row.position != hold.position:
                hold.drop(row.position)
            elif hold.state is HoldState.PROBING:
                # The probe itself waited behind rows that were on their way when its key was held.
                hold.state = HoldState.WAITING
                self._set_due(hold, hold.due)
        if not key.in_flight:
            del self._keys[name]

    def _forget(self, row: OutboxRow) -> None:
        if self._flight.pop(row.position, None) is not None:
            self._per_partition[row.partition] -= 1
            self._bytes -= len(row.event.data)

    def _leave_flight(self, row: OutboxRow, *, wake: bool = True) -> None:
        """The row was sent (or was to be) and is not published."""
        self._forget(row)
        name = row.event.partitionkey
        key = self._keys.get(name) if name is not None else None
        if name is not None and key is not None:
            key.in_flight -= 1
            if not key.in_flight:
                if wake and not key.waiting:
                    del self._keys[name]
                elif not wake:
                    self._drop_waiting(name, None)
                    self._keys.pop(name, None)

    def _key_drained(self, name: str, key: _Key) -> None:
        """No row of the key is in flight: let the next ones go."""
        key.serial = False
        while key.waiting:
            row = key.waiting[0]
            risky = self._may_be_refused(row)
            if key.in_flight and (key.serial or risky):
                return
            key.waiting.popleft()
            self._start(key, row, risky=risky)
        if not key.in_flight:
            del self._keys[name]


def _name(row: OutboxRow) -> str | Position:
    """What is held when the row is refused: its key, or the row alone if it has none."""
    key = row.event.partitionkey
    return row.position if key is None else key
