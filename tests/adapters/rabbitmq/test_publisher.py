"""The publisher against a broker that follows a script: every kind of answer, and none."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import anyio
import pytest
from pamqp import commands

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.adapters.rabbitmq.publisher import RabbitMQPublisher
from sagapost.core.broker import Confirmed, Outgoing, Rejected, Returned, Unknown
from sagapost.core.errors import BrokerRefusedError, BrokerUnavailableError
from tests.adapters.rabbitmq.scripted import ScriptedBroker, scripted_broker
from tests.conformance.broker import answers, make_event, outgoing, until

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture
async def script() -> AsyncGenerator[ScriptedBroker]:
    """A scripted broker."""
    async with scripted_broker() as broker:
        yield broker


def connect(script: ScriptedBroker, **settings: Any) -> RabbitMQBroker:
    """Configure the adapter for the script."""
    return RabbitMQBroker(script.url, **settings)


@pytest.mark.parametrize("chunk", [0, 1, 7, 30])
async def test_answers_in_any_shape_reach_their_messages(script: ScriptedBroker, chunk: int) -> None:
    """Single, multiple and negative confirms and returns, split at any byte, hit exactly theirs."""
    script.chunk = chunk
    async with connect(script).publisher() as publisher:
        batch = outgoing("t", *range(6))
        first, second = await publisher.send(batch[:4]), await publisher.send(batch[4:])
        await script.received(6)
        assert script.published == [message.event.id for message in batch]
        await script.ack(3)
        await script.return_message(batch[1].event.id, exchange="sagapost", topic="t", body=b"x" * 50)
        await script.nack(1)
        await script.ack(5)
        await script.ack(4, multiple=True)
        assert await answers(first) == [
            Rejected("the broker answered with a negative confirm: a queue is full or failed to take it"),
            Returned("312 NO_ROUTE"),
            Confirmed(),
            Confirmed(),
        ]
        await script.ack(6)
        assert await answers(second) == [Confirmed(), Confirmed()]


async def test_a_cut_leaves_exactly_the_unanswered_unknown(script: ScriptedBroker) -> None:
    """What the broker answered before the connection broke stands; the rest may or may not have been published."""
    async with connect(script).publisher() as publisher:
        batch = outgoing("t", *range(10))
        first, second = await publisher.send(batch[:5]), await publisher.send(batch[5:])
        await script.received(10)
        await script.ack(2, multiple=True)
        await script.return_message(batch[3].event.id, exchange="sagapost", topic="t")
        await script.nack(5)
        await script.ack(8)
        assert isinstance(publisher, RabbitMQPublisher)
        await until(lambda: publisher.in_flight <= 6)
        script.cut()
        assert [type(result) for result in await answers(first)] == [Confirmed, Confirmed, Unknown, Returned, Rejected]
        assert [type(result) for result in await answers(second)] == [Unknown, Unknown, Confirmed, Unknown, Unknown]
        with pytest.raises(BrokerUnavailableError, match="lost"):
            await publisher.send(batch)


async def test_a_batch_without_an_answer_times_out_and_closes_the_publisher(script: ScriptedBroker) -> None:
    """The time limit ends every wait; the publisher is closed, since nothing is known about what follows."""
    broker = connect(script, confirm_timeout=timedelta(milliseconds=200))
    async with broker.publisher() as publisher:
        batch = outgoing("t", *range(4))
        first, second = await publisher.send(batch[:2]), await publisher.send(batch[2:])
        await script.received(4)
        await script.ack(1)
        await script.ack(3)
        results = [*await answers(first), *await answers(second)]
        assert [type(result) for result in results] == [Confirmed, Unknown, Confirmed, Unknown]
        assert "did not confirm" in getattr(results[1], "reason", "")
        with pytest.raises(BrokerUnavailableError, match="did not confirm"):
            await publisher.send(batch)


async def test_time_limits_stand_still_while_the_broker_blocks(script: ScriptedBroker) -> None:
    """Under a resource alarm the broker answers nothing and takes everything later: giving up would double it."""
    broker = connect(script, confirm_timeout=timedelta(milliseconds=300))
    async with broker.publisher() as publisher:
        confirmation = await publisher.send(outgoing("t", 1))
        await script.received(1)
        await script.block()
        with anyio.move_on_after(1.0) as waited:
            await confirmation.wait()
        assert waited.cancelled_caught
        assert publisher.blocked
        await script.unblock()
        await script.ack(1)
        assert await answers(confirmation) == [Confirmed()]
        assert not publisher.blocked


async def test_time_limits_go_on_after_the_broker_unblocks(script: ScriptedBroker) -> None:
    """A block does not switch the limit off for good."""
    broker = connect(script, confirm_timeout=timedelta(milliseconds=300))
    async with broker.publisher() as publisher:
        confirmation = await publisher.send(outgoing("t", 1))
        await script.received(1)
        await script.block()
        await script.unblock()
        assert [type(result) for result in await answers(confirmation)] == [Unknown]


async def test_a_broker_that_takes_nothing_in_ends_the_send(script: ScriptedBroker) -> None:
    """A peer that stops reading fills the buffers; writing is given up within the time limit."""
    broker = connect(script, confirm_timeout=timedelta(milliseconds=300))
    async with broker.publisher() as publisher:
        script.stop_reading()
        large = [Outgoing(make_event(b"x" * 1_000_000), "t") for _ in range(16)]
        with anyio.fail_after(10), pytest.raises(BrokerUnavailableError, match=r"took in nothing|did not confirm"):
            await publisher.send(large)


async def test_a_silent_broker_is_given_up_after_two_heartbeats(script: ScriptedBroker) -> None:
    """A half-open link is noticed by its silence alone, while the client's own heartbeats keep going out."""
    broker = connect(script, heartbeat=timedelta(seconds=1))
    async with broker.publisher() as publisher:
        confirmation = await publisher.send(outgoing("t", 1))
        started = anyio.current_time()
        assert [type(result) for result in await answers(confirmation)] == [Unknown]
        assert 1.9 <= anyio.current_time() - started <= 4
        assert script.heartbeats >= 1
        with pytest.raises(BrokerUnavailableError, match="silent for 2 s"):
            await publisher.send(outgoing("t", 2))


async def test_answers_count_as_signs_of_life(script: ScriptedBroker) -> None:
    """A broker that sends confirms but no heartbeats is alive: neither our watch nor the driver's gives it up."""
    broker = connect(script, heartbeat=timedelta(seconds=1))
    async with broker.publisher() as publisher:
        # The driver's own limit is 3 x (heartbeat + 1) = 6 s without a frame.
        for tag in range(1, 27):
            confirmation = await publisher.send(outgoing("t", tag))
            await script.received(tag)
            await script.ack(tag)
            assert await answers(confirmation) == [Confirmed()]
            await anyio.sleep(0.3)


async def test_a_return_that_matches_nothing_ends_the_publisher(script: ScriptedBroker) -> None:
    """Its ack would pass for success: better unknown than wrong."""
    async with connect(script).publisher() as publisher:
        confirmation = await publisher.send(outgoing("t", 1))
        await script.received(1)
        await script.return_message(None, exchange="sagapost", topic="t")
        await script.ack(1)
        assert [type(result) for result in await answers(confirmation)] == [Unknown]
        with pytest.raises(BrokerUnavailableError, match="could not be matched"):
            await publisher.send(outgoing("t", 2))


async def test_a_message_over_the_brokers_own_limit_is_learned_from(script: ScriptedBroker) -> None:
    """The broker closes the channel over it without saying which: the largest goes first, and no loop follows."""
    broker = connect(script)
    small, large = outgoing("t", 1)[0], Outgoing(make_event(b"x" * 5000), "t")
    async with broker.publisher() as publisher:
        confirmation = await publisher.send([small, large, small])
        await script.received(3)
        await script.send(commands.Channel.Close(406, "PRECONDITION_FAILED - message size 5000", 60, 40))
        assert [type(result) for result in await answers(confirmation)] == [Unknown] * 3
    async with broker.publisher() as publisher:
        assert publisher.max_message_bytes == 4999
        confirmation = await publisher.send([large, small])
        await script.received(4)
        await script.ack(1)
        assert [type(result) for result in await answers(confirmation)] == [Rejected, Confirmed]


async def test_a_lack_of_permission_is_not_taken_for_an_outage(script: ScriptedBroker) -> None:
    """A channel closed with 403 says so to the next send: a person must act, trying again does not help."""
    async with connect(script).publisher() as publisher:
        confirmation = await publisher.send(outgoing("t", 1))
        await script.received(1)
        await script.send(commands.Channel.Close(403, "ACCESS_REFUSED", 60, 40))
        assert [type(result) for result in await answers(confirmation)] == [Unknown]
        with pytest.raises(BrokerRefusedError, match="permissions"):
            await publisher.send(outgoing("t", 2))


async def test_bytes_that_are_no_frames_end_the_connection(script: ScriptedBroker) -> None:
    """Garbage from the peer ends in an error of the port, not in a hanging wait."""
    async with connect(script).publisher() as publisher:
        confirmation = await publisher.send(outgoing("t", 1))
        await script.received(1)
        await script.send_bytes(b"\x01\x00\x01\x00\x00\x00\x01\x00\x00" * 3)
        assert [type(result) for result in await answers(confirmation)] == [Unknown]


async def test_a_cancelled_send_leaves_the_numbers_right(script: ScriptedBroker) -> None:
    """Cancelled before anything is written, a batch takes no numbers; the next one's answers are its own."""
    async with connect(script).publisher() as publisher:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await publisher.send(outgoing("t", *range(50)))
        confirmation = await publisher.send(outgoing("t", 1, 2))
        await script.received(2)
        await script.ack(1)
        await script.nack(2)
        assert [type(result) for result in await answers(confirmation)] == [Confirmed, Rejected]


@pytest.mark.parametrize("step", ["Connection.StartOk", "Connection.Open", "Channel.Open", "Exchange.Declare"])
async def test_a_broker_that_stops_answering_while_connecting(script: ScriptedBroker, step: str) -> None:
    """Each step of setting up is bounded by the connect timeout, and leaves nothing behind."""
    script.mute.add(step)
    broker = connect(script, connect_timeout=timedelta(milliseconds=200))
    started = anyio.current_time()
    with pytest.raises(BrokerUnavailableError) as caught:
        async with broker.publisher():
            pass
    assert anyio.current_time() - started < 8
    assert "s3cr3t-pass" not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize("step", ["Connection.StartOk", "Channel.Open", "Exchange.Declare"])
async def test_cancelling_a_connection_attempt_ends_it(script: ScriptedBroker, step: str) -> None:
    """A scope that is cancelled while connecting ends soon, as a cancellation and not as an error."""
    script.mute.add(step)
    with anyio.fail_after(10), anyio.move_on_after(0.2) as scope:
        async with connect(script).publisher():
            pytest.fail("the broker did not answer, yet a publisher was opened")
    assert scope.cancelled_caught
