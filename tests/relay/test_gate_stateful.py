"""The gate under every order of events: a state machine plays the table, the broker, the operator and the database.

What it checks after every step, and once more after letting everything run to its end:

* the rows of a key reach the broker's queues in causal order: what was committed before another row was inserted goes
  first, or is dead, or was given up by an operator;
* two messages of a key are on their way together only over a route that delivers;
* figures are what they count, and nothing is left in them when all is done.
"""

# pyright: reportPrivateUsage=false
# The model looks into the gate to compare its figures with what they should count.

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from sagapost.core.outbox_store import OutboxRow, Partition
from tests.relay.gate_model import LIMIT, PARTITIONS, RETRY, Model, Stored

# Mostly one key and one topic: it is there that rows get into each other's way.
KEYS = st.sampled_from(["a", "a", "a", "b", None])
TOPICS = st.sampled_from(["t", "t", "u"])


class _GateMachine(RuleBasedStateMachine):
    """The rules that hold for every policy."""

    open_rows = Bundle("open_rows")
    policies = st.sampled_from(["block", "park", "skip"])
    serial = False
    refuses_at_will = False
    """The broker refuses single messages over routes that work: order then needs `serial_keys`."""

    @initialize(policy=policies, bound=st.sets(TOPICS))
    def start(self, policy: str, bound: set[str]) -> None:
        """A new relay."""
        assert policy in {"block", "park", "skip"}
        self.model = Model(serial=self.serial, policy=policy)  # type: ignore[arg-type] # one of the three literals
        self.model.bound = bound
        self.risky_in_flight: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()
        self.sent_as_risky: dict[int, bool] = {}

    # --- writers ---

    @rule(target=open_rows, key=KEYS, topic=TOPICS, large=st.booleans(), rejections=st.integers(0, 4))
    def begin(self, key: str | None, topic: str, large: bool, rejections: int) -> Stored:
        """A transaction inserts a row and stays open."""
        size = LIMIT + 1 if large else 10
        return self.model.insert(key, topic, size, rejections if self.refuses_at_will else 0)

    @rule(row=consumes(open_rows))
    def commit(self, row: Stored) -> None:
        """It commits, early or late."""
        self.model.commit(row)

    @rule(key=KEYS, rows=st.lists(st.tuples(TOPICS, st.booleans()), min_size=1, max_size=4))
    def write(self, key: str | None, rows: list[tuple[str, bool]]) -> None:
        """Transactions, one after the other, each write a row of a key and commit at once."""
        for topic, large in rows:
            self.model.commit(self.model.insert(key, topic, LIMIT + 1 if large else 10, 0))

    # --- the relay ---

    @precondition(lambda self: self.model.page is None)
    @rule(max_rows=st.integers(1, 4))
    def begin_fetch(self, max_rows: int) -> None:
        """The statement runs."""
        self.model.begin_fetch(max_rows)

    @precondition(lambda self: self.model.page is not None)
    @rule()
    def end_fetch(self) -> None:
        """Its page arrives."""
        self.model.end_fetch()

    @precondition(lambda self: self.model.page is None)
    @rule()
    def fetch(self) -> None:
        """A whole fetch at once."""
        self.model.begin_fetch(100)
        self.model.end_fetch()

    @precondition(lambda self: self.model.page is None)
    @rule()
    def fetch_and_send(self) -> None:
        """The usual cycle, up to the answer."""
        self.fetch()
        self.send(100)

    @precondition(lambda self: self.model.page is None)
    @rule()
    def cycle(self) -> None:
        """The usual cycle, to its end."""
        self.fetch_and_send()
        self.answer_all()
        self.model.settle()

    @rule(limit=st.integers(1, 3))
    def send(self, limit: int) -> None:
        """A batch goes out."""
        for row in self.model.send(limit):
            self._note_sent(row)

    def _note_sent(self, row: OutboxRow) -> None:
        key = row.event.partitionkey
        risky = False
        if key is not None:
            risky = self.model.gate.risky[row.position]
            assert risky or not (row.attempts or len(row.event.data) > LIMIT or self.serial)
            assert not self.risky_in_flight[key], f"row {row.position} of {key!r} follows one that may be refused"
            assert not (risky and self.in_flight[key]), f"risky row {row.position} of {key!r} follows another"
            self.in_flight[key] += 1
            self.risky_in_flight[key] += risky
        self.sent_as_risky[row.position] = risky

    def _note_answered(self, rows: list[OutboxRow]) -> None:
        for row in rows:
            key = row.event.partitionkey
            risky = self.sent_as_risky.pop(row.position)
            if key is not None:
                self.in_flight[key] -= 1
                self.risky_in_flight[key] -= risky

    @precondition(lambda self: self.model.channel)
    @rule()
    def answer(self) -> None:
        """The broker answers the oldest batch."""
        self._note_answered(self.model.channel[0])
        self.model.answer()

    @precondition(lambda self: self.model.channel)
    @rule()
    def answer_all(self) -> None:
        """The broker answers everything."""
        while self.model.channel:
            self.answer()

    @rule(survivors=st.integers(0, 3), unknown_from=st.integers(0, 3))
    def lose_connection(self, survivors: int, unknown_from: int) -> None:
        """The connection ends in the middle of an answer; what was taken in before is handled, the rest is unknown."""
        for _ in range(min(survivors, len(self.model.channel))):
            self.answer()
        if self.model.channel:
            self._note_answered(self.model.channel[0])
            self.model.answer(unknown_from)
        self._new_connection()

    def _new_connection(self) -> None:
        self.in_flight.clear()
        self.risky_in_flight.clear()
        self.sent_as_risky.clear()
        self.model.new_connection()

    @rule()
    def settle(self) -> None:
        """Confirmed rows are deleted."""
        self.model.settle()

    @rule(seconds=st.sampled_from([1.0, RETRY, 40.0]))
    def pass_time(self, seconds: float) -> None:
        """Time goes by."""
        self.model.now += seconds

    # --- the broker ---

    @rule(topic=TOPICS)
    def bind(self, topic: str) -> None:
        """A queue is bound."""
        self.model.bound.add(topic)

    @rule(topic=TOPICS)
    def unbind(self, topic: str) -> None:
        """A queue is gone; over a route that was proven within the same connection order is then not promised."""
        if not self.serial:
            self.lose_connection(survivors=9, unknown_from=9)
        self.model.bound.discard(topic)

    # --- the operator ---

    @precondition(lambda self: self.model.dead)
    @rule(data=st.data(), again=st.booleans())
    def decide(self, data: st.DataObject, again: bool) -> None:
        """Dead rows of a key are redriven or discarded."""
        key = data.draw(st.sampled_from(sorted({str(row.key) for row, _ in self.model.dead.values()})))
        chosen = None if key == "None" else key
        if again:
            self.model.redrive(chosen)
        else:
            self.model.discard(chosen)

    @precondition(lambda self: self.model.table)
    @rule(data=st.data())
    def delete_by_hand(self, data: st.DataObject) -> None:
        """An operator deletes a row of the outbox."""
        self.model.take_away(data.draw(st.sampled_from(sorted(self.model.table))))

    @rule()
    def look_at_dead_letters(self) -> None:
        """The relay looks whether an operator has cleared a key."""
        self.model.load_blocked()

    # --- ownership ---

    @rule(partition=st.integers(0, PARTITIONS - 1))
    def lose(self, partition: int) -> None:
        """A partition is lost, or is to be handed over."""
        if partition in self.model.owned:
            self.model.lose(Partition(partition))

    @precondition(lambda self: len(self.model.owned) < PARTITIONS)
    @rule()
    def gain(self) -> None:
        """What is missing comes (back)."""
        for partition in set(range(PARTITIONS)) - self.model.owned:
            self.model.gain(Partition(partition))

    @rule()
    def sweep(self) -> None:
        """The reader starts over, as it does from time to time."""
        self.model.restart_reader()

    # --- what must hold ---

    @invariant()
    def figures_are_right(self) -> None:
        """Counters equal what they count."""
        gate = self.model.gate
        flight = gate._flight
        assert gate.in_flight == len(flight)
        for partition in range(PARTITIONS):
            assert gate.in_partition(Partition(partition)) == Counter(flight.values())[Partition(partition)]
        unconfirmed = [p for p in flight if p not in gate._confirmed]
        assert gate.in_flight_bytes == sum(self.model.stored[p].size for p in unconfirmed)
        assert gate._confirmed <= flight.keys()

    @invariant()
    def causes_go_first(self) -> None:
        """A row is delivered after those of its key that were committed before it was inserted."""
        model = self.model
        if not self.refuses_at_will or self.serial:
            assert model.overtaken == set()
        for position, cause in model.early:
            excused = (model.stored[position].key, position) in model.overtaken
            assert excused, f"{position} was delivered before its cause {cause}"

    def teardown(self) -> None:
        """Nothing is stuck: with every obstacle gone, all rows get through and the figures return to zero."""
        if not hasattr(self, "model"):
            return
        model = self.model
        model.bound = {"t", "u"}
        for row in model.stored.values():
            row.rejections, row.size = 0, 10
        if model.page is not None:
            model.end_fetch()
        for partition in range(PARTITIONS):
            if partition not in model.owned:
                model.gain(Partition(partition))
        self._run_to_the_end()
        for key in {row.key for row, _ in model.dead.values()}:
            model.redrive(key)
        model.load_blocked()
        self._run_to_the_end()
        assert model.table == {}
        written = set(model.stored) - model.discarded - set(model.dead)
        assert written <= set(model.delivered), f"not delivered: {sorted(written - set(model.delivered))}"
        gate = model.gate
        assert (gate.in_flight, gate.in_flight_bytes, gate.held, gate.has_ready) == (0, 0, 0, False)
        assert [gate.in_partition(Partition(p)) for p in range(PARTITIONS)] == [0] * PARTITIONS
        assert gate._keys == {}
        assert gate._confirmed == set()

    def _run_to_the_end(self) -> None:
        model = self.model
        for _ in range(40 + 8 * len(model.stored)):
            model.now += RETRY
            if model.page is None:
                model.begin_fetch(100)
            model.end_fetch()
            self.send(100)
            while model.channel:
                self.answer()
            model.settle()
            self.causes_go_first()
            if not model.table and not model.gate.in_flight and not model.gate.held:
                return


class GateMachine(_GateMachine):
    """Back-to-back sending over proven routes; messages are refused by route and size."""


class SerialGateMachine(_GateMachine):
    """`serial_keys`: order holds although the broker refuses single messages at will."""

    serial = True
    refuses_at_will = True


class UnrulyGateMachine(_GateMachine):
    """Messages are refused at will over proven routes: what overtakes is reported, nothing is lost or left over."""

    refuses_at_will = True


_SETTINGS = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
)
TestGate = GateMachine.TestCase
TestGate.settings = _SETTINGS
TestSerialGate = SerialGateMachine.TestCase
TestSerialGate.settings = _SETTINGS
TestUnrulyGate = UnrulyGateMachine.TestCase
TestUnrulyGate.settings = _SETTINGS
