"""A relay of plain function calls around the real `Gate` and `Routes`: a table, a reader, a channel and an operator.

The glue between the stages mirrors `fetching`, `sending`, `policy` and `settlement`; what is asynchronous there is a
step here, so that a state machine can put any other step in between.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass
from enum import Enum, auto

from sagapost.core.outbox_store import OutboxRow, Partition, Position
from sagapost.outbox.relay.gate import Gate, _Key  # pyright: ignore[reportPrivateUsage] # overridden below
from sagapost.outbox.relay.routes import Routes
from sagapost.outbox.relay.settings import DeadLetterPolicy, Routing
from tests.relay.rows import make_row

__all__ = ["LIMIT", "PARTITIONS", "Answer", "Model", "Stored"]

PARTITIONS = 2
LIMIT = 100
"""What the broker takes: larger rows are refused."""
RETRY = 10.0
MAX_ATTEMPTS = 3


class Answer(Enum):
    """What the broker says to one message."""

    CONFIRMED = auto()
    REFUSED = auto()
    UNKNOWN = auto()


@dataclass(slots=True)
class Stored:
    """A row of the table, with what the database knows about it."""

    position: int
    key: str | None
    topic: str
    size: int
    inserted: int
    """When, on the model's counter of steps; its transaction may commit later."""
    committed: int | None = None
    attempts: int = 0
    due: float = 0.0
    rejections: int = 0
    """How often the broker still refuses it, whatever its route."""

    @property
    def partition(self) -> Partition:
        """The partition of its key."""
        return Partition((self.position if self.key is None else ord(self.key[0])) % PARTITIONS)


@dataclass(slots=True)
class _Page:
    rows: list[OutboxRow]
    caught_up: bool
    released: frozenset[str]
    missing: frozenset[Position]
    claims: frozenset[Partition]
    generation: int


@dataclass(slots=True)
class _Walk:
    """A generation on its way: what is left of it, in order."""

    positions: deque[int]


class WatchedGate(Gate):
    """Remembers what the gate thought of each row when it let it go."""

    def __init__(self, routes: Routes) -> None:
        super().__init__(routes)
        self.risky: dict[Position, bool] = {}

    def _start(self, key: _Key, row: OutboxRow, *, risky: bool) -> None:
        self.risky[row.position] = risky
        super()._start(key, row, risky=risky)


class Model:
    """Everything around the gate, and the bookkeeping that the checks need."""

    def __init__(self, *, serial: bool, policy: DeadLetterPolicy) -> None:
        self.now = 0.0
        self.step = 0
        self.policy = policy
        self.routes = Routes(Routing(), suspicion=30.0, serial=serial, monotonic=lambda: self.now)
        self.gate = WatchedGate(self.routes)
        self.gate.max_message_bytes = LIMIT
        # the database
        self.table: dict[int, Stored] = {}
        self.dead: dict[int, tuple[Stored, bool]] = {}
        """Position -> row, and whether it blocks its key."""
        self.next_position = 1
        # the broker
        self.bound: set[str] = set()
        self.channel: deque[list[OutboxRow]] = deque()
        self.unanswered: Counter[str] = Counter()
        # the reader
        self.seen: set[int] = set()
        self.walk: _Walk | None = None
        self.fresh = True
        self.passed: float = 0.0
        self.revisits: set[Position] = set()
        self.replays: dict[str, Position] = {}
        self.page: _Page | None = None
        # ownership
        self.owned: set[Partition] = {Partition(p) for p in range(PARTITIONS)}
        self.generation = 0
        self.reader_generation = 0
        # what happened
        self.to_settle: list[tuple[Partition, Position]] = []
        self.delivered: dict[int, int] = {}
        """Position -> step of the first delivery to a queue."""
        self.early: list[tuple[int, int]] = []
        """A row that was delivered before its cause, and the cause."""
        self.discarded: set[int] = set()
        self.skipped: set[int] = set()
        self.overtaken: set[tuple[str, int]] = set()
        self.stored: dict[int, Stored] = {}
        """Every row there ever was."""

    # --- writers ---

    def insert(self, key: str | None, topic: str, size: int, rejections: int) -> Stored:
        """Insert a row in a transaction that has not committed."""
        self.step += 1
        row = Stored(self.next_position, key, topic, size, inserted=self.step, rejections=rejections)
        self.next_position += 1
        return row

    def commit(self, row: Stored) -> None:
        """Make a row visible."""
        self.step += 1
        row.committed = self.step
        self.table[row.position] = row
        self.stored[row.position] = row

    # --- fetch stage ---

    def begin_fetch(self, max_rows: int) -> None:
        """Run the statement: the page is what was visible now, and arrives later."""
        gate = self.gate
        if self.reader_generation != self.generation:
            self.reader_generation = self.generation
            self.restart_reader()
            self.load_blocked()
        self.revisits.update(gate.due(self.now, self.passed))
        for key, above in gate.replaying().items():
            self.replays[key] = min(above, self.replays.get(key, above))
        gate.begin_fetch()
        claims = frozenset(self.owned)
        wanted, self.revisits = frozenset(self.revisits), set()
        rows = {p: self.table[p] for p in wanted if p in self.table and self.table[p].partition in claims}
        missing = frozenset(p for p in wanted if p not in self.table)
        released: frozenset[str] = frozenset()
        caught_up = False
        if self.walk is None:
            visible = {p for p in self.table if self.fresh or p not in self.seen}
            if self.replays and not self.fresh:
                released = frozenset(self.replays)
                visible |= {p for p, r in self.table.items() if r.key in self.replays and p > self.replays[r.key]}
                self.replays = {}
            self.fresh = False
            self.seen |= self.table.keys()
            self.walk = _Walk(deque(sorted(visible)))
        taken = 0
        while self.walk.positions and taken < max_rows:
            position = self.walk.positions.popleft()
            stored = self.table.get(position)
            if stored is not None and stored.partition in claims:
                rows[Position(position)] = stored
                taken += 1
        if not self.walk.positions:
            self.walk = None
            caught_up = True
        loaded = [self._load(rows[p]) for p in sorted(rows)]
        self.page = _Page(loaded, caught_up, released, missing, claims, self.generation)

    def end_fetch(self) -> None:
        """The page arrives."""
        page, self.page = self.page, None
        assert page is not None
        if page.generation != self.generation:
            # Read for partitions that changed hands meanwhile: all of it comes again.
            return
        self.gate.replayed(page.released)
        if page.caught_up:
            self.passed = math.inf
        elif page.rows:
            self.passed = max(self.passed, page.rows[-1].position)
        self.gate.admit(page.rows, self.owned, self.now)
        self.gate.gone(page.missing)
        dropped, self.gate.dropped_for_policy = self.gate.dropped_for_policy, set()
        if dropped and self.policy == "park":
            self.load_blocked()
            for key in {key for key, _ in dropped} & self.gate.blocked_keys():
                self._bury_followers(key)

    def restart_reader(self) -> None:
        """Forget the cursor."""
        self.fresh, self.walk, self.page, self.passed = True, None, None, 0.0
        self.seen.clear()
        self.revisits.clear()
        self.replays.clear()
        self.gate.restarted()

    def _load(self, stored: Stored) -> OutboxRow:
        return make_row(
            stored.position,
            key=stored.key,
            topic=stored.topic,
            partition=stored.partition,
            size=stored.size,
            attempts=stored.attempts,
            retry_in=stored.due - self.now if stored.attempts else 0.0,
        )

    # --- send and confirm stages ---

    def send(self, limit: int) -> list[OutboxRow]:
        """Write a batch to the channel."""
        rows = self.gate.take_ready(limit)
        if rows:
            self.channel.append(rows)
        return rows

    def answer(self, unknown_from: int | None = None) -> None:
        """The broker answers the oldest batch; the relay is told. What is unknown ends the connection."""
        rows = self.channel.popleft()
        confirmed: list[OutboxRow] = []
        refused: list[OutboxRow] = []
        for place, row in enumerate(rows):
            match self._take_in(row, lost=unknown_from is not None and place >= unknown_from):
                case Answer.CONFIRMED:
                    confirmed.append(row)
                case Answer.REFUSED:
                    refused.append(row)
                case Answer.UNKNOWN:
                    pass
        for row in confirmed:
            self.routes.confirmed(row)
        self.gate.confirmed(confirmed)
        for row, _hold in self.gate.overtaken:
            assert row.event.partitionkey is not None
            self.overtaken.add((row.event.partitionkey, int(row.position)))
        self.gate.overtaken.clear()
        self.to_settle += [(row.partition, row.position) for row in confirmed]
        self._refuse(refused)

    def _take_in(self, row: OutboxRow, *, lost: bool) -> Answer:
        stored = self.stored[row.position]
        if row.topic not in self.bound or len(row.event.data) > LIMIT:
            return Answer.UNKNOWN if lost else Answer.REFUSED
        if stored.rejections:
            stored.rejections -= 1
            return Answer.UNKNOWN if lost else Answer.REFUSED
        self.step += 1
        if row.position not in self.delivered:
            self.delivered[row.position] = self.step
            self.early += [(row.position, cause) for cause in self._causes(stored) if cause not in self.delivered]
        return Answer.UNKNOWN if lost else Answer.CONFIRMED

    def _causes(self, row: Stored) -> list[int]:
        """Rows of its key that were committed before it was inserted and that nobody has given up."""
        if row.key is None:
            return []
        return [
            other.position
            for other in self.stored.values()
            if other.key == row.key
            and other.committed is not None
            and other.committed < row.inserted
            and other.position not in self.discarded | self.skipped
        ]

    def _refuse(self, refused: list[OutboxRow]) -> None:
        for row in refused:
            self.routes.refused(row)
            if row.partition not in self.owned:
                self.gate.abandon(row)
                continue
            attempts = row.attempts + 1
            due = self.now + RETRY
            if not self.gate.refused(row, attempts=attempts, due=due):
                continue
            stored = self.table.get(row.position)
            if attempts < MAX_ATTEMPTS:
                if stored is not None:
                    stored.attempts, stored.due = attempts, due
            else:
                self._bury(row)

    def _bury(self, row: OutboxRow) -> None:
        stored = self.table.pop(row.position, None)
        if stored is not None:
            blocks = self.policy != "skip" and stored.key is not None
            self.dead[row.position] = (stored, blocks)
            if not blocks:
                self.skipped.add(row.position)
        key = row.event.partitionkey
        if key is None:
            self.gate.release(row.position)
        elif self.policy == "skip":
            self.gate.release(key)
        else:
            self.gate.block(key, row.partition, row.position)
            if self.policy == "park":
                self._bury_followers(key)

    def _bury_followers(self, key: str) -> None:
        heads = [p for p, (row, blocks) in self.dead.items() if blocks and row.key == key]
        if not heads:
            return
        for position in [p for p, row in self.table.items() if row.key == key and p > min(heads)]:
            self.dead[position] = (self.table.pop(position), True)

    def settle(self) -> None:
        """Delete what is confirmed."""
        pending, self.to_settle = self.to_settle, []
        for partition, position in pending:
            if partition in self.owned:
                self.table.pop(position, None)
            self.gate.settled(partition, [position])

    def new_connection(self) -> None:
        """The cycle ends, after the answers that arrived were taken in, and the next begins."""
        self.channel.clear()
        self.gate.forget_unconfirmed()
        self.gate.restarted()
        self.routes.reset()
        self.restart_reader()
        self.load_blocked()

    # --- policy and operator ---

    def load_blocked(self) -> None:
        """See `Refusals.load_blocked`."""
        blocked: dict[str, int] = {}
        for position, (row, blocks) in self.dead.items():
            if blocks and row.key is not None and row.partition in self.owned:
                blocked[row.key] = min(position, blocked.get(row.key, position))
        for key in self.gate.blocked_keys() - blocked.keys():
            self.gate.release(key)
        for key, position in blocked.items():
            self.gate.block(key, self.stored[position].partition, Position(position))

    def redrive(self, key: str | None) -> None:
        """All dead rows of a key go back, at their old positions."""
        for position, (row, _) in [(p, d) for p, d in self.dead.items() if d[0].key == key]:
            del self.dead[position]
            row.attempts, row.due, row.rejections, row.size = 0, 0.0, 0, 10
            self.table[position] = row
            self.skipped.discard(position)
            # It is a new transaction that makes it visible, so the next generation returns it.
            self.seen.discard(position)

    def discard(self, key: str | None) -> None:
        """An operator gives the dead rows of a key up."""
        for position in [p for p, d in self.dead.items() if d[0].key == key]:
            del self.dead[position]
            self.discarded.add(position)

    def take_away(self, position: int) -> None:
        """An operator deletes a row by hand."""
        del self.table[position]
        self.discarded.add(position)

    # --- ownership ---

    def lose(self, partition: Partition) -> None:
        """Another relay owns the partition from now on, or it is being handed over."""
        self.owned.discard(partition)
        self.gate.forget_partitions({partition})

    def gain(self, partition: Partition) -> None:
        """The partition is ours (again)."""
        self.owned.add(partition)
        self.generation += 1
