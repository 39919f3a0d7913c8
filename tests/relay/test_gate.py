"""The gate: which rows may go now, which wait, and what comes back after a refusal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from sagapost.core.outbox_store import OutboxRow, Partition, Position
from sagapost.outbox.relay.gate import Gate
from sagapost.outbox.relay.routes import Routes
from sagapost.outbox.relay.settings import Routing
from tests.relay.rows import TOPIC, make_row

OURS = frozenset({Partition(0), Partition(1)})
OTHER_TOPIC = "orders.order-cancelled.v1"


@dataclass
class Bench:
    """A gate over routes that deliver, and a clock."""

    now: float = 0.0
    serial: bool = False
    proven: tuple[str, ...] = (TOPIC,)
    routes: Routes = field(init=False)
    gate: Gate = field(init=False)

    def __post_init__(self) -> None:
        self.routes = Routes(Routing(), suspicion=60.0, serial=self.serial, monotonic=lambda: self.now)
        for topic in self.proven:
            self.routes.confirmed(make_row(999, topic=topic))
        self.gate = Gate(self.routes)

    def admit(self, *rows: OutboxRow) -> None:
        """A page arrives."""
        self.gate.begin_fetch()
        self.gate.admit(rows, OURS, self.now)

    def send(self, limit: int = 100) -> list[int]:
        """Take what is ready; return its positions."""
        return [int(row.position) for row in self.gate.take_ready(limit)]

    def confirm(self, *rows: OutboxRow) -> None:
        """The broker took these."""
        for row in rows:
            self.routes.confirmed(row)
        self.gate.confirmed(rows)

    def settle(self, *rows: OutboxRow) -> None:
        """They are deleted."""
        for row in rows:
            self.gate.settled(row.partition, [row.position])

    def refuse(self, row: OutboxRow, *, due: float = 10.0) -> bool:
        """The broker refused one."""
        self.routes.refused(row)
        return self.gate.refused(row, attempts=row.attempts + 1, due=due)

    def retry(self, row: OutboxRow) -> None:
        """The time of its retry has come: it is read again by itself."""
        self.now += 10.0
        assert self.gate.due(self.now, math.inf) == [row.position]
        self.admit(again(row))

    def assert_empty(self) -> None:
        """Nothing is left over."""
        gate = self.gate
        assert (gate.in_flight, gate.in_flight_bytes, gate.held, gate.has_ready) == (0, 0, 0, False)
        assert [gate.in_partition(partition) for partition in OURS] == [0, 0]


def again(row: OutboxRow, *, retry_in: float = 0.0) -> OutboxRow:
    """The row as it is read after its first refusal was recorded."""
    return make_row(
        row.position,
        key=row.event.partitionkey,
        topic=row.topic,
        partition=row.partition,
        size=len(row.event.data),
        attempts=row.attempts + 1,
        retry_in=retry_in,
    )


# --- the good path ---


def test_rows_of_a_key_follow_each_other_over_a_proven_route() -> None:
    """A hot key goes out without waiting for confirms, in order, and leaves nothing behind."""
    bench, rows = Bench(), [make_row(n) for n in (1, 2, 3)]
    bench.admit(*rows)
    assert bench.gate.in_flight == 3
    assert bench.gate.in_flight_bytes == 30
    assert bench.send(2) == [1, 2]
    assert bench.send() == [3]
    bench.confirm(*rows)
    assert (bench.gate.in_flight, bench.gate.in_flight_bytes) == (3, 0)
    bench.settle(*rows)
    bench.assert_empty()


def test_the_first_of_a_key_goes_alone_over_a_new_route() -> None:
    """Until a message got through, each key has one on the wire; other keys and rows without a key do not wait."""
    bench = Bench(proven=())
    rows = [make_row(1), make_row(2), make_row(3, key="other"), make_row(4, key=None), make_row(5, key=None)]
    bench.admit(*rows)
    assert bench.send() == [1, 3, 4, 5]
    bench.confirm(rows[0])
    assert bench.send() == [2]


def test_a_serial_relay_sends_one_of_each_key_at_a_time() -> None:
    """`serial_keys`: proven or not, the next one waits for the answer."""
    bench, rows = Bench(serial=True), [make_row(1), make_row(2), make_row(3)]
    bench.admit(*rows)
    sent = bench.send()
    for row in rows:
        bench.confirm(row)
        sent += bench.send()
    assert sent == [1, 2, 3]


@pytest.mark.parametrize(
    "risky", [make_row(2, size=11), make_row(2, attempts=1)], ids=["over-the-limit", "refused-before"]
)
def test_a_row_that_may_be_refused_goes_alone(risky: OutboxRow) -> None:
    """It waits for what is before it, and what is behind it waits for it, although the route is proven."""
    bench, before, behind = Bench(), make_row(1), make_row(3)
    bench.gate.max_message_bytes = 10
    bench.admit(before, risky, behind)
    assert bench.send() == [1]
    bench.confirm(before)
    assert bench.send() == [2]
    bench.confirm(risky)
    assert bench.send() == [3]


def test_a_risky_row_at_the_front_stops_the_rest_of_its_page() -> None:
    """Also when those behind it go over a proven route."""
    bench = Bench()
    bench.gate.max_message_bytes = 10
    bench.admit(make_row(1, size=11), make_row(2), make_row(3))
    assert bench.send() == [1]


def test_a_row_in_hand_is_not_admitted_twice() -> None:
    """A reader that started over returns rows that are on their way."""
    bench, row = Bench(), make_row(1)
    bench.admit(row)
    bench.admit(row)
    assert bench.send() == [1]
    bench.admit(row)
    bench.confirm(row)
    bench.admit(row)
    assert bench.send() == []
    bench.settle(row)
    bench.assert_empty()


def test_a_page_read_before_a_row_was_deleted_does_not_bring_it_back() -> None:
    """The row was settled between the reading of the page and its arrival."""
    bench, row = Bench(), make_row(1)
    bench.admit(row)
    bench.send()
    bench.gate.begin_fetch()
    bench.confirm(row)
    bench.settle(row)
    bench.gate.admit([row], OURS, bench.now)
    bench.assert_empty()


def test_rows_of_others_are_not_admitted() -> None:
    """A page may be older than a hand-over."""
    bench = Bench()
    bench.admit(make_row(1, partition=7))
    bench.assert_empty()


# --- refusals ---


def test_a_refused_row_holds_its_key_and_no_other() -> None:
    """Followers are dropped from memory, come again after the retry went through, and go out in order."""
    bench = Bench(proven=())
    head, follower, stranger = make_row(1), make_row(2), make_row(3, key="other")
    bench.admit(head, follower, stranger)
    assert bench.send() == [1, 3]
    assert bench.refuse(head)
    assert (bench.gate.in_flight, bench.gate.held) == (1, 1)
    bench.admit(follower, make_row(4))
    assert bench.send() == []
    bench.retry(head)
    assert bench.send() == [1]
    bench.confirm(head)
    assert bench.gate.replaying() == {"k": 1}
    bench.admit(make_row(5))
    assert bench.send() == []
    bench.gate.replayed(["k"])
    bench.admit(follower, make_row(4), make_row(5))
    assert bench.send() == [2]
    assert bench.gate.held == 0


def test_a_refused_row_without_followers_leaves_no_trace() -> None:
    """Nothing to replay."""
    bench, row = Bench(proven=()), make_row(1)
    bench.admit(row)
    bench.send()
    bench.refuse(row)
    bench.retry(row)
    assert bench.send() == [1]
    bench.confirm(row)
    bench.settle(row)
    bench.assert_empty()


def test_a_refused_row_without_a_key_holds_itself_only() -> None:
    """No order was promised to anybody."""
    bench, row = Bench(), make_row(1, key=None)
    bench.admit(row, make_row(2, key=None))
    assert bench.send() == [1, 2]
    bench.refuse(row)
    bench.admit(make_row(3, key=None))
    assert bench.send() == [3]
    bench.retry(row)
    assert bench.send() == [1]


def test_a_row_is_not_sent_before_its_retry_is_due() -> None:
    """However often it is read meanwhile."""
    bench, row = Bench(), make_row(1)
    bench.admit(row)
    bench.send()
    bench.refuse(row, due=10.0)
    bench.now = 9.0
    assert bench.gate.due(bench.now, math.inf) == []
    bench.admit(again(row, retry_in=1.0))
    assert bench.send() == []
    assert bench.gate.next_due == 10.0


def test_a_row_refused_by_another_relay_waits_for_its_time() -> None:
    """A new owner learns from the row itself that it was refused and when it is due."""
    bench, row = Bench(), make_row(1, attempts=3, retry_in=5.0)
    bench.admit(row, make_row(2))
    assert bench.send() == []
    bench.now = 5.0
    assert bench.gate.due(bench.now, math.inf) == [1]
    bench.admit(make_row(1, attempts=3, retry_in=0.0))
    assert bench.send() == [1]


def test_a_late_commit_before_a_held_row_goes_its_way() -> None:
    """It was committed after the held row was sent, so it follows neither that nor anything behind it."""
    bench, head = Bench(), make_row(5)
    bench.admit(head)
    bench.send()
    bench.refuse(head)
    bench.admit(make_row(6))
    bench.admit(make_row(3))
    assert bench.send() == [3]


def test_a_late_commit_that_waited_behind_the_head_is_fetched_again() -> None:
    """It was queued behind a row that was then refused; replaying from the head would lose it."""
    bench, head = Bench(proven=()), make_row(5)
    bench.admit(head)
    bench.send()
    bench.admit(make_row(3))
    bench.refuse(head)
    assert bench.gate.in_flight == 0
    bench.admit(make_row(4))
    assert bench.send() == [], "what came after the dropped row must not pass it"
    bench.retry(head)
    bench.send()
    bench.confirm(head)
    assert bench.gate.replaying() == {"k": 2}


def test_replaying_begins_at_the_lowest_row_that_was_dropped() -> None:
    """Two late commits waited behind the head, in the order in which they came."""
    bench, head = Bench(proven=()), make_row(9)
    bench.admit(head)
    bench.send()
    bench.admit(make_row(3))
    bench.admit(make_row(6))
    bench.refuse(head)
    bench.retry(head)
    bench.send()
    bench.confirm(head)
    assert bench.gate.replaying() == {"k": 2}


def test_the_earlier_of_two_refused_rows_holds_the_key() -> None:
    """A late commit before the held row is refused as well: it goes first now, and the former head comes after it."""
    bench, late, head = Bench(), make_row(3), make_row(5)
    bench.admit(head)
    bench.send()
    bench.refuse(head)
    bench.admit(late)
    assert bench.send() == [3]
    assert bench.refuse(late)
    bench.retry(late)
    assert bench.send() == [3]
    bench.confirm(late)
    assert bench.gate.replaying() == {"k": 3}


def test_a_follower_on_the_wire_burns_no_attempt() -> None:
    """It was refused only because it was sent behind the first one."""
    bench, rows = Bench(), [make_row(1), make_row(2)]
    bench.admit(*rows)
    bench.send()
    assert bench.refuse(rows[0])
    assert not bench.refuse(rows[1])
    assert bench.gate.held == 1
    assert bench.gate.in_flight == 0


def test_a_ready_row_is_not_sent_after_its_key_was_held() -> None:
    """The refusal arrives while followers wait to be written: they go no further."""
    bench, rows = Bench(), [make_row(1), make_row(2), make_row(3), make_row(4, key="other")]
    bench.admit(*rows)
    assert bench.send(1) == [1]
    bench.refuse(rows[0])
    assert bench.send() == [4]
    bench.retry(rows[0])
    assert bench.send() == [1]
    bench.confirm(rows[0])
    assert bench.gate.replaying() == {"k": 1}


def test_a_probe_behind_followers_on_the_wire_is_tried_again() -> None:
    """The probe waits for them; when they are refused too, it must be asked for once more, not forgotten."""
    bench, head, follower = Bench(), make_row(1), make_row(2)
    bench.admit(head, follower)
    assert bench.send() == [1, 2]
    bench.refuse(head)
    bench.retry(head)
    assert bench.send() == [], "the follower is still unanswered"
    assert not bench.refuse(follower)
    assert bench.gate.due(bench.now, math.inf) == [1]
    bench.admit(again(head))
    assert bench.send() == [1]


def test_what_overtook_a_refused_row_is_reported() -> None:
    """Confirmed although an earlier row of the key, in the same window, was refused."""
    bench, rows = Bench(), [make_row(1), make_row(2)]
    bench.admit(*rows)
    bench.send()
    bench.refuse(rows[0])
    bench.confirm(rows[1])
    assert [(row.position, hold.position) for row, hold in bench.gate.overtaken] == [(2, 1)]


def test_a_held_row_that_an_operator_took_frees_its_key() -> None:
    """It is missing when its retry is due; its followers come again."""
    bench, head = Bench(), make_row(1)
    bench.admit(head)
    bench.send()
    bench.refuse(head)
    bench.admit(make_row(2))
    bench.now = 10.0
    assert bench.gate.due(bench.now, math.inf) == [1]
    ended = bench.gate.gone(frozenset({Position(1)}))
    assert [name for name, _ in ended] == ["k"]
    assert bench.gate.replaying() == {"k": 1}


# --- dead letters ---


def test_a_blocked_key_waits_for_an_operator() -> None:
    """Whatever comes; once released, its rows come again from the dead one's place on, which may be redriven."""
    bench = Bench()
    bench.gate.block("k", Partition(0), Position(5))
    bench.admit(make_row(6), make_row(7, key="other"))
    assert bench.send() == [7]
    assert bench.gate.dropped_for_policy == {("k", Partition(0))}
    assert bench.gate.blocked_keys() == {"k"}
    assert bench.gate.release("k") is not None
    assert bench.gate.replaying() == {"k": 4}
    bench.gate.replayed(["k"])
    bench.admit(make_row(5), make_row(6))
    assert bench.send() == [5, 6]


def test_a_refused_row_of_a_blocked_key_keeps_the_block() -> None:
    """A late row of the key was on the wire when the key was blocked; its refusal must not lift the block."""
    bench, late = Bench(), make_row(3)
    bench.admit(late)
    bench.send()
    bench.gate.block("k", Partition(0), Position(5))
    assert not bench.refuse(late)
    assert bench.gate.blocked_keys() == {"k"}
    bench.gate.release("k")
    assert bench.gate.replaying() == {"k": 2}


def test_blocking_a_held_key_keeps_its_head_in_mind() -> None:
    """The head of the hold comes again when the block ends."""
    bench, head = Bench(), make_row(7)
    bench.admit(head)
    bench.send()
    bench.refuse(head)
    bench.gate.block("k", Partition(0), Position(5))
    bench.gate.release("k")
    assert bench.gate.replaying() == {"k": 4}


# --- faults and hand-over ---


def test_a_lost_connection_forgets_what_is_not_confirmed() -> None:
    """Confirmed rows stay in flight until deleted, so that they are not sent twice."""
    bench, sent, unsent = Bench(), make_row(1), make_row(2)
    bench.admit(sent, unsent)
    bench.send(1)
    bench.confirm(sent)
    bench.gate.forget_unconfirmed()
    assert (bench.gate.in_flight, bench.gate.in_flight_bytes, bench.gate.has_ready) == (1, 0, False)
    bench.admit(sent, unsent)
    assert bench.send() == [2]


def test_after_a_restart_rows_hold_their_keys_by_what_they_say() -> None:
    """Holds are not carried over: the rows come again, the refused one first, and say when they are due."""
    bench, head = Bench(), make_row(1)
    bench.admit(head)
    bench.send()
    bench.refuse(head)
    bench.gate.restarted()
    assert bench.gate.held == 0
    bench.admit(again(head, retry_in=3.0), make_row(2))
    assert bench.send() == []
    assert bench.gate.held == 1


def test_a_restart_keeps_a_probe_that_is_on_its_way_and_what_is_blocked() -> None:
    """The answer to the probe is still to come; dead letters are not in the outbox."""
    bench, head = Bench(), make_row(1)
    bench.admit(head)
    bench.send()
    bench.refuse(head)
    bench.admit(make_row(2))
    bench.retry(head)
    bench.send()
    bench.gate.block("dead", Partition(1), Position(50))
    bench.gate.restarted()
    assert bench.gate.held == 2
    bench.admit(make_row(2))
    assert bench.send() == []


def test_a_row_beyond_the_reader_is_not_asked_for() -> None:
    """After the reader started over, an earlier row of the key may come before it."""
    bench, row = Bench(), make_row(5)
    bench.admit(row)
    bench.send()
    bench.refuse(row)
    bench.now = 10.0
    assert bench.gate.due(bench.now, passed=4) == []
    assert bench.gate.due(bench.now, passed=5) == [5]


def test_a_partition_that_is_given_up_leaves_nothing_unsent() -> None:
    """What waits or is ready goes at once; what is on the wire stays until it is settled; other partitions stay."""
    bench = Bench()
    rows = [make_row(1), make_row(2), make_row(3, key="other", partition=1)]
    bench.admit(*rows)
    assert bench.send(1) == [1]
    bench.gate.forget_partitions({Partition(0)})
    assert bench.gate.in_partition(Partition(0)) == 1
    assert bench.send() == [3]
    bench.confirm(rows[0], rows[2])
    bench.settle(rows[0], rows[2])
    bench.assert_empty()


def test_waiting_rows_and_holds_of_a_partition_go_with_it() -> None:
    """Behind an unproven head, and behind a refused one."""
    bench = Bench(proven=())
    head, refused = make_row(1), make_row(10, key="held")
    bench.admit(head, make_row(2), refused, make_row(11, key="held"))
    bench.send()
    bench.refuse(refused)
    bench.gate.forget_partitions({Partition(0)})
    assert (bench.gate.held, bench.gate.in_flight) == (0, 1)
    bench.confirm(head)
    bench.settle(head)
    bench.assert_empty()


def test_a_refusal_after_the_partition_was_given_up_holds_nothing() -> None:
    """Its next owner decides; a hold left here would block the key should the partition come back."""
    bench, row = Bench(), make_row(1)
    bench.admit(row)
    bench.send()
    bench.gate.forget_partitions({Partition(0)})
    bench.gate.abandon(row)
    bench.assert_empty()
    bench.admit(row)
    assert bench.send() == [1]


def test_a_mixed_page_keeps_each_route_apart() -> None:
    """One key over two topics: the unproven one makes the key wait, in order."""
    bench = Bench()
    rows = [make_row(1), make_row(2, topic=OTHER_TOPIC), make_row(3)]
    bench.admit(*rows)
    assert bench.send() == [1]
    bench.confirm(rows[0])
    assert bench.send() == [2]
    bench.confirm(rows[1])
    assert bench.send() == [3]
