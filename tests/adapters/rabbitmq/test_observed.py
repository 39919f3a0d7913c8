"""Copies for observers: which messages have one, and that nothing that happens to them disturbs the messages."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from datetime import timedelta

import aiormq
import anyio
import pytest
from pamqp import commands

from sagapost.adapters.rabbitmq import RabbitMQBroker, observed
from sagapost.core.broker import Confirmation, Confirmed, Outgoing, Publisher, Queue, Returned, Unknown
from tests.adapters.rabbitmq.scripted import ScriptedBroker, scripted_broker
from tests.adapters.rabbitmq.users import Users
from tests.conformance.broker import answers, make_event, numbers, outgoing, publish, take, word

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture
async def script() -> AsyncGenerator[ScriptedBroker]:
    """A scripted broker with an exchange for observers."""
    async with scripted_broker() as broker:
        broker.observed = True
        yield broker


async def send(script: ScriptedBroker, publisher: Publisher, batch: list[Outgoing]) -> Confirmation:
    """Send a batch, and have its messages confirmed, but none of the copies."""
    before = len(script.published)
    sent = await publisher.send(batch)
    await script.received(before + len(batch))
    await script.ack(len(script.published), multiple=True)
    return sent


# --- what is copied ---


async def test_a_batch_is_done_once_its_copies_are(script: ScriptedBroker) -> None:
    """Each message is followed by its copy; the row stays until both are confirmed."""
    async with RabbitMQBroker(script.url).publisher() as publisher:
        batch = [*outgoing("t", 1, 2), Outgoing(make_event(), "t", destination="elsewhere")]
        sent = await send(script, publisher, batch)
        await script.received_copies(2)
        assert script.copied == [message.event.id for message in batch[:2]]
        with anyio.move_on_after(0.1) as early:
            await sent.wait()
        assert early.cancelled_caught
        await script.send(commands.Basic.Ack(2, True), channel=script.copies_channel)
        assert await answers(sent) == [Confirmed()] * 3


async def test_a_topic_nobody_observes_is_left_alone(script: ScriptedBroker) -> None:
    """Once a copy was returned there are no more of its topic, until one is tried again."""
    async with RabbitMQBroker(script.url).publisher() as publisher:
        for n in range(3):
            batch = outgoing("t", n)
            sent = await send(script, publisher, batch)
            if n == 0:
                await script.received_copies(1)
                (message,) = batch
                # As the broker has it: the return first, then the confirm.
                await script.return_message(
                    message.event.id, exchange="sagapost.observed", topic="t", channel=script.copies_channel
                )
                await script.send(commands.Basic.Ack(1, False), channel=script.copies_channel)
            assert await answers(sent) == [Confirmed()]
        assert len(script.copied) == 1


async def test_an_observer_that_comes_later_is_found(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Topics that nobody observed are tried again, one copy each; from then on nothing is missing."""
    monkeypatch.setattr(observed, "_PROBE_EVERY", 0.05)
    topic = word()
    broker = RabbitMQBroker(amqp_url, exchange=word())
    await broker.declare(Queue(word(), frozenset({topic})))
    watcher = Queue(word(), frozenset({topic}), observer=True)
    async with broker.publisher() as publisher:
        await publish(publisher, topic, 0)
        async with broker.subscribe(watcher, prefetch=100) as subscription, anyio.create_task_group() as tasks:
            found: list[int] = []

            async def watch() -> None:
                found.extend(numbers(await take(subscription, 1)))

            tasks.start_soon(watch)
            with anyio.fail_after(20):
                n = 0
                while not found:
                    n += 1
                    await publish(publisher, topic, n)
            await publish(publisher, topic, *range(n + 1, n + 50))
            seen = found[:]
            while seen[-1] != n + 49:
                seen += numbers(await take(subscription, 1))
            assert seen[-49:] == list(range(n + 1, n + 50))
            assert len(set(seen)) == len(seen)


async def test_large_and_empty_bodies_are_copied_whole(amqp_url: str) -> None:
    """A copy is made of the same bytes, in as many frames."""
    topic = word()
    broker = RabbitMQBroker(amqp_url, exchange=word())
    await broker.declare(Queue(word(), frozenset({topic})))
    bodies = [b"", b"x" * 10, bytes(range(256)) * 4096]
    watcher = Queue(word(), frozenset({"#"}), observer=True)
    async with broker.subscribe(watcher, prefetch=10) as subscription, broker.publisher() as publisher:
        batch = [Outgoing(make_event(body), topic) for body in bodies]
        assert await answers(await publisher.send(batch)) == [Confirmed()] * 3
        assert [delivery.content for delivery in await take(subscription, 3)] == [message.event for message in batch]


async def test_topics_without_bound_do_not_double_what_is_published(
    script: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing is observed only so many new topics are tried in a second."""
    monkeypatch.setattr(observed, "_NEW_TOPICS", 3)
    monkeypatch.setattr(observed, "_PROBE_EVERY", 3600.0)
    async with RabbitMQBroker(script.url).publisher() as publisher:
        for n in range(10):
            await send(script, publisher, outgoing(f"t{n}", n))
    assert len(script.copied) == 3


# --- what happens to copies ---


async def test_copies_that_are_refused_disturb_nothing(
    amqp_url: str, user: Users, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the right to write to the observers' exchange messages flow, and the log says who gets nothing."""
    exchange, topic = word(), word()
    owner = RabbitMQBroker(amqp_url, exchange=exchange)
    await owner.declare(Queue(word(), frozenset({topic})), Queue(word(), frozenset({"#"}), observer=True))
    mine = RabbitMQBroker(await user(configure="^$", write=f"^{exchange}$", read="^$"), exchange=exchange)
    caplog.set_level(logging.WARNING, logger="sagapost.rabbitmq")
    async with mine.publisher() as publisher:
        await publish(publisher, topic, *range(20))
        await publish(publisher, topic, *range(20))
    (record,) = caplog.records
    assert f"observers get no copies of what is published to {exchange!r}" in record.getMessage()
    assert f"403 ACCESS_REFUSED - access to exchange '{exchange}.observed'" in record.getMessage()


async def test_an_exchange_of_observers_that_is_deleted_disturbs_nothing(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages flow on; the exchange is made again, and the observer that runs on gets copies again."""
    monkeypatch.setattr(observed, "_PROBE_EVERY", 0.05)
    exchange, topic = word(), word()
    broker = RabbitMQBroker(amqp_url, exchange=exchange)
    await broker.declare(Queue(word(), frozenset({topic})))
    watcher = Queue(word(), frozenset({"#"}), observer=True)
    await broker.declare(watcher)
    async with broker.publisher() as publisher:
        await publish(publisher, topic, 0)
        async with aiormq.Connection(amqp_url) as connection:
            channel = await connection.channel()
            await channel.exchange_delete(f"{exchange}.observed")
        for n in range(1, 10):
            await publish(publisher, topic, n)
        await broker.declare(watcher)
        with anyio.fail_after(20):
            n = 10
            while (await broker.depths(watcher.name))[0].messages == 1:
                await publish(publisher, topic, n)
                n += 1


async def test_copies_without_an_answer_hold_up_no_message_for_long(
    script: ScriptedBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue of an observer that does not answer costs its copies, for a while; the messages are confirmed."""
    monkeypatch.setattr(observed, "_GRACE", 0.05)
    caplog.set_level(logging.WARNING, logger="sagapost.rabbitmq")
    async with RabbitMQBroker(script.url).publisher() as publisher:
        for n in range(3):
            assert await answers(await send(script, publisher, outgoing("t", n))) == [Confirmed()]
    assert len(script.copied) == 1
    assert "no answer to a copy" in caplog.text


@pytest.mark.parametrize("how", ["cut", "silent"])
async def test_a_connection_lost_before_a_copy_is_confirmed_leaves_the_message_unknown(
    script: ScriptedBroker, how: str
) -> None:
    """It is published again under its id, so that observers miss nothing; what was returned stays so."""
    confirm = timedelta(seconds=0.5)
    async with RabbitMQBroker(script.url, confirm_timeout=confirm).publisher() as publisher:
        batch = outgoing("t", 1, 2)
        sent = await publisher.send(batch)
        await script.received_copies(2)
        await script.return_message(batch[0].event.id, exchange="sagapost", topic="t")
        await script.ack(2, multiple=True)
        with anyio.move_on_after(0.1):
            await sent.wait()
        if how == "cut":
            script.cut()
        else:
            await publisher.send(outgoing("t", 3))
        assert [type(result) for result in await answers(sent)] == [Returned, Unknown]
