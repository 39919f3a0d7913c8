"""What the relay promises, on a real PostgreSQL, with a broker that can be told to fail; and on a real RabbitMQ."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import anyio
import anyio.lowlevel
import anyio.to_thread
import asyncpg
import pytest

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Queue
from sagapost.outbox.relay import RelaySettings
from sagapost.outbox.relay import observations as obs
from sagapost.outbox.relay.settings import DeadLetterPolicy
from sagapost.outbox.tables import doorbell_channel
from tests.relay.shop import EVERYTHING, SOON, Shop, Watch, numbers, received, running
from tests.servers.fixtures import OwnRabbitMQ


async def test_a_late_commit_of_a_low_position_is_delivered(shop: Shop) -> None:
    """Pitfall 4: a transaction that drew its position first and commits last is not skipped, and stops nobody."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    async with running(shop.relay(broker, watch)), shop.engine.connect() as late:
        transaction = await late.begin()
        await shop.say_in(late, 1, key="late")
        await shop.say(2, 3, key="early")
        await watch.until(lambda: watch.settled == 2)
        await transaction.commit()
        await watch.until(lambda: watch.settled == 3)
    assert numbers(await received(broker, 3)) == [2, 3, 1]


async def test_a_transaction_left_open_elsewhere_holds_nothing_back(shop: Shop) -> None:
    """G8: one that has written and stays open neither delays delivery nor hides rows."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    async with shop.engine.connect() as other:
        await other.exec_driver_sql("CREATE TABLE elsewhere (x int)")
        await other.commit()
        await other.exec_driver_sql("INSERT INTO elsewhere VALUES (1)")
        async with running(shop.relay(broker, watch)):
            for batch in range(5):
                await shop.say(batch)
                expected = batch + 1
                await watch.until(lambda expected=expected: watch.settled == expected, within=3)  # type: ignore[misc]
        await other.rollback()


async def test_rows_restored_from_another_cluster_are_delivered(shop: Shop) -> None:
    """Pitfall 6: rows whose transaction id lies in the future of this cluster are published, not waited for."""
    await shop.say(1, 2)
    await shop.one("UPDATE outbox SET xid = '999999999999' RETURNING 1")
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    async with running(shop.relay(broker, watch)):
        await watch.until(lambda: watch.settled == 2)
    assert numbers(await received(broker, 2)) == [1, 2]


async def test_followers_of_an_unroutable_row_wait_and_others_flow(shop: Shop) -> None:
    """Pitfall 7: nobody listens to the second event of a key; the third and fourth wait, other keys do not notice."""
    broker, watch = MemoryBroker(), Watch()
    listening = Queue("listening", frozenset({"shop.said.v1"}))
    await broker.declare(listening)
    async with running(shop.relay(broker, watch)):
        await shop.say(1)
        await shop.say(2, type_="shop.whispered.v1")
        await shop.say(3, 4)
        await shop.say(10, 11, key="other")
        await watch.until(lambda: watch.count(obs.Held) >= 2 and watch.settled == 3)
        assert await shop.one("SELECT count(*) FROM outbox WHERE attempts > 0 AND last_error IS NOT NULL") == 1
        await broker.declare(Queue(listening.name, frozenset({"shop.said.v1", "shop.whispered.v1"})))
        await watch.until(lambda: watch.settled == 6)
    events = await received(broker, 6, listening)
    assert [n for n in numbers(events) if n < 10] == [1, 2, 3, 4]
    assert watch.count(obs.Overtaken) == 0


@pytest.mark.parametrize("serial", [True, False], ids=["serial_keys", "default"])
async def test_a_message_rejected_on_a_route_that_works(shop: Shop, *, serial: bool) -> None:
    """Pitfall 7: with `serial_keys` the followers of a rejected message wait on every route. By default those already
    on the wire of a proven route may pass it (ADR 0007): each is reported, and nothing is lost."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    rejecting = {True}
    broker.refuse(lambda event: event.data.decode() == '{"n":2}' and bool(rejecting))
    settings = RelaySettings(retry=SOON, serial_keys=serial, lease_ttl=timedelta(seconds=2))
    async with running(shop.relay(broker, watch, settings)):
        await shop.say(0)
        await watch.until(lambda: watch.settled == 1)
        await shop.say(1, 2, 3, 4)
        await watch.until(lambda: watch.count(obs.Held) >= 2)
        rejecting.clear()
        await watch.until(lambda: watch.settled == 5)
    order = numbers(await received(broker, 5))
    assert sorted(order) == [0, 1, 2, 3, 4]
    if serial:
        assert order == [0, 1, 2, 3, 4]
        assert watch.count(obs.Overtaken) == 0
    else:
        assert watch.count(obs.Overtaken) == sum(1 for n in order[: order.index(2)] if n > 2)


async def test_an_outage_of_the_broker_burns_no_attempts(shop: Shop) -> None:
    """Pitfall 12: a broker that is away is no refusal of any message."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    broker.go_down()
    await shop.say(1, 2)
    async with running(shop.relay(broker, watch)):
        await watch.until(lambda: watch.lost("broker") >= 5)
        assert await shop.one("SELECT sum(attempts) FROM outbox") == 0
        broker.come_up()
        await watch.until(lambda: watch.settled == 2)
    assert numbers(await received(broker, 2)) == [1, 2]


@pytest.mark.parametrize(
    ("policy", "published", "dead"),
    [("block", [10], 1), ("park", [10], 3), ("skip", [2, 3, 10], 1)],
)
async def test_followers_of_a_dead_letter_do_what_was_chosen(
    shop: Shop, policy: DeadLetterPolicy, published: list[int], dead: int
) -> None:
    """Pitfall 27: block, park and skip are explicit, and other keys flow under each."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    broker.refuse(lambda event: event.data.decode() == '{"n":1}')
    settings = RelaySettings(
        retry=SOON, max_attempts=2, on_dead=policy, lease_ttl=timedelta(seconds=2), poll_interval=timedelta(seconds=30)
    )
    async with running(shop.relay(broker, watch, settings)):
        await shop.say(1, 2, 3)
        await watch.until(lambda: watch.count(obs.Buried) == 1)
        await shop.say(10, key="other")
        await watch.until(lambda: watch.settled == len(published))
    assert sorted(numbers(await received(broker, len(published)))) == published
    assert await shop.one("SELECT count(*) FROM outbox_dead") == dead
    assert await shop.one("SELECT count(*) FROM outbox") == 4 - len(published) - dead


async def test_a_sleeping_relay_is_woken_by_the_commit_and_an_awake_one_is_not_rung(shop: Shop) -> None:
    """Pitfall 10: NOTIFY only for a relay that sleeps; with it, the poll interval does not matter."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    rings: list[object] = []
    listener = await asyncpg.connect(shop.dsn)

    def ring(*arguments: object) -> None:
        rings.append(arguments)

    await listener.add_listener(doorbell_channel(shop.tables.outbox), ring)
    async with running(shop.relay(broker, watch)):
        await watch.until(lambda: watch.count(obs.Idle) >= 1)
        await shop.say(1)
        await watch.until(lambda: watch.settled == 1, within=5)
        rang = len(rings)
        assert rang == 1
        for number in range(2, 30):
            await shop.say(number)
        await watch.until(lambda: watch.settled == 29)
        assert len(rings) <= rang + 1
    await listener.close()


async def test_partitions_are_shared_and_a_graceful_restart_of_each_relay_doubles_nothing(shop: Shop) -> None:
    """Two relays, each stopped and replaced under load: every event once, in order per key."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    total, keys = 600, 10
    async with anyio.create_task_group() as tasks:
        relays = [shop.relay(broker, watch), shop.relay(broker, watch)]
        for relay in relays:
            tasks.start_soon(relay.run)
        await watch.until(lambda: sorted(r.statistics.partitions for r in relays) == [16, 16])

        async def write() -> None:
            for number in range(total):
                await shop.say(number, key=f"key-{number % keys}")

        tasks.start_soon(write)
        for old in list(relays):
            stopped = watch.count(obs.RelayStopped)
            await watch.until(lambda: watch.settled > 50)
            old.stop()
            await watch.until(lambda stopped=stopped: watch.count(obs.RelayStopped) == stopped + 1)  # type: ignore[misc]
            successor = shop.relay(broker, watch)
            relays.append(successor)
            tasks.start_soon(successor.run)
        await watch.until(lambda: watch.settled == total, within=60)
        for relay in relays:
            relay.stop()
    events = await received(broker, total)
    assert Counter(numbers(events)).most_common(1)[0][1] == 1
    for key in range(keys):
        of_key = [n for n in numbers(events) if n % keys == key]
        assert of_key == sorted(of_key)
    assert not broker.waiting(EVERYTHING.name)


async def test_an_unroutable_message_stays_with_its_reason_and_flows_once_a_queue_is_bound(
    shop: Shop, amqp_url: str
) -> None:
    """Pitfall 1, on RabbitMQ: a message nobody is bound for is not published, whatever the broker confirms."""
    broker, watch = RabbitMQBroker(amqp_url), Watch()
    async with running(shop.relay(broker, watch)):
        await shop.say(1, 2)
        await watch.until(lambda: watch.count(obs.Held) >= 2)
        reason = await shop.one("SELECT last_error FROM outbox WHERE attempts > 0")
        assert "no queue is bound" in str(reason)
        assert watch.settled == 0
        await broker.declare(EVERYTHING)
        await watch.until(lambda: watch.settled == 2)
    assert numbers(await received(broker, 2)) == [1, 2]


async def test_no_transaction_is_open_while_the_broker_is_paused(shop: Shop, own_rabbitmq: OwnRabbitMQ) -> None:
    """Pitfall 9, on RabbitMQ: a broker that answers nothing leaves no transaction of the relay open."""
    server = await anyio.to_thread.run_sync(own_rabbitmq)
    broker, watch = RabbitMQBroker(server.amqp_url()), Watch()
    await broker.declare(EVERYTHING)
    async with running(shop.relay(broker, watch)):
        await shop.say(1)
        await watch.until(lambda: watch.settled == 1)
        await anyio.to_thread.run_sync(server.pause)
        try:
            await shop.say(*range(2, 200))
            await watch.until(lambda: sum(e.rows for e in watch.events if isinstance(e, obs.Sent)) == 199)
            open_ = """
                SELECT count(*) FROM pg_stat_activity
                WHERE application_name LIKE 'sagapost-%' AND datname = current_database()
                  AND (state LIKE 'idle in transaction%' OR xact_start IS NOT NULL AND state <> 'idle'
                       AND now() - xact_start > interval '2 seconds')"""
            # A look may meet a fetch of a millisecond; what waits for the broker would stay open until it resumes.
            with anyio.fail_after(10):
                while await shop.one(open_):
                    await anyio.lowlevel.checkpoint()
        finally:
            await anyio.to_thread.run_sync(server.resume)
        await watch.until(lambda: watch.settled == 199)
