"""The subscription against a broker that follows a script: content in pieces, cancellation by the broker, closing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import anyio
import pytest
from pamqp import commands

from sagapost.adapters.cloudevents import binary_headers
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.adapters.rabbitmq.consumer import RabbitMQSubscription
from sagapost.core.broker import Delivery, Malformed, Queue
from sagapost.core.errors import BrokerUnavailableError
from tests.adapters.rabbitmq.scripted import ScriptedBroker, scripted_broker
from tests.conformance.broker import event_of, make_event, numbers, take

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

QUEUE = Queue("q", frozenset({"t"}))
ORDERED = Queue("q", frozenset({"t"}), ordered=True)


@pytest.fixture
async def script() -> AsyncGenerator[ScriptedBroker]:
    """A scripted broker."""
    async with scripted_broker() as broker:
        yield broker


def connect(script: ScriptedBroker, **settings: Any) -> RabbitMQBroker:
    """Configure the adapter for the script."""
    return RabbitMQBroker(script.url, **settings)


async def deliver(script: ScriptedBroker, *numbers: int) -> None:
    """Deliver messages with these delivery tags, which are also their bodies."""
    for number in numbers:
        event = make_event(str(number).encode())
        await script.deliver(number, "t", [event.data], headers=binary_headers(event))


@pytest.mark.parametrize("chunk", [0, 1, 13])
async def test_bodies_in_any_pieces_are_put_together(script: ScriptedBroker, chunk: int) -> None:
    """No body, one frame, many frames, the last as large as what remained: each comes out whole, at any byte split."""
    script.chunk = chunk
    pieces: list[list[bytes]] = [[], [b"a"], [b"ab", b"ab"], [b"abc", b"d"], [b"a", b"bcd"], [b"x"] * 20]
    async with connect(script).subscribe(QUEUE, prefetch=10) as subscription:
        for tag, bodies in enumerate(pieces, 1):
            await script.deliver(tag, f"topic.{tag}", bodies, message_id=f"m{tag}")
        deliveries = await take(subscription, len(pieces))
        assert [event_of(delivery).data for delivery in deliveries] == [b"".join(bodies) for bodies in pieces]
        assert [delivery.topic for delivery in deliveries] == [f"topic.{tag}" for tag in range(1, 7)]
        assert [delivery.size for delivery in deliveries] == [0, 1, 4, 4, 4, 20]


async def test_properties_that_break_the_layout_are_malformed_and_the_next_is_read(script: ScriptedBroker) -> None:
    """A header frame nobody can read costs its own message only, and that one keeps its body."""
    async with connect(script).subscribe(QUEUE, prefetch=10) as subscription:
        broken = bytes((0, 60, 0, 0)) + (3).to_bytes(8, "big") + b"\x20\x00" + b"\xff\xff\xff\xff"
        await script.send(commands.Basic.Deliver("sagapost", 1, False, "sagapost", "t"))
        await script.send_bytes(frame(2, script.channel, broken) + frame(3, script.channel, b"abc"))
        await deliver(script, 2)
        bad, good = await take(subscription, 2)
        assert isinstance(bad.content, Malformed)
        assert "properties cannot be read" in bad.content.reason
        assert bad.content.body == b"abc"
        assert numbers([good]) == [2]


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return a frame."""
    return bytes((kind,)) + channel.to_bytes(2, "big") + len(payload).to_bytes(4, "big") + payload + b"\xce"


async def test_acks_are_grouped_without_touching_what_is_unsettled(script: ScriptedBroker) -> None:
    """One frame covers a run from the oldest; behind a gap each delivery gets its own."""
    async with connect(script).subscribe(QUEUE, prefetch=10) as subscription:
        await deliver(script, *range(1, 9))
        one, two, three, four, five, six, seven, eight = await take(subscription, 8)
        await subscription.ack(two, one, four, six)
        await subscription.ack(five, seven)
        await subscription.ack(three)
        await subscription.ack(eight)
        await script.heard_settling(7)
        assert [(ack.delivery_tag, ack.multiple) for ack in script.settled] == [
            (4, False),
            (6, False),
            (2, True),
            (5, False),
            (7, False),
            (3, True),
            (8, True),
        ]


async def test_each_way_of_settling_has_its_method(script: ScriptedBroker) -> None:
    """Failure is basic.reject, giving back untouched is basic.nack: newer brokers count only the former."""
    async with connect(script).subscribe(QUEUE, prefetch=10) as subscription:
        await deliver(script, 1, 2, 3)
        one, two, three = await take(subscription, 3)
        await subscription.reject(one, requeue=True)
        await subscription.reject(two, requeue=False)
        await subscription.release(three)
        await script.heard_settling(3)
        assert [(type(f), f.delivery_tag, f.requeue) for f in script.settled] == [
            (commands.Basic.Reject, 1, True),
            (commands.Basic.Reject, 2, False),
            (commands.Basic.Nack, 3, True),
        ]


async def test_a_delivery_is_settled_where_it_was_received(script: ScriptedBroker) -> None:
    """Tags start over on every connection: settling an old delivery on a new one would hit another message."""
    async with connect(script).subscribe(QUEUE, prefetch=10) as subscription:
        await deliver(script, 1)
        (old,) = await take(subscription, 1)
    async with connect(script).subscribe(QUEUE, prefetch=10) as subscription:
        await deliver(script, 1)
        await take(subscription, 1)
        with pytest.raises(ValueError, match="another subscription"):
            await subscription.ack(old)


async def test_a_cancelled_consumer_is_told(script: ScriptedBroker) -> None:
    """The broker cancels a consumer when its queue goes: iteration and settling end with what happened."""
    async with connect(script).subscribe(QUEUE, prefetch=10) as subscription:
        await deliver(script, 1)
        (one,) = await take(subscription, 1)
        await script.send(commands.Basic.Cancel("sagapost", True))
        with pytest.raises(BrokerUnavailableError, match="cancelled the consumer"):
            await take(subscription, 1)
        with pytest.raises(BrokerUnavailableError, match="cancelled the consumer"):
            await subscription.ack(one)


async def test_a_channel_closed_over_an_unacked_delivery_says_why(script: ScriptedBroker) -> None:
    """The broker's consumer timeout closes the channel: retried, and the broker's words are shown."""
    text = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out"
    async with connect(script).subscribe(QUEUE, prefetch=10) as subscription:
        await script.send(commands.Channel.Close(406, text, 0, 0))
        with pytest.raises(BrokerUnavailableError, match="timed out"):
            await take(subscription, 1)


@pytest.mark.parametrize("queue", [QUEUE, ORDERED])
async def test_stop_cancels_only_where_order_is_not_at_stake(script: ScriptedBroker, queue: Queue) -> None:
    """An ordered consumer stays the active one until it closes, or its successor would overtake what is in flight."""
    script.mute.add("Basic.Cancel")
    async with connect(script, connect_timeout=timedelta(seconds=1)).subscribe(queue, prefetch=10) as subscription:
        await deliver(script, 1, 2)
        (one,) = await take(subscription, 1)
        started = anyio.current_time()
        await subscription.stop()
        if queue.ordered:
            await deliver(script, 3)
            await subscription.ack(one)
            assert numbers([delivery async for delivery in subscription]) == [2]
        else:
            assert 0.9 < anyio.current_time() - started < 5
            with pytest.raises(BrokerUnavailableError, match="did not answer the cancelling"):
                await take(subscription, 1)


async def test_stop_survives_cancellation(script: ScriptedBroker) -> None:
    """Cancelled while it waits for the broker's answer, the channel stays whole: what is in flight can be acked."""
    async with connect(script).subscribe(QUEUE, prefetch=10) as subscription:
        await deliver(script, 1)
        (one,) = await take(subscription, 1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await subscription.stop()
        await subscription.ack(one)
        await script.heard_settling(1)
        assert [delivery async for delivery in subscription] == []


def number_of(delivery: Delivery) -> int:
    """Return the message id, which a digest of the content follows: these name no application."""
    return int(event_of(delivery).id.partition(":")[0])


async def test_a_slow_consumer_stops_the_reading_not_the_connection(script: ScriptedBroker) -> None:
    """Past the byte limit nothing more is read, so memory is bounded; heartbeats do not end it, and all arrives."""
    broker = connect(script, max_buffered_bytes=100_000, heartbeat=timedelta(seconds=1))
    async with broker.subscribe(QUEUE, prefetch=2000) as subscription:
        body, count = b"x" * 4000, 1000

        async def flood() -> None:
            for tag in range(1, count + 1):
                await script.deliver(tag, "t", [body], message_id=str(tag))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood)
            # Longer than the driver would stand without a frame, and than two heartbeats.
            await anyio.sleep(7)
            assert isinstance(subscription, RabbitMQSubscription)
            assert 100_000 < subscription.buffered < 100_000 + 300_000
            got = await take(subscription, count)
            assert [number_of(delivery) for delivery in got] == list(range(1, count + 1))


async def test_stop_reads_on_past_the_byte_limit(script: ScriptedBroker) -> None:
    """The broker's answer to the cancelling lies behind what was not read: `stop` must not wait for itself."""
    broker = connect(script, max_buffered_bytes=10_000)
    async with broker.subscribe(QUEUE, prefetch=2000) as subscription:
        for tag in range(1, 200):
            await script.deliver(tag, "t", [b"x" * 4000], message_id=str(tag))
        with anyio.fail_after(5):
            await subscription.stop()
            got = [delivery async for delivery in subscription]
        assert [number_of(delivery) for delivery in got] == list(range(1, len(got) + 1))


async def test_counts_come_from_whichever_header_the_broker_has(script: ScriptedBroker) -> None:
    """RabbitMQ 4.3 counts what it handed out, earlier quorum queues what came back, classic queues neither."""
    async with connect(script).subscribe(QUEUE, prefetch=10) as subscription:
        await script.deliver(1, "t", [], message_id="1", headers={"x-delivery-count": 2})
        await script.deliver(2, "t", [], message_id="2", headers={"x-delivery-count": 2, "x-acquired-count": 5})
        await script.deliver(3, "t", [], message_id="3", headers={"x-delivery-count": "many"})
        await script.send(commands.Basic.Deliver("sagapost", 4, True, "sagapost", "t"))
        await script.send_bytes(frame(2, script.channel, bytes((0, 60, 0, 0)) + bytes(10)))
        assert [delivery.delivery_count for delivery in await take(subscription, 4)] == [2, 5, 0, 1]
