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
from sagapost.core.broker import Confirmation, Confirmed, Outgoing, Publisher, Rejected, Returned, Unknown
from sagapost.core.errors import BrokerUnavailableError
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
        first = await publisher.send(outgoing("t", 1))
        await script.received(1)
        await script.ack(1)
        await answers(first)
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


# --- refusals of one message ---

NO_RIGHT = commands.Channel.Close(403, "ACCESS_REFUSED - no right", 60, 40)
TOO_LARGE = commands.Channel.Close(406, "PRECONDITION_FAILED - message size", 60, 40)


async def connected(script: ScriptedBroker, publisher: Publisher, topic: str = "t") -> None:
    """Send the first message over a route, so that it counts as open."""
    confirmation = await publisher.send(outgoing(topic, 0))
    await script.received(1)
    await script.ack(1)
    assert await answers(confirmation) == [Confirmed()]
    script.published.clear()
    script.tried.clear()


async def confirmed_after(
    script: ScriptedBroker, arrived: int, tag: int, *confirmations: Confirmation
) -> list[object]:
    """Wait for the results; once so many messages have arrived, the broker confirms all up to a tag."""
    results: list[object] = []

    async def confirm() -> None:
        await script.received(arrived)
        await script.ack(tag, multiple=True)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(confirm)
        for confirmation in confirmations:
            results += await answers(confirmation)
    return results


async def test_a_route_without_a_right_is_found_before_anything_is_sent_over_it(script: ScriptedBroker) -> None:
    """Its messages are rejected with the broker's words; the others go out once, on the channel that was there."""
    (good, later), bad = outgoing("t", 1, 2), outgoing("forbidden", 3, 4)
    script.refused = {message.event.id: NO_RIGHT for message in bad}
    async with connect(script).publisher() as publisher:
        for attempt in (1, 2):
            script.published.clear()
            confirmation = await publisher.send([good, *bad, later])
            await script.received(2)
            await script.ack(2 * attempt, multiple=True)
            results = await answers(confirmation)
            said = Rejected("403 ACCESS_REFUSED - no right")
            assert results == [Confirmed(), said, said, Confirmed()]
            assert script.published == [good.event.id, later.event.id]
        # One message of the route was asked about each time, the other one is like it.
        assert script.tried == [good.event.id, bad[0].event.id, bad[0].event.id]
        script.refused.clear()
        confirmation = await publisher.send(bad)
        await script.received(4)
        await script.ack(6, multiple=True)
        assert await answers(confirmation) == [Confirmed(), Confirmed()]


async def test_a_right_taken_away_costs_one_repetition_of_what_was_unanswered(script: ScriptedBroker) -> None:
    """Several refused in several batches: each is found, and the others come again once, in order, same connection."""
    async with connect(script).publisher() as publisher:
        await connected(script, publisher)
        first, second = outgoing("t", *range(5)), outgoing("t", *range(5, 10))
        script.refused = {first[2].event.id: TOO_LARGE, second[4].event.id: TOO_LARGE}
        pending = [await publisher.send(first), await publisher.send(second)]
        await script.received(3)
        kept = [message.event.id for message in (*first, *second) if message.event.id not in script.refused]
        results = await confirmed_after(script, 3 + len(kept), len(kept), *pending)
        assert [type(result) for result in results] == [Rejected if n in {2, 9} else Confirmed for n in range(10)]
        assert script.published == [message.event.id for message in first[:3]] + kept
        assert script.connections == 1
        assert publisher.max_message_bytes == 0


async def test_what_follows_a_refused_message_under_its_key_waits_behind_it(script: ScriptedBroker) -> None:
    """Sent on, it would overtake; keys without a refused message go on."""
    async with connect(script).publisher() as publisher:
        await connected(script, publisher)
        batch = [Outgoing(make_event(key=key), "t") for key in ("a", "b", "a", "b", "a")]
        script.refused = {batch[2].event.id: TOO_LARGE}
        confirmation = await publisher.send(batch)
        results = await confirmed_after(script, 3 + 3, 3, confirmation)
        assert [type(result) for result in results] == [Confirmed, Confirmed, Rejected, Confirmed, Rejected]
        assert "earlier event of its key" in getattr(results[4], "reason", "")


async def test_answers_from_before_the_channel_closed_stand(script: ScriptedBroker) -> None:
    """What was confirmed, returned or refused by number is not sent again."""
    async with connect(script).publisher() as publisher:
        await connected(script, publisher)
        batch = outgoing("t", *range(4))
        confirmation = await publisher.send(batch)
        await script.received(4)
        await script.ack(2)
        await script.return_message(batch[1].event.id, exchange="sagapost", topic="t")
        await script.nack(4)
        bad = outgoing("t", 9)
        script.refused = {bad[0].event.id: NO_RIGHT}
        refused = await publisher.send(bad)
        await script.received(5)
        script.refused = {}
        results = await confirmed_after(script, 5 + 2, 2, confirmation, refused)
        assert [type(result) for result in results] == [Confirmed, Returned, Rejected, Confirmed, Confirmed]
        assert script.published[5:] == [batch[3].event.id, bad[0].event.id]


async def test_a_refusal_that_no_trial_can_repeat_ends_the_publisher(script: ScriptedBroker) -> None:
    """Where the broker refuses what it takes when tried, the repetitions are counted: no storm of duplicates."""
    script.takes_trials = True
    async with connect(script).publisher() as publisher:
        await connected(script, publisher)
        batch = outgoing("t", *range(3))
        script.refused = {batch[2].event.id: NO_RIGHT}
        assert [type(r) for r in await answers(await publisher.send(batch))] == [Unknown] * 3
        with pytest.raises(BrokerUnavailableError, match="takes each when it is tried alone"):
            await publisher.send(batch)
    assert len(script.published) == 3 * 3


async def test_an_inquiry_is_taken_up_by_the_next_who_waits(script: ScriptedBroker) -> None:
    """Cancelling who looks into a closed channel leaves it to the next one, with the same result."""
    async with connect(script).publisher() as publisher:
        await connected(script, publisher)
        batch = outgoing("t", *range(3))
        script.refused = {batch[1].event.id: NO_RIGHT, batch[2].event.id: TOO_LARGE}
        confirmation = await publisher.send(batch)
        await script.received(2)
        script.stop_reading()
        with anyio.move_on_after(0.2) as impatient:
            await confirmation.wait()
        assert impatient.cancelled_caught
        script.read_again()
        assert [type(result) for result in await answers(confirmation)] == [Rejected] * 3
        assert script.connections == 1


async def test_a_connection_lost_during_an_inquiry_leaves_the_rest_unknown(script: ScriptedBroker) -> None:
    """Whoever waits learns of it although no channel was open, and so does the watch."""
    async with connect(script).publisher() as publisher:
        await connected(script, publisher)
        batch = outgoing("t", *range(3))
        script.refused = {batch[1].event.id: NO_RIGHT}
        confirmation = await publisher.send(batch)
        await script.received(2)
        script.mute.add("Channel.Open")
        opened = script.opened
        async with anyio.create_task_group() as tasks:

            async def cut() -> None:
                await until(lambda: script.opened > opened)
                script.cut()

            tasks.start_soon(cut)
            assert [type(result) for result in await answers(confirmation)] == [Unknown] * 3
        with pytest.raises(BrokerUnavailableError), anyio.fail_after(5):
            await publisher.until_lost()


async def test_a_broker_that_blocks_is_not_asked(script: ScriptedBroker) -> None:
    """Under an alarm a first message is written without a trial: `send` does not wait for the end of the alarm."""
    async with connect(script).publisher() as publisher:
        script.mute.add("Tx.Rollback")
        sent: list[Confirmation] = []
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                sent.append(await publisher.send(outgoing("t", 1)))

            tasks.start_soon(send)
            await until(lambda: bool(script.tried))
            await script.block()
        await script.received(1)
        sent.append(await publisher.send(outgoing("u", 2)))
        await script.received(2)
        await script.unblock()
        await script.ack(2, multiple=True)
        assert [await answers(confirmation) for confirmation in sent] == [[Confirmed()]] * 2


async def test_a_broker_without_transactions_is_asked_once(script: ScriptedBroker) -> None:
    """It ends the connection over the question; the next publisher does without."""
    broker = connect(script)
    script.unknown.add("Tx.Select")
    async with broker.publisher() as publisher:
        with pytest.raises(BrokerUnavailableError):
            await publisher.send(outgoing("t", 1))
    async with broker.publisher() as publisher:
        confirmation = await publisher.send(outgoing("t", 1))
        await script.received(1)
        await script.ack(1)
        assert await answers(confirmation) == [Confirmed()]


async def test_a_size_that_was_refused_is_asked_about_until_it_goes_through(script: ScriptedBroker) -> None:
    """The broker's limit is learned from its refusal, holds for every publisher, and is forgotten when it rises."""
    broker = connect(script)
    small, large = outgoing("t", 1)[0], Outgoing(make_event(b"x" * 5000), "t")
    script.refused = {large.event.id: TOO_LARGE}
    async with broker.publisher() as publisher:
        await connected(script, publisher)
        confirmation = await publisher.send([small, large])
        results = await confirmed_after(script, 3, 1, confirmation)
        assert [type(result) for result in results] == [Confirmed, Rejected]
        assert publisher.max_message_bytes == 4999
    async with broker.publisher() as publisher:
        script.published.clear()
        assert [type(result) for result in await answers(await publisher.send([large]))] == [Rejected]
        script.refused.clear()
        confirmation = await publisher.send([large, small])
        await script.received(2)
        await script.ack(2, multiple=True)
        assert await answers(confirmation) == [Confirmed(), Confirmed()]
        assert publisher.max_message_bytes == 16 * 1024 * 1024


async def test_an_exchange_that_was_deleted_ends_the_publisher(script: ScriptedBroker) -> None:
    """Not the message is at fault: opening a publisher again declares the exchange."""
    async with connect(script).publisher() as publisher:
        await connected(script, publisher)
        batch = outgoing("t", 1)
        script.refused = {batch[0].event.id: commands.Channel.Close(404, "NOT_FOUND", 60, 40)}
        assert [type(result) for result in await answers(await publisher.send(batch))] == [Unknown]
        with pytest.raises(BrokerUnavailableError, match="was deleted"):
            await publisher.send(batch)


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
