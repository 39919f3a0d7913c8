"""The levers of the in-process broker: each makes happen what its name says, and nothing else."""

from __future__ import annotations

import pytest

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.memory.topics import TopicPattern
from sagapost.core.broker import Confirmed, Malformed, Queue, Rejected, Unknown
from sagapost.core.errors import BrokerUnavailableError
from tests.conformance.broker import answers, event_of, numbers, outgoing, publish, take

QUEUE = Queue("q", frozenset({"t"}))


async def test_a_pause_holds_what_is_sent_and_resume_takes_it_in() -> None:
    """Publishers see `blocked` and get no answer; afterwards everything is there, in order, once."""
    broker = MemoryBroker()
    await broker.declare(QUEUE)
    async with broker.publisher() as publisher:
        await publish(publisher, "t", 0)
        broker.pause()
        blocked = [publisher.blocked]
        pending = [await publisher.send(outgoing("t", 1, 2)), await publisher.send(outgoing("t", 3))]
        async with broker.publisher() as other:
            assert other.blocked
        assert broker.waiting("q") == [b"0"]
        broker.resume()
        blocked.append(publisher.blocked)
        assert blocked == [True, False]
        assert [await answers(confirmation) for confirmation in pending] == [[Confirmed()] * 2, [Confirmed()]]
        assert broker.waiting("q") == [b"0", b"1", b"2", b"3"]


async def test_a_disconnect_during_a_pause_drops_what_was_not_taken_in() -> None:
    """What sat in the pause is unknown to the sender and unpublished."""
    broker = MemoryBroker()
    await broker.declare(QUEUE)
    async with broker.publisher() as publisher:
        broker.pause()
        confirmation = await publisher.send(outgoing("t", 1))
        broker.disconnect()
        assert [type(result) for result in await answers(confirmation)] == [Unknown]
        with pytest.raises(BrokerUnavailableError):
            await publisher.send(outgoing("t", 2))
    broker.resume()
    assert broker.waiting("q") == []


async def test_held_confirms_are_published_and_unknown_after_a_disconnect() -> None:
    """The case that makes duplicates: the message is in the queue, the answer never came."""
    broker = MemoryBroker()
    await broker.declare(QUEUE)
    broker.hold_confirms()
    async with broker.publisher() as publisher:
        lost = await publisher.send(outgoing("t", 1))
        assert broker.waiting("q") == [b"1"]
        broker.disconnect()
        assert [type(result) for result in await answers(lost)] == [Unknown]
    async with broker.publisher() as publisher:
        late = await publisher.send(outgoing("t", 2))
        broker.release_confirms()
        assert await answers(late) == [Confirmed()]
        await publish(publisher, "t", 3)
    assert broker.waiting("q") == [b"1", b"2", b"3"]


async def test_refusal_hits_the_chosen_and_can_be_lifted() -> None:
    """Chosen messages are rejected and do not arrive; later the same ones pass."""
    broker = MemoryBroker()
    await broker.declare(QUEUE)
    broker.refuse(lambda event: event.data == b"2")
    batch = outgoing("t", 1, 2, 3)
    async with broker.publisher() as publisher:
        results = await answers(await publisher.send(batch))
        assert [type(result) for result in results] == [Confirmed, Rejected, Confirmed]
        broker.refuse(None)
        assert await answers(await publisher.send(batch[1:2])) == [Confirmed()]
    assert broker.waiting("q") == [b"1", b"3", b"2"]


async def test_an_outage_ends_everything_and_keeps_the_queues() -> None:
    """Down: open connections end and new ones fail; up again: nothing was forgotten."""
    broker = MemoryBroker("shop")
    async with broker.publisher() as publisher, broker.subscribe(QUEUE, prefetch=1) as subscription:
        await publish(publisher, "t", 1, 2)
        await take(subscription, 1)
        broker.go_down()
        with pytest.raises(BrokerUnavailableError):
            await take(subscription, 1)
        with pytest.raises(BrokerUnavailableError, match="memory://shop is down"):
            await broker.declare(QUEUE)
        broker.come_up()
        async with broker.subscribe(QUEUE, prefetch=5) as again:
            deliveries = await take(again, 2)
            assert numbers(deliveries) == [1, 2]
            assert [delivery.delivery_count for delivery in deliveries] == [1, 0]


async def test_a_disconnect_counts_a_message_once_whoever_held_it() -> None:
    """With several consumers, what one loses is not handed to another that is about to be lost as well."""
    broker = MemoryBroker()
    async with (
        broker.publisher() as publisher,
        broker.subscribe(QUEUE, prefetch=1) as one,
        broker.subscribe(QUEUE, prefetch=1) as other,
    ):
        await publish(publisher, "t", 1, 2)
        await take(one, 1)
        await take(other, 1)
        broker.disconnect()
    async with broker.subscribe(QUEUE, prefetch=5) as again:
        deliveries = await take(again, 2)
        assert [(*numbers([d]), d.delivery_count) for d in deliveries] == [(1, 1), (2, 1)]


async def test_a_deleted_queue_cancels_its_consumers() -> None:
    """As on a real broker: the consumer is told, and what the queue held is gone."""
    broker = MemoryBroker()
    async with broker.publisher() as publisher, broker.subscribe(QUEUE, prefetch=5) as subscription:
        await publish(publisher, "t", 1)
        broker.delete_queue("q")
        with pytest.raises(BrokerUnavailableError, match="the queue was deleted"):
            await take(subscription, 1)
        async with broker.subscribe(QUEUE, prefetch=5) as again:
            await publish(publisher, "t", 2)
            assert numbers(await take(again, 1)) == [2]


async def test_strangers_can_be_played() -> None:
    """`inject` puts in what no publisher of ours would send."""
    broker = MemoryBroker()
    async with broker.subscribe(QUEUE, prefetch=5) as subscription:
        assert broker.inject("t", b"x", message_id="m-1", app_id="legacy", type="old") == 1
        assert broker.inject("t", b"y") == 1
        assert broker.inject("elsewhere", b"z") == 0
        stranger, nameless = await take(subscription, 2)
        event = event_of(stranger)
        assert (event.id, event.source, event.type, event.data) == ("m-1", "legacy", "old", b"x")
        assert isinstance(nameless.content, Malformed)
        await subscription.reject(nameless, requeue=False)
        assert broker.dead_letters("q") == [b"y"]


async def test_the_same_course_gives_the_same_run() -> None:
    """Deterministic: competing consumers are served in turn, in the order they came."""

    async def run() -> list[list[int]]:
        broker = MemoryBroker()
        async with (
            broker.subscribe(QUEUE, prefetch=2) as one,
            broker.subscribe(QUEUE, prefetch=3) as other,
            broker.publisher() as publisher,
        ):
            await publish(publisher, "t", *range(5))
            return [numbers(await take(one, 2)), numbers(await take(other, 3))]

    assert await run() == await run() == [[0, 2], [1, 3, 4]]


def test_topic_patterns_are_not_exponential() -> None:
    """Many `#` in a pattern are matched in time that grows with its length, not with the number of ways to match."""
    pattern = TopicPattern(".".join(["#"] * 30 + ["x"]))
    assert not pattern.matches(".".join(["a"] * 200))
    assert pattern.matches(".".join(["a"] * 200 + ["x"]))


def test_empty_words_are_words() -> None:
    """`a..b` has three words, the middle one empty, as in RabbitMQ."""
    assert TopicPattern("a.*.b").matches("a..b")
    assert not TopicPattern("a.b").matches("a..b")
