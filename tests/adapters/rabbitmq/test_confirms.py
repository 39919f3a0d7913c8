"""The account of what was sent and answered, against a model that keeps one entry per message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagapost.adapters.rabbitmq.confirms import ConfirmLedger, PendingBatch
from sagapost.core.broker import Confirmed, Outgoing, PublishResult, Rejected, Returned, Unknown
from sagapost.core.envelope import Event

EXCHANGE = "sagapost"
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def message(name: str, topic: str = "t", destination: str | None = None) -> Outgoing:
    """Return a message with a readable id."""
    return Outgoing(Event(id=name, source="s", type="t", time=NOW), topic, destination)


def send(ledger: ConfirmLedger, *names: str, refused: dict[int, Rejected] | None = None) -> PendingBatch:
    """Number a batch."""
    return ledger.open([message(name) for name in names], refused=refused or {}, deadline=0.0)


def done(*pendings: PendingBatch) -> list[bool]:
    """Tell which batches have their results."""
    return [pending.done for pending in pendings]


async def results(pending: PendingBatch) -> Sequence[PublishResult]:
    """Return the results, which must be there."""
    assert pending.done
    return await pending.wait()


async def test_batches_are_done_when_their_last_message_is_answered() -> None:
    """Single acks in any order, then one for many; nothing is done early."""
    ledger = ConfirmLedger(EXCHANGE)
    one, two, three = send(ledger, "a", "b"), send(ledger, "c"), send(ledger, "d", "e", "f")
    ledger.ack(2, multiple=False)
    assert done(one, two, three) == [False, False, False]
    ledger.ack(1, multiple=False)
    assert done(one, two, three) == [True, False, False]
    ledger.ack(5, multiple=False)
    ledger.ack(6, multiple=False)
    assert done(one, two, three) == [True, False, False]
    ledger.ack(4, multiple=True)
    assert done(one, two, three) == [True, True, True]
    assert ledger.in_flight == 0
    assert await results(three) == [Confirmed()] * 3


async def test_nacks_single_and_multiple_hit_exactly_theirs() -> None:
    """A multiple nack leaves what was answered before it as it was."""
    ledger = ConfirmLedger(EXCHANGE)
    one, two = send(ledger, "a", "b", "c"), send(ledger, "d", "e")
    ledger.ack(2, multiple=False)
    ledger.nack(4, multiple=True)
    ledger.ack(5, multiple=False)
    assert [type(result) for result in await results(one)] == [Rejected, Confirmed, Rejected]
    assert [type(result) for result in await results(two)] == [Rejected, Confirmed]


async def test_tag_zero_stands_for_all_there_are() -> None:
    """AMQP allows 0 with "multiple" to mean everything sent so far."""
    ledger = ConfirmLedger(EXCHANGE)
    one, two = send(ledger, "a"), send(ledger, "b", "c")
    ledger.ack(0, multiple=True)
    assert await results(one) == [Confirmed()]
    assert await results(two) == [Confirmed(), Confirmed()]


async def test_a_return_outlives_its_ack() -> None:
    """The broker sends a return first and then an ack for the same message: it is returned, its neighbours are not."""
    ledger = ConfirmLedger(EXCHANGE)
    pending = send(ledger, "a", "b", "c")
    assert ledger.returned("b", EXCHANGE, "t", "312 NO_ROUTE")
    ledger.ack(3, multiple=True)
    assert await results(pending) == [Confirmed(), Returned("312 NO_ROUTE"), Confirmed()]


async def test_one_event_on_its_way_to_several_places_is_told_apart() -> None:
    """Same id, other topic or exchange: the return hits the one that was not routed."""
    ledger = ConfirmLedger(EXCHANGE)
    batch = [message("a", "x"), message("a", "y"), message("a", "x", "other"), message("b", "y", EXCHANGE)]
    pending = ledger.open(batch, refused={}, deadline=0.0)
    assert ledger.returned("a", "other", "x", "1")
    assert ledger.returned("b", EXCHANGE, "y", "2")
    assert ledger.returned("a", EXCHANGE, "y", "3")
    ledger.ack(4, multiple=True)
    assert await results(pending) == [Confirmed(), Returned("3"), Returned("1"), Returned("2")]


async def test_a_message_sent_twice_is_returned_twice() -> None:
    """Should a caller break the rule of unique ids, two returns still hit two messages, not one of them twice."""
    ledger = ConfirmLedger(EXCHANGE)
    one, two = send(ledger, "a", "a"), send(ledger, "a")
    assert all(ledger.returned("a", EXCHANGE, "t", "312") for _ in range(3))
    assert not ledger.returned("a", EXCHANGE, "t", "312")
    ledger.ack(3, multiple=True)
    assert [type(result) for result in (*await results(one), *await results(two))] == [Returned] * 3


def test_a_return_of_something_unknown_is_noticed() -> None:
    """A return that matches nothing in flight is reported to the caller, and so is one that comes too late."""
    ledger = ConfirmLedger(EXCHANGE)
    send(ledger, "a")
    assert not ledger.returned("x", EXCHANGE, "t", "312")
    assert not ledger.returned("a", EXCHANGE, "other", "312")
    ledger.ack(1, multiple=False)
    assert not ledger.returned("a", EXCHANGE, "t", "312")


async def test_what_was_not_sent_has_no_number() -> None:
    """Refused messages keep their place in the results and leave the numbers of the others alone."""
    no = Rejected("no")
    ledger = ConfirmLedger(EXCHANGE)
    one = send(ledger, "a", "b", "c", refused={1: no})
    none = send(ledger, "d", refused={0: no})
    two = send(ledger, "e")
    assert none.done
    assert ledger.returned("c", EXCHANGE, "t", "312")
    ledger.ack(3, multiple=True)
    assert await results(one) == [Confirmed(), no, Returned("312")]
    assert await results(none) == [no]
    assert await results(two) == [Confirmed()]


async def test_abandoning_leaves_exactly_the_unanswered_unknown() -> None:
    """Acks that came ahead, nacks and returns stand; the rest is unknown, and the account is closed."""
    ledger = ConfirmLedger(EXCHANGE)
    one, two = send(ledger, "a"), send(ledger, "b", "c", "d", "e")
    three = send(ledger, "f", refused={0: Rejected("x")})
    ledger.ack(1, multiple=False)
    ledger.ack(3, multiple=False)
    ledger.nack(4, multiple=False)
    ledger.returned("e", EXCHANGE, "t", "312")
    ledger.abandon("cut")
    assert await results(one) == [Confirmed()]
    assert [type(result) for result in await results(two)] == [Unknown, Confirmed, Rejected, Returned]
    assert await results(three) == [Rejected("x")]
    assert (ledger.in_flight, ledger.oldest) == (0, None)


async def test_waiters_are_woken() -> None:
    """Tasks that wait before the answer come get it."""
    ledger = ConfirmLedger(EXCHANGE)
    pending = send(ledger, "a")
    seen: list[Sequence[PublishResult]] = []

    async def wait() -> None:
        seen.append(await pending.wait())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            ledger.ack(1, multiple=False)
    assert seen == [[Confirmed()], [Confirmed()]]


@dataclass(frozen=True)
class Step:
    """What happens next: a batch is sent, or an answer arrives."""

    kind: str
    size: int
    tag: float
    multiple: bool


steps = st.builds(
    Step,
    kind=st.sampled_from(["send", "send", "ack", "ack", "ack", "nack", "return", "close"]),
    size=st.integers(1, 5),
    tag=st.floats(0, 1, exclude_max=True),
    multiple=st.booleans(),
)


@given(st.lists(steps, max_size=60))
@settings(deadline=None, max_examples=400)
def test_any_course_of_events_matches_the_model(course: list[Step]) -> None:
    """After any sequence of sends, answers and closed channels each message has the result that a plain list gives it.

    A channel closed over a message goes on as another one, on which what has no answer is numbered again from 1.
    """
    ledger = ConfirmLedger(EXCHANGE)
    pendings: list[tuple[PendingBatch, range]] = []
    names: list[str] = []
    results: dict[int, PublishResult] = {}
    channel: list[int] = []
    """Which message has which tag, from 1 on, on the channel in use."""
    answered: set[int] = set()
    for step in course:
        open_tags = [tag for tag, message in enumerate(channel, 1) if message not in answered]
        if step.kind == "send":
            places = range(len(names), len(names) + step.size)
            names += [f"m{place}" for place in places]
            channel += places
            pendings.append((send(ledger, *names[places.start :]), places))
        elif step.kind == "close":
            suspects = [channel[tag - 1] for tag in open_tags if channel[tag - 1] not in results]
            assert [message.event.id for message in ledger.unanswered()] == [names[place] for place in suspects]
            refused = {index: Rejected("403") for index in range(len(suspects)) if index % 5 < step.size - 1}
            again = ledger.begin_again(refused, deadline=0.0)
            results |= {suspects[index]: no for index, no in refused.items()}
            channel = [place for index, place in enumerate(suspects) if index not in refused]
            assert [message.event.id for message in again] == [names[place] for place in channel]
            answered = set(range(len(names))) - set(channel)
        elif open_tags:
            tag = open_tags[int(step.tag * len(open_tags))]
            if step.kind == "return":
                place = channel[tag - 1]
                if place not in results:
                    assert ledger.returned(names[place], EXCHANGE, "t", "312")
                    results[place] = Returned("312")
                continue
            for hit in [t for t in open_tags if t <= tag] if step.multiple else [tag]:
                results.setdefault(channel[hit - 1], Confirmed() if step.kind == "ack" else Rejected("nack"))
                answered.add(channel[hit - 1])
            (ledger.ack if step.kind == "ack" else ledger.nack)(tag, multiple=step.multiple)
        assert ledger.in_flight == len(names) - len(answered)
        _assert_done_in_order(pendings, answered)
    ledger.abandon("cut")
    seen = [type(result) for pending, _ in pendings for result in anyio.run(pending.wait)]
    assert seen == [type(results[place]) if place in results else Unknown for place in range(len(names))]


def _assert_done_in_order(pendings: Sequence[tuple[PendingBatch, range]], answered: set[int]) -> None:
    """A batch with all its answers is done unless an older one on the same channel is not; no other is."""
    for pending, places in pendings:
        complete = all(place in answered for place in places)
        if pending.done:
            assert complete
        elif complete:
            assert any(not older.done for older, before in pendings if before.start < places.start)


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_the_cost_of_an_answer_does_not_grow_with_the_window(order: str) -> None:
    """100,000 single acks over a window of 100,000 stay linear: a walk over the window would take hours."""
    ledger = ConfirmLedger(EXCHANGE)
    count = 100_000
    batch = [message("a")] * 100
    pendings = [ledger.open(batch, refused={}, deadline=0.0) for _ in range(count // 100)]
    for tag in range(1, count + 1) if order == "rising" else range(count, 0, -1):
        ledger.ack(tag, multiple=False)
    assert all(pending.done for pending in pendings)
