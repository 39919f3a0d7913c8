"""The contract of the broker port as tests. An adapter that passes it with the capabilities it declares can be used.

Subclass `BrokerConformance`, give it a `broker` fixture, and override the levers your broker has::

    class TestMyBroker(BrokerConformance):
        @pytest.fixture
        def broker(self) -> Broker:
            return MyBroker("...", namespace=new_id())

Each test needs a broker without queues bound to its topics; topics and queue names are unique, so a shared server
with a fresh namespace (exchange) per test will do. Levers that are not overridden skip the tests that pull them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone

import anyio
import msgspec
import pytest

from sagapost.core.broker import (
    Broker,
    Confirmation,
    Confirmed,
    Delivery,
    Malformed,
    Outgoing,
    Publisher,
    Queue,
    Rejected,
    Returned,
    Subscription,
    Unknown,
)
from sagapost.core.envelope import Event
from sagapost.core.errors import BrokerUnavailableError, TopologyConflictError
from sagapost.core.ids import new_id

__all__ = [
    "BrokerConformance",
    "answers",
    "event_of",
    "make_event",
    "numbers",
    "outgoing",
    "publish",
    "take",
    "until",
    "word",
]

LIMIT = 20.0
"""Seconds after which something that should have arrived counts as missing."""


def word() -> str:
    """Return a name nobody used before."""
    return f"t{new_id()[-12:]}"


def make_event(data: bytes = b"{}", *, type: str = "tests.thing-happened.v1", key: str | None = None) -> Event:  # noqa: A002
    """Return a small event."""
    return Event(
        id=new_id(), source="urn:sagapost:tests", type=type, time=datetime.now(UTC), data=data, partitionkey=key
    )


def outgoing(topic: str, *bodies: int) -> list[Outgoing]:
    """Return one message per number, with the number as its body."""
    return [Outgoing(make_event(str(body).encode()), topic) for body in bodies]


def numbers(deliveries: Sequence[Delivery]) -> list[int]:
    """Return the bodies of `outgoing` messages."""
    return [int(event_of(delivery).data) for delivery in deliveries]


def event_of(delivery: Delivery) -> Event:
    """Return the event of a delivery that must be readable."""
    content = delivery.content
    assert isinstance(content, Event), content
    return content


async def take(subscription: Subscription, count: int) -> list[Delivery]:
    """Receive exactly `count` deliveries."""
    received: list[Delivery] = []
    if count == 0:
        return received
    with anyio.fail_after(LIMIT):
        async for delivery in subscription:
            received.append(delivery)
            if len(received) == count:
                return received
    pytest.fail(f"the subscription ended after {len(received)} of {count} deliveries")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something the port has no signal for."""
    with anyio.fail_after(LIMIT):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on
            await anyio.sleep(0.01)


async def answers(confirmation: Confirmation) -> list[object]:
    """Wait for the results of a batch."""
    with anyio.fail_after(LIMIT):
        return list(await confirmation.wait())


async def publish(publisher: Publisher, topic: str, *bodies: int) -> None:
    """Publish numbers; all must be confirmed."""
    batch = outgoing(topic, *bodies)
    assert await answers(await publisher.send(batch)) == [Confirmed()] * len(batch)


class BrokerConformance:
    """The tests. What a lever does is in its docstring."""

    # --- to be overridden ---

    @pytest.fixture
    def broker(self) -> Broker:
        """Return a broker in a namespace of its own."""
        raise NotImplementedError("give the subclass a `broker` fixture")

    max_message_bytes = 16 * 1024 * 1024
    """The largest body the broker under test takes."""

    async def drop_connections(self, broker: Broker) -> None:
        """End every connection of `broker` without a goodbye; new ones succeed."""
        pytest.skip(f"there is no lever to drop the connections of {type(broker).__name__}")

    async def restart(self, broker: Broker) -> None:
        """Stop the broker's server in order and start it again."""
        pytest.skip(f"there is no lever to restart {type(broker).__name__}")

    async def dead_letters(self, broker: Broker, queue: str, count: int) -> list[bytes]:
        """Return the bodies of a queue's dead letters, once there are `count`."""
        pytest.skip(f"there is no lever to look at the dead letters of {type(broker).__name__}")

    async def publish_raw(self, broker: Broker, topic: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Publish a message as a foreign producer would."""
        pytest.skip(f"there is no lever to publish past {type(broker).__name__}")

    async def forbid(self, broker: Broker, topic: str) -> None:
        """Take the right away to publish under this topic, from the next connection on."""
        pytest.skip(f"there is no lever to forbid a topic of {type(broker).__name__}")

    async def allow(self, broker: Broker, topic: str) -> None:
        """Give that right back."""
        pytest.skip(f"there is no lever to allow a topic of {type(broker).__name__}")

    # --- publishing ---

    async def test_every_attribute_arrives_as_it_was_sent(self, broker: Broker) -> None:
        """The envelope is the same before and after the broker, whatever it holds."""
        topic, name = word(), word()
        full = Event(
            id=new_id(),
            source="https://orders.example/größe",
            type="orders.order-placed.v1",
            time=datetime(2026, 11, 23, 8, 15, 30, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30))),
            data=bytes(range(256)),
            subject="order/4711 ✓",
            datacontenttype="application/octet-stream",
            dataschema="https://schemas.example/order-placed/1",
            correlationid=new_id(),
            causationid=new_id(),
            partitionkey="käse-" + "k" * 200,
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            tracestate="congo=t61rcWkgMzE",
            extensions={"tenant": "acme", "sequence": "0000000042"},
        )
        bare = Event(id=new_id(), source="s", type="t", time=datetime(2026, 1, 1, tzinfo=UTC), datacontenttype=None)
        async with broker.subscribe(Queue(name, frozenset({topic})), prefetch=10) as subscription:
            async with broker.publisher() as publisher:
                sent = [Outgoing(full, topic), Outgoing(bare, topic)]
                assert await answers(await publisher.send(sent)) == [Confirmed(), Confirmed()]
            deliveries = await take(subscription, 2)
            assert [event_of(delivery) for delivery in deliveries] == [full, bare]
            assert [(d.topic, d.size, d.delivery_count) for d in deliveries] == [(topic, 256, 0), (topic, 0, 0)]
            await subscription.ack(*deliveries)

    async def test_large_bodies_arrive_whole(self, broker: Broker) -> None:
        """Sizes around powers of two, up to 1 MiB, are cut and put together without losing a byte."""
        topic = word()
        sizes = [0, 1, 4088, 4096, 131_063, 131_064, 131_065, 262_144, 1_048_576]
        async with (
            broker.subscribe(Queue(word(), frozenset({topic})), prefetch=20) as subscription,
            broker.publisher() as publisher,
        ):
            batch = [Outgoing(make_event(bytes([n]) * size), topic) for n, size in enumerate(sizes)]
            assert await answers(await publisher.send(batch)) == [Confirmed()] * len(sizes)
            deliveries = await take(subscription, len(sizes))
            assert [event_of(d).data for d in deliveries] == [bytes([n]) * size for n, size in enumerate(sizes)]

    async def test_order_of_sends_and_batches_is_kept(self, broker: Broker) -> None:
        """A queue sees messages in the order of the send calls and of the batches, with several batches in flight."""
        topic = word()
        async with (
            broker.subscribe(Queue(word(), frozenset({topic})), prefetch=50) as subscription,
            broker.publisher() as publisher,
        ):
            confirmations: list[Confirmation] = []
            sent = 0
            for size in (1, 2, 100, 3, 250, 1, 143):
                confirmations.append(await publisher.send(outgoing(topic, *range(sent, sent + size))))
                sent += size
            received: list[int] = []
            while len(received) < sent:
                deliveries = await take(subscription, min(50, sent - len(received)))
                received += numbers(deliveries)
                await subscription.ack(*deliveries)
            assert received == list(range(500))
            for confirmation in confirmations:
                assert set(await answers(confirmation)) == {Confirmed()}

    async def test_an_empty_batch_is_answered_at_once(self, broker: Broker) -> None:
        """Nothing sent, nothing to wait for."""
        async with broker.publisher() as publisher:
            assert await answers(await publisher.send([])) == []

    async def test_results_can_be_awaited_from_several_tasks_and_again(self, broker: Broker) -> None:
        """A confirmation is no one-shot: every waiter gets the results, and a cancelled one disturbs nobody."""
        topic = word()
        await broker.declare(Queue(word(), frozenset({topic})))
        seen: list[list[object]] = []
        async with broker.publisher() as publisher:
            confirmation = await publisher.send(outgoing(topic, 1, 2))

            async def wait() -> None:
                seen.append(await answers(confirmation))

            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as impatient:
                    impatient.cancel()
                    await confirmation.wait()
                tasks.start_soon(wait)
                tasks.start_soon(wait)
        await wait()
        assert seen == [[Confirmed(), Confirmed()]] * 3

    async def test_unroutable_messages_are_told_apart(self, broker: Broker) -> None:
        """In one batch, exactly those that no queue is bound for are returned; once one is bound, they flow."""
        if not broker.capabilities.reports_unroutable:
            pytest.skip("declares that unroutable messages are not reported")
        heard, unheard = word(), word()
        async with (
            broker.subscribe(Queue(word(), frozenset({heard})), prefetch=10) as subscription,
            broker.publisher() as publisher,
        ):
            topics = [heard, unheard, heard, heard, unheard, unheard, heard]
            batch = [outgoing(topic, n)[0] for n, topic in enumerate(topics)]
            results = await answers(await publisher.send(batch))
            assert [isinstance(result, Returned) for result in results] == [t == unheard for t in topics]
            assert [isinstance(result, Confirmed) for result in results] == [t == heard for t in topics]
            assert numbers(await take(subscription, 4)) == [0, 2, 3, 6]
            async with broker.subscribe(Queue(word(), frozenset({unheard})), prefetch=10) as late:
                again = [message for message in batch if message.topic == unheard]
                assert await answers(await publisher.send(again)) == [Confirmed()] * 3
                assert numbers(await take(late, 3)) == [1, 4, 5]

    async def test_an_oversized_message_is_rejected_and_the_rest_goes_out(self, broker: Broker) -> None:
        """A body over the limit never leaves, and the answers to its neighbours stay with their messages."""
        topic = word()
        async with (
            broker.subscribe(Queue(word(), frozenset({topic})), prefetch=10) as subscription,
            broker.publisher() as publisher,
        ):
            assert publisher.max_message_bytes == self.max_message_bytes
            too_large = Outgoing(make_event(b"x" * (self.max_message_bytes + 1)), topic)
            one, two, three = outgoing(topic, 1, 2, 3)
            first = await publisher.send([one, too_large, two])
            second = await publisher.send([too_large])
            third = await publisher.send([three])
            results = await answers(first)
            assert [type(result) for result in results] == [Confirmed, Rejected, Confirmed]
            assert [type(result) for result in await answers(second)] == [Rejected]
            assert await answers(third) == [Confirmed()]
            assert numbers(await take(subscription, 3)) == [1, 2, 3]

    async def test_a_missing_destination_is_rejected_and_the_rest_goes_out(self, broker: Broker) -> None:
        """A message for an exchange that does not exist is refused alone."""
        topic = word()
        async with (
            broker.subscribe(Queue(word(), frozenset({topic})), prefetch=10) as subscription,
            broker.publisher() as publisher,
        ):
            one, two = outgoing(topic, 1, 2)
            lost = Outgoing(make_event(), topic, destination=word())
            results = await answers(await publisher.send([one, lost, two]))
            assert [type(result) for result in results] == [Confirmed, Rejected, Confirmed]
            assert numbers(await take(subscription, 2)) == [1, 2]

    async def test_a_refusal_of_one_message_is_no_outage(self, broker: Broker) -> None:
        """Messages without a right are rejected, each time with a reason; all others flow, once, on one connection."""
        topic, forbidden = word(), word()
        await broker.declare(Queue(name := word(), frozenset({topic, forbidden})))
        await self.forbid(broker, forbidden)
        good = [outgoing(topic, n)[0] for n in range(60)]
        bad = [Outgoing(make_event(key=f"k{n}"), forbidden) for n in range(6)]
        async with broker.publisher() as publisher:
            pending = [
                await publisher.send([*good[n * 10 : n * 10 + 5], bad[n], *good[n * 10 + 5 : n * 10 + 10]])
                for n in range(6)
            ]
            for confirmation in pending:
                results = await answers(confirmation)
                assert [type(result) for result in results] == [Confirmed] * 5 + [Rejected] + [Confirmed] * 5
                assert forbidden in getattr(results[5], "reason", ""), "the reason does not say what was refused"
            for _ in range(3):
                results = await answers(await publisher.send(bad))
                assert [type(result) for result in results] == [Rejected] * 6
            await self.allow(broker, forbidden)
            assert await answers(await publisher.send(bad[:1])) == [Confirmed()]
            async with broker.subscribe(Queue(name, frozenset({topic, forbidden})), prefetch=100) as subscription:
                received = await take(subscription, 61)
                assert [event_of(delivery).id for delivery in received] == [
                    message.event.id for message in (*good, bad[0])
                ]
                await subscription.ack(*received)
                await self._assert_nothing_more(broker, subscription, topic)

    async def test_text_that_cannot_be_carried_is_rejected_alone(self, broker: Broker) -> None:
        """A topic that is too long is refused with a reason, and does not hurt its neighbours."""
        topic = word()
        async with (
            broker.subscribe(Queue(word(), frozenset({topic})), prefetch=10) as subscription,
            broker.publisher() as publisher,
        ):
            one, two = outgoing(topic, 1, 2)
            results = await answers(await publisher.send([one, Outgoing(make_event(), "x" * 300), two]))
            assert (results[0], results[2]) == (Confirmed(), Confirmed())
            assert isinstance(results[1], Rejected | Returned)
            assert numbers(await take(subscription, 2)) == [1, 2]

    async def test_two_publishers_do_not_disturb_each_other(self, broker: Broker) -> None:
        """Each keeps its own order and its own answers."""
        left, right = word(), word()
        async with (
            broker.subscribe(Queue(word(), frozenset({left, right})), prefetch=200) as subscription,
            broker.publisher() as one,
            broker.publisher() as other,
        ):

            async def pump(publisher: Publisher, topic: str) -> None:
                for start in range(0, 100, 10):
                    await publish(publisher, topic, *range(start, start + 10))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pump, one, left)
                tasks.start_soon(pump, other, right)
            deliveries = await take(subscription, 200)
            for topic in (left, right):
                assert numbers([d for d in deliveries if d.topic == topic]) == list(range(100))

    async def test_a_closed_publisher_refuses_to_send(self, broker: Broker) -> None:
        """After its block a publisher says that it is closed instead of losing messages."""
        async with broker.publisher() as publisher:
            assert not publisher.blocked
        with pytest.raises(BrokerUnavailableError):
            await publisher.send(outgoing(word(), 1))
        with pytest.raises(BrokerUnavailableError):
            await publisher.until_lost()

    async def test_cancellation_ends_a_publisher_at_once(self, broker: Broker) -> None:
        """A cancelled scope leaves the block in bounded time, and what it waited for is cancelled, nothing else."""
        topic = word()
        await broker.declare(Queue(word(), frozenset({topic})))
        with anyio.fail_after(LIMIT):
            with anyio.CancelScope() as scope:
                async with broker.publisher() as publisher:
                    await publish(publisher, topic, 1)
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
            async with broker.publisher() as publisher:
                await publish(publisher, topic, 2)

    # --- topics ---

    @pytest.mark.parametrize(
        ("pattern", "heard", "unheard"),
        [
            ("orders.placed", ["orders.placed"], ["orders", "orders.placed.v1", "orders.failed"]),
            ("orders.*", ["orders.placed", "orders.x"], ["orders", "orders.placed.v1", "payments.placed"]),
            ("*.placed.*", ["orders.placed.v1"], ["placed.v1", "orders.placed", "a.orders.placed.v1"]),
            ("orders.#", ["orders", "orders.placed", "orders.placed.v1"], ["order", "payments.orders"]),
            ("#.v1", ["v1", "orders.v1", "orders.placed.v1"], ["v1.orders", "orders.v2"]),
            ("a.#.z", ["a.z", "a.b.z", "a.b.c.z"], ["a", "z", "a.b", "b.z"]),
            ("#", ["a", "a.b.c"], []),
        ],
    )
    async def test_topic_patterns(self, broker: Broker, pattern: str, heard: list[str], unheard: list[str]) -> None:
        """`*` is exactly one word and `#` any number of words."""
        root = word()
        async with broker.subscribe(Queue(word(), frozenset({f"{root}.{pattern}"})), prefetch=20) as subscription:
            async with broker.publisher() as publisher:
                topics = [f"{root}.{topic}" for topic in (*unheard, *heard)]
                await answers(await publisher.send([Outgoing(make_event(), topic) for topic in topics]))
            received = [delivery.topic for delivery in await take(subscription, len(heard))]
            assert received == [f"{root}.{topic}" for topic in heard]
            await self._assert_nothing_more(broker, subscription, f"{root}.{heard[0]}")

    async def test_a_message_reaches_every_queue_once(self, broker: Broker) -> None:
        """Two queues get a copy each; two patterns of one queue that both match yield one copy."""
        root = word()
        both = frozenset({f"{root}.a", f"{root}.*"})
        async with (
            broker.subscribe(Queue(word(), both), prefetch=10) as one,
            broker.subscribe(Queue(word(), frozenset({f"{root}.#"})), prefetch=10) as other,
            broker.publisher() as publisher,
        ):
            await publish(publisher, f"{root}.a", 1, 2)
            assert numbers(await take(one, 2)) == [1, 2]
            assert numbers(await take(other, 2)) == [1, 2]
            await self._assert_nothing_more(broker, one, f"{root}.a")

    async def test_observers_get_a_copy_and_do_not_count_as_listeners(self, broker: Broker) -> None:
        """What only an observer would take is returned; it has its copy, and a listener that comes later its own."""
        topic = word()
        seen = Queue(word(), frozenset({"#"}), observer=True)
        heard = Queue(word(), frozenset({topic}))
        async with broker.subscribe(seen, prefetch=10) as observer, broker.publisher() as publisher:
            (event,) = outgoing(topic, 1)
            (result,) = await answers(await publisher.send([event]))
            assert isinstance(result, Returned)
            assert result.observed
            async with broker.subscribe(heard, prefetch=10) as listener:
                assert await answers(await publisher.send([event])) == [Confirmed()]
                await publish(publisher, topic, *range(2, 5))
                assert numbers(await take(listener, 4)) == [1, 2, 3, 4]
            assert numbers(await take(observer, 5)) == [1, 1, 2, 3, 4]

    async def test_a_queue_that_becomes_an_observers_counts_as_a_listener_no_more(self, broker: Broker) -> None:
        """And the other way round; either way each message is in it once."""
        topic, name = word(), word()
        await broker.declare(Queue(name, frozenset({topic})))
        await broker.declare(Queue(name, frozenset({topic}), observer=True))
        async with broker.publisher() as publisher:
            (result,) = await answers(await publisher.send(outgoing(topic, 1)))
            assert isinstance(result, Returned)
            await broker.declare(Queue(name, frozenset({topic})))
            await publish(publisher, topic, 2, 3)
        async with broker.subscribe(Queue(name, frozenset({topic})), prefetch=10) as subscription:
            assert numbers(await take(subscription, 3)) == [1, 2, 3]

    async def test_a_declared_queue_keeps_what_comes_before_its_consumer(self, broker: Broker) -> None:
        """`declare` is enough for messages to be kept; it is idempotent, and declaring more topics adds them."""
        first, second, name = word(), word(), word()
        for _ in range(2):
            await broker.declare(Queue(name, frozenset({first})))
        await broker.declare(Queue(name, frozenset({second})))
        async with broker.publisher() as publisher:
            await publish(publisher, first, 1)
            await publish(publisher, second, 2)
        async with broker.subscribe(Queue(name, frozenset({first, second})), prefetch=10) as subscription:
            assert numbers(await take(subscription, 2)) == [1, 2]

    async def test_a_queue_with_other_arguments_is_a_conflict(self, broker: Broker) -> None:
        """Asking for another kind of queue under the same name fails once, names the argument, and changes nothing."""
        topic, name = word(), word()
        await broker.declare(Queue(name, frozenset({topic}), ordered=False))
        with pytest.raises(TopologyConflictError) as caught:
            await broker.declare(Queue(name, frozenset({topic}), ordered=True))
        assert caught.value.name == name
        assert caught.value.argument
        with pytest.raises(TopologyConflictError):
            async with broker.subscribe(Queue(name, frozenset({topic}), ordered=True), prefetch=1):
                pass
        async with broker.publisher() as publisher:
            await publish(publisher, topic, 1)

    # --- consuming ---

    async def test_prefetch_bounds_what_one_consumer_holds(self, broker: Broker) -> None:
        """A consumer that settles nothing is left with its prefetch; the rest goes to another one."""
        topic, name = word(), word()
        queue = Queue(name, frozenset({topic}))
        async with broker.subscribe(queue, prefetch=3) as slow, broker.publisher() as publisher:
            await publish(publisher, topic, *range(10))
            held = await take(slow, 3)
            async with broker.subscribe(queue, prefetch=100) as quick:
                assert numbers(held) == [0, 1, 2]
                assert numbers(await take(quick, 7)) == [3, 4, 5, 6, 7, 8, 9]
                await publish(publisher, topic, 10)
                assert numbers(await take(quick, 1)) == [10]
            await slow.ack(held[0])

    async def test_settling_makes_room(self, broker: Broker) -> None:
        """Each acked delivery lets one more in, in order, down to a prefetch of one."""
        topic = word()
        async with (
            broker.subscribe(Queue(word(), frozenset({topic})), prefetch=1) as subscription,
            broker.publisher() as publisher,
        ):
            await publish(publisher, topic, *range(5))
            for expected in range(5):
                (delivery,) = await take(subscription, 1)
                assert numbers([delivery]) == [expected]
                await subscription.ack(delivery)

    async def test_acked_messages_are_gone(self, broker: Broker) -> None:
        """What was acked, in whatever order and grouping, does not come again; what was not does."""
        topic = word()
        queue = Queue(word(), frozenset({topic}))
        async with broker.publisher() as publisher:
            async with broker.subscribe(queue, prefetch=20) as subscription:
                await publish(publisher, topic, *range(10))
                got = await take(subscription, 10)
                await subscription.ack(got[7])
                await subscription.ack(got[1], got[0])
                await subscription.ack(got[3], got[9], got[2])
                await subscription.ack()
            async with broker.subscribe(queue, prefetch=20) as subscription:
                again = await take(subscription, 4)
                assert sorted(numbers(again)) == [4, 5, 6, 8]
                await subscription.ack(*again)
                await self._assert_nothing_more(broker, subscription, topic)

    async def test_settling_twice_changes_nothing(self, broker: Broker) -> None:
        """Acking, rejecting or releasing a settled delivery is no error and has no effect."""
        topic = word()
        async with (
            broker.subscribe(Queue(word(), frozenset({topic})), prefetch=10) as subscription,
            broker.publisher() as publisher,
        ):
            await publish(publisher, topic, 1, 2)
            one, two = await take(subscription, 2)
            await subscription.ack(one)
            await subscription.ack(one, one)
            await subscription.reject(one, requeue=True)
            await subscription.release(one)
            await subscription.ack(two, one)
            await self._assert_nothing_more(broker, subscription, topic)

    async def test_what_is_unsettled_at_close_comes_again(self, broker: Broker) -> None:
        """Deliveries received but not settled, looked at or not, go back to their place under the same id."""
        topic = word()
        queue = Queue(word(), frozenset({topic}))
        async with broker.publisher() as publisher:
            async with broker.subscribe(queue, prefetch=4) as subscription:
                await publish(publisher, topic, *range(6))
                first = await take(subscription, 2)
                await subscription.ack(first[0])
            async with broker.subscribe(queue, prefetch=10) as subscription:
                again = await take(subscription, 5)
                assert numbers(again) == [1, 2, 3, 4, 5]
                assert event_of(again[0]).id == event_of(first[1]).id
                await subscription.ack(*again)

    async def test_a_failed_message_is_requeued_and_counted(self, broker: Broker) -> None:
        """`reject(requeue=True)` brings it back; where the broker counts, the count grows by one each time."""
        topic = word()
        async with (
            broker.subscribe(Queue(word(), frozenset({topic})), prefetch=1) as subscription,
            broker.publisher() as publisher,
        ):
            await publish(publisher, topic, 1)
            counts: list[int] = []
            for _ in range(4):
                (delivery,) = await take(subscription, 1)
                counts.append(delivery.delivery_count)
                await subscription.reject(delivery, requeue=True)
            assert counts == ([0, 1, 2, 3] if broker.capabilities.counts_deliveries else [0, 1, 1, 1])

    async def test_a_rejected_message_is_dead_lettered(self, broker: Broker) -> None:
        """`reject(requeue=False)` takes it out of the queue and keeps it."""
        topic, name = word(), word()
        async with (
            broker.subscribe(Queue(name, frozenset({topic})), prefetch=10) as subscription,
            broker.publisher() as publisher,
        ):
            await publish(publisher, topic, 1, 2, 3)
            one, two, three = await take(subscription, 3)
            await subscription.reject(two, requeue=False)
            await subscription.ack(one, three)
            assert await self.dead_letters(broker, name, 1) == [b"2"]
            await self._assert_nothing_more(broker, subscription, topic)

    async def test_what_lies_in_a_queue_can_be_counted(self, broker: Broker) -> None:
        """What waits, who is connected, and what was rejected; a queue that is not there is not made by looking."""
        topic, name, missing = word(), word(), word()
        queue = Queue(name, frozenset({topic}))
        await broker.declare(queue)
        async with broker.publisher() as publisher:
            await publish(publisher, topic, 1, 2, 3)
        for _ in range(2):
            absent, there = await broker.depths(missing, name)
            assert (absent.queue, absent.messages, absent.consumers, absent.dead_letters) == (
                missing,
                None,
                None,
                None,
            )
            assert (there.queue, there.messages, there.consumers, there.dead_letters) == (name, 3, 0, 0)
        async with broker.subscribe(queue, prefetch=10) as subscription:
            one, two, three = await take(subscription, 3)
            await subscription.ack(one, two)
            await subscription.reject(three, requeue=False)
            with anyio.fail_after(LIMIT):
                # The broker moves it in its own time, and nothing tells when it has.
                while (seen := (await broker.depths(name))[0]).dead_letters != 1:  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            assert (seen.messages, seen.consumers) == (0, 1)
            assert seen.dead_letter_queue is not None
        assert await broker.depths() == []

    @pytest.mark.parametrize("ordered", [False, True])
    @pytest.mark.parametrize("stopped", [False, True])
    async def test_released_messages_come_again(self, broker: Broker, ordered: bool, stopped: bool) -> None:
        """`release` gives back exactly what it was given: an ack of a later delivery does not settle it as well."""
        topic = word()
        queue = Queue(word(), frozenset({topic}), ordered=ordered)
        async with broker.publisher() as publisher:
            async with broker.subscribe(queue, prefetch=4) as subscription:
                await publish(publisher, topic, 1, 2, 3, 4)
                one, two, three, four = await take(subscription, 4)
                if stopped:
                    await subscription.stop()
                await subscription.release(two, three)
                await subscription.ack(one, four)
            async with broker.subscribe(queue, prefetch=10) as subscription:
                assert sorted(numbers(await take(subscription, 2))) == [2, 3]
                await self._assert_nothing_more(broker, subscription, topic)

    async def test_stop_ends_the_iteration_and_leaves_settling_open(self, broker: Broker) -> None:
        """After `stop` the iteration hands out what was received and ends; what is in flight can still be acked."""
        topic = word()
        queue = Queue(word(), frozenset({topic}))
        async with broker.publisher() as publisher:
            async with broker.subscribe(queue, prefetch=5) as subscription:
                await publish(publisher, topic, *range(5))
                got = await take(subscription, 1)
                await subscription.stop()
                await subscription.stop()
                await publish(publisher, topic, 5)
                with anyio.fail_after(LIMIT):
                    got += [delivery async for delivery in subscription]
                assert numbers(got) == list(range(len(got)))
                await subscription.ack(*got)
            async with broker.subscribe(queue, prefetch=10) as subscription:
                rest = await take(subscription, 6 - len(got))
                assert numbers(rest) == list(range(len(got), 6))
                await subscription.ack(*rest)

    async def test_stop_wakes_an_idle_consumer(self, broker: Broker) -> None:
        """A consumer that waits for a message that never comes ends when told to."""
        async with broker.subscribe(Queue(word(), frozenset({word()})), prefetch=5) as subscription:

            async def consume() -> None:
                async for delivery in subscription:
                    pytest.fail(f"nothing was published, yet {delivery} arrived")

            with anyio.fail_after(LIMIT):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(consume)
                    await anyio.wait_all_tasks_blocked()
                    await subscription.stop()

    async def test_cancellation_ends_a_subscription_at_once(self, broker: Broker) -> None:
        """A cancelled consumer leaves in bounded time; what it held is delivered to the next one."""
        topic = word()
        queue = Queue(word(), frozenset({topic}))
        async with broker.publisher() as publisher:
            with anyio.fail_after(LIMIT):
                with anyio.CancelScope() as scope:
                    async with broker.subscribe(queue, prefetch=5) as subscription:
                        await publish(publisher, topic, 1, 2)
                        await take(subscription, 1)
                        scope.cancel()
                        await anyio.sleep_forever()
                assert scope.cancelled_caught
            async with broker.subscribe(queue, prefetch=5) as subscription:
                assert numbers(await take(subscription, 2)) == [1, 2]

    async def test_competing_consumers_share_the_work(self, broker: Broker) -> None:
        """Two consumers of one queue get every message between them, each once."""
        topic = word()
        queue = Queue(word(), frozenset({topic}))
        seen: list[int] = []
        async with (
            broker.subscribe(queue, prefetch=5) as one,
            broker.subscribe(queue, prefetch=5) as other,
            broker.publisher() as publisher,
        ):

            async def consume(subscription: Subscription) -> None:
                async for delivery in subscription:
                    seen.extend(numbers([delivery]))
                    await subscription.ack(delivery)
                    if len(seen) == 100:
                        await one.stop()
                        await other.stop()

            with anyio.fail_after(LIMIT):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(consume, one)
                    tasks.start_soon(consume, other)
                    await publish(publisher, topic, *range(100))
        assert sorted(seen) == list(range(100))

    async def test_an_ordered_queue_has_one_receiver_at_a_time(self, broker: Broker) -> None:
        """While the first consumer is there the second gets nothing; when it goes, the second continues in order."""
        if not broker.capabilities.single_active_consumer:
            pytest.skip("declares that ordered queues are not honoured across consumers")
        topic = word()
        queue = Queue(word(), frozenset({topic}), ordered=True)
        taken_over = anyio.Event()
        second: list[int] = []
        async with broker.publisher() as publisher:
            async with anyio.create_task_group() as tasks:

                async def stand_by(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                    async with broker.subscribe(queue, prefetch=3) as subscription:
                        task_status.started()
                        async for delivery in subscription:
                            second.extend(numbers([delivery]))
                            await subscription.ack(delivery)
                            if second[-1] == 9:
                                taken_over.set()
                                return

                async with broker.subscribe(queue, prefetch=3) as subscription:
                    await tasks.start(stand_by)
                    await publish(publisher, topic, *range(10))
                    for expected in range(5):
                        (delivery,) = await take(subscription, 1)
                        assert numbers([delivery]) == [expected]
                        if expected < 4:
                            await subscription.ack(delivery)
                    assert second == []
                with anyio.fail_after(LIMIT):
                    await taken_over.wait()
            assert second == [4, 5, 6, 7, 8, 9]

    async def test_a_malformed_message_is_kept_whole_and_the_queue_goes_on(self, broker: Broker) -> None:
        """What cannot be read arrives as `Malformed` with reason, body and headers, between messages that can."""
        topic, name = word(), word()
        async with (
            broker.subscribe(Queue(name, frozenset({topic})), prefetch=10) as subscription,
            broker.publisher() as publisher,
        ):
            await publish(publisher, topic, 1)
            headers = {"ce-specversion": "1.0", "ce-type": "x", "colour": "blue"}
            await self.publish_raw(broker, topic, b"\xff\x00not an event", headers)
            await publish(publisher, topic, 2)
            one, bad, two = await take(subscription, 3)
            assert numbers([one, two]) == [1, 2]
            content = bad.content
            assert isinstance(content, Malformed)
            assert "id and source" in content.reason
            assert content.body == b"\xff\x00not an event"
            assert content.headers == headers
            assert (bad.topic, bad.size) == (topic, 14)
            # It is still none when it is read again, and one with what it lacked; both without the broker.
            later = datetime(2026, 11, 23, tzinfo=UTC)
            assert broker.read(content, topic, received_at=later) == content
            completed = msgspec.structs.replace(content, headers={**headers, "ce-id": "1", "ce-source": "urn:x"})
            event = broker.read(completed, topic, received_at=later)
            assert isinstance(event, Event)
            assert (event.id, event.time, event.data) == ("1", later, content.body)
            await subscription.ack(one, bad, two)

    # --- losing the connection ---

    async def test_a_lost_connection_ends_the_publisher(self, broker: Broker) -> None:
        """Every message of an unanswered batch gets a result; the next send says that the connection is gone."""
        topic = word()
        await broker.declare(Queue(word(), frozenset({topic})))
        async with broker.publisher() as publisher:
            await publish(publisher, topic, 1)
            confirmation = await publisher.send(outgoing(topic, *range(100)))
            await self.drop_connections(broker)
            results = await answers(confirmation)
            assert len(results) == 100
            assert all(isinstance(result, Confirmed | Unknown) for result in results)
            # All answers may have been here before the connection was cut.
            with pytest.raises(BrokerUnavailableError):
                await publisher.until_lost()
            with pytest.raises(BrokerUnavailableError):
                await publisher.send(outgoing(topic, 2))
        async with broker.publisher() as publisher:
            await publish(publisher, topic, 3)

    async def test_a_lost_connection_is_noticed_without_sending(self, broker: Broker) -> None:
        """A publisher with nothing to do says that its connection is gone; several may ask, and later as well."""
        async with broker.publisher() as publisher:
            with anyio.move_on_after(0.05) as waited:
                await publisher.until_lost()
            assert waited.cancelled_caught
            told: list[BrokerUnavailableError] = []

            async def ask() -> None:
                with pytest.raises(BrokerUnavailableError) as caught:
                    await publisher.until_lost()
                told.append(caught.value)

            with anyio.fail_after(LIMIT):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ask)
                    tasks.start_soon(ask)
                    await anyio.lowlevel.checkpoint()
                    await self.drop_connections(broker)
                await ask()
            assert len(told) == 3

    async def test_a_lost_connection_ends_the_subscription(self, broker: Broker) -> None:
        """Iteration and settling both say so, and what was not settled is delivered again."""
        topic = word()
        queue = Queue(word(), frozenset({topic}))
        async with broker.publisher() as publisher:
            await broker.declare(queue)
            await publish(publisher, topic, 1, 2, 3)
        async with broker.subscribe(queue, prefetch=2) as subscription:
            one, two = await take(subscription, 2)
            await subscription.ack(one)
            # The ack has arrived at the broker once the next message has come.
            await take(subscription, 1)
            await self.drop_connections(broker)
            with pytest.raises(BrokerUnavailableError):
                await take(subscription, 1)
            with pytest.raises(BrokerUnavailableError):
                await subscription.ack(two)
            await subscription.stop()
        async with broker.subscribe(queue, prefetch=5) as subscription:
            again = await take(subscription, 2)
            assert numbers(again) == [2, 3]
            if broker.capabilities.counts_deliveries:
                assert all(delivery.delivery_count >= 1 for delivery in again)

    async def test_messages_survive_a_restart_of_the_broker(self, broker: Broker) -> None:
        """Confirmed means kept: queue, bindings and messages are there afterwards."""
        if not broker.capabilities.durable:
            pytest.skip("declares that nothing survives a restart")
        topic = word()
        queue = Queue(word(), frozenset({topic}))
        await broker.declare(queue)
        async with broker.publisher() as publisher:
            await publish(publisher, topic, *range(50))
        await self.restart(broker)
        async with broker.subscribe(queue, prefetch=100) as subscription, broker.publisher() as publisher:
            await publish(publisher, topic, 50)
            assert numbers(await take(subscription, 51)) == list(range(51))

    # --- help ---

    async def _assert_nothing_more(self, broker: Broker, subscription: Subscription, topic: str) -> None:
        """Publish a marker: if it is the next to arrive, nothing was waiting before it."""
        marker = make_event(b"-1")
        async with broker.publisher() as publisher:
            assert await answers(await publisher.send([Outgoing(marker, topic)])) == [Confirmed()]
        (delivery,) = await take(subscription, 1)
        assert event_of(delivery).id == marker.id, f"unexpected: {delivery.content!r}"
        await subscription.ack(delivery)
