"""`sagapost status` on real servers: what is not well is shown, with its reason, and ends `--check` with code 9."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Queue
from sagapost.inbox.operated.overview import inbox_overview
from sagapost.ops.settings import load_settings
from sagapost.ops.tables import tables_of
from sagapost.outbox import Outbox
from sagapost.outbox.overview import outbox_overview
from sagapost.sagas.counts import saga_counts, tracker_counts
from tests.conformance.broker import publish, take
from tests.ops.processes import invoke, run, started
from tests.ops.services import TYPE, OrderPlaced

Settings = dict[str, str]
NOWHERE = "amqp://guest:guest@127.0.0.1:1/"


@pytest.fixture
def settings(postgresql_url: str, amqp_url: str, tmp_path: Path) -> Settings:
    """An empty broker, and a database with the tables, a tracker's among them."""
    settings = {"SAGAPOST_DATABASE_URL": postgresql_url, "SAGAPOST_BROKER_URL": amqp_url}
    installed = invoke("db", "upgrade", "--tracker", cwd=tmp_path, **settings)
    assert installed.returncode == 0, installed.stderr
    return settings


def execute(settings: Settings, *statements: str) -> None:
    """Run statements on the database."""

    async def work() -> None:
        engine = create_async_engine(settings["SAGAPOST_DATABASE_URL"])
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))
        await engine.dispose()

    anyio.run(work)


def place(settings: Settings, *keys: str) -> list[str]:
    """Publish an event under each key, each in a transaction of its own; return their ids."""

    async def work() -> list[str]:
        engine = create_async_engine(settings["SAGAPOST_DATABASE_URL"])
        ids: list[str] = []
        for number, key in enumerate(keys):
            async with engine.begin() as connection:
                ids.append((await Outbox(source="urn:x").publish(connection, OrderPlaced(number), key=key)).id)
        await engine.dispose()
        return ids

    return anyio.run(work)


def document(settings: Settings, folder: Path) -> dict[str, Any]:
    """Return what `status --json` writes."""
    ran = invoke("status", "--json", cwd=folder, **settings)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def codes(settings: Settings, folder: Path, *options: str) -> list[str]:
    """Return the codes of what is not well; `--check` agrees by its exit code, and has a line for each."""
    found = json.loads(invoke("status", "--json", *options, cwd=folder, **settings).stdout)
    ran = invoke("status", "--check", *options, cwd=folder, **settings)
    lines = ran.stdout.splitlines()
    assert ran.returncode == (9 if found["complaints"] else 0), ran.stdout + ran.stderr
    assert found["well"] is not bool(found["complaints"])
    assert [line.startswith("not well: ") for line in lines] == [True] * len(found["complaints"])
    return [complaint["code"] for complaint in found["complaints"]]


# --- relays and the broker ---


def test_a_relay_that_is_killed_is_missed_within_seconds_and_well_again_when_it_is_back(
    settings: Settings, tmp_path: Path
) -> None:
    """Alive and since when, its partitions; five seconds after SIGKILL it is silent, and `--check` says so."""
    assert codes(settings, tmp_path) == ["relays"]
    with started("relay", cwd=tmp_path, **settings) as relay:
        relay.wait_for("owns 32 partitions")
        # On a busy machine a heartbeat may be late, and the relay silent for a moment.
        began = time.monotonic()
        while not (seen := document(settings, tmp_path))["well"]:
            assert time.monotonic() - began < 60
        found = seen["relays"]
        (known,) = found["known"]
        assert (found["alive"], found["owned"], known["partitions"], known["silent"]) == (1, 32, 32, False)
        assert f"relay {known['relay']}\t" in invoke("status", cwd=tmp_path, **settings).stdout
        relay.send(signal.SIGKILL)
        relay.end()
        killed = time.monotonic()
        while invoke("status", "--check", cwd=tmp_path, **settings).returncode != 9:
            assert time.monotonic() - killed < 20
        print(f"missed {time.monotonic() - killed:.1f} s after it was killed")
        assert "the last sign of life was" in invoke("status", "--check", cwd=tmp_path, **settings).stdout
    assert codes(settings, tmp_path, "--min-relays", "0") == []


def test_events_wait_while_no_relay_lives_and_the_broker_is_away(settings: Settings, tmp_path: Path) -> None:
    """Each of the three is said in a line of its own, the topic with its age, the cause first."""
    place(settings, "a", "b")
    execute(settings, "UPDATE outbox SET time = time - interval '1 hour'")
    away = settings | {"SAGAPOST_BROKER_URL": NOWHERE}
    assert codes(away, tmp_path) == ["relays", "broker", "old-events"]
    said = invoke("status", "--check", cwd=tmp_path, **away).stdout
    assert "no relay is alive" in said
    assert "The broker at amqp://127.0.0.1:1/ cannot be reached" in said
    assert f"{TYPE}: the oldest of 2 events that wait is 1h" in said
    assert codes(away, tmp_path, "--max-age", "2h", "--min-relays", "0") == ["broker"]
    shown = invoke("status", cwd=tmp_path, **away).stdout
    assert f"topic {TYPE}\toldest\t1h" in shown
    assert "broker\treachable\tno\t" in shown


def test_a_password_that_the_broker_refuses_is_shown_nowhere(settings: Settings, tmp_path: Path) -> None:
    """What it said is, for it names what to look at."""
    wrong = make_url(settings["SAGAPOST_BROKER_URL"]).set(password="hunter2-hunter2")
    url = wrong.render_as_string(hide_password=False)
    ran = invoke("status", "--check", cwd=tmp_path, **settings | {"SAGAPOST_BROKER_URL": url})
    assert ran.returncode == 9
    assert "Check user, password, virtual host and permissions" in ran.stdout
    assert "hunter2" not in ran.stdout + ran.stderr


def test_a_database_that_is_away_ends_a_check_with_code_5(tmp_path: Path) -> None:
    """Nothing is known then, which is not the same as unwell."""
    ran = run("status", "--check", cwd=tmp_path, SAGAPOST_DATABASE_URL="postgresql://app@127.0.0.1:1/orders")
    assert ran.returncode == 5


# --- what is held, dead, parked, late ---


def test_a_held_event_is_shown_with_its_key_its_reason_and_what_waits_behind_it(
    settings: Settings, tmp_path: Path
) -> None:
    """No queue is bound for it: the relay says so in the row, and `status` to whoever asks."""
    first, *_ = place(settings, "order-b", "order-b", "order-b")
    with started("relay", cwd=tmp_path, **settings) as relay:
        relay.wait_for(lambda line: line.get("event_id") == first)
        while not (held := document(settings, tmp_path)["outbox"]["held_events"]):
            pass
        (event,) = held
        assert (event["key"], event["event_id"], event["type"], event["behind"]) == ("order-b", first, TYPE, 2)
        assert "no queue is bound" in event["reason"]
        assert codes(settings, tmp_path) == ["held"]
        shown = invoke("status", cwd=tmp_path, **settings).stdout
        assert "held event\torder-b\t" in shown
        assert f"{TYPE} {first}: no queue is bound" in shown
        assert "(2 wait behind it)" in shown
        assert codes(settings, tmp_path, "--max-held", "1") == []


def test_a_key_that_a_dead_letter_blocks(settings: Settings, tmp_path: Path) -> None:
    """With the reason, and how many later events wait for the operator."""
    place(settings, "k", "k", "other")
    execute(
        settings,
        "INSERT INTO outbox_dead (position, event_id, type, source, partitionkey, data, attempts, last_error, "
        "blocks_key) VALUES (0, gen_random_uuid(), 'shop.made.v1', 'urn:x', 'k', '', 20, 'the queue is full', 1)",
    )
    (blocked,) = document(settings, tmp_path)["outbox"]["blocked_keys"]
    assert (blocked["key"], blocked["reason"], blocked["behind"]) == ("k", "the queue is full", 2)
    assert codes(settings, tmp_path, "--min-relays", "0") == ["dead", "blocked"]
    assert "blocked key\tk\t20 attempts\tshop.made.v1 " in invoke("status", cwd=tmp_path, **settings).stdout


def test_scheduled_events_that_nobody_moves(settings: Settings, tmp_path: Path) -> None:
    """Due for an hour and still there: no relay is at work. What is due later is no matter."""
    execute(
        settings,
        "INSERT INTO outbox_scheduled (deliver_at, type, source, data) SELECT now() + n * interval '1 hour', 't', "
        "'urn:x', '' FROM generate_series(-1, 3) n WHERE n <> 0",
    )
    found = document(settings, tmp_path)["outbox"]
    assert (found["scheduled"], found["overdue"]) == (4, 1)
    assert codes(settings, tmp_path, "--min-relays", "0") == ["overdue"]
    assert codes(settings, tmp_path, "--min-relays", "0", "--max-age", "2h") == []


def test_what_an_inbox_has_parked_is_shown_with_the_error(settings: Settings, tmp_path: Path) -> None:
    """Dead ones, and those that wait with what is behind them."""
    execute(
        settings,
        "INSERT INTO inbox_consumers (name) VALUES ('warehouse')",
        "INSERT INTO inbox_parked (consumer, key, state, reason, error, attempts, topic, type, event_id, "
        "partitionkey, envelope, data, ordered, next_attempt_at, parked_at) VALUES "
        "(1, '\\x01', 'dead', 'rejected', E'no such article\nin line 7', 3, 't', 'shop.v1', 'e1', 'k1', '{}', '', 0, "
        " NULL, now()), "
        "(1, '\\x02', 'waiting', 'failed', 'the bank is closed', 1, 't', 'shop.v1', 'e2', 'k2', '{}', '', 1, "
        " now(), now() - interval '2 hours'), "
        "(1, '\\x03', 'behind', 'behind', 'An earlier one', 0, 't', 'shop.v1', 'e3', 'k2', '{}', '', 1, NULL, now())",
    )
    found = document(settings, tmp_path)["inboxes"]["warehouse"]
    assert found["parked"] == {"dead": 1, "waiting": 1, "behind": 1}
    assert [(each["id"], each["error"], each["behind"]) for each in found["examples"]] == [
        (1, "no such article\nin line 7", 0),
        (2, "the bank is closed", 1),
    ]
    assert codes(settings, tmp_path, "--min-relays", "0") == ["parked-dead", "parked-old"]
    assert codes(settings, tmp_path, "--min-relays", "0", "--max-parked-age", "1d", "--max-dead", "1") == []
    said = invoke("status", "--check", cwd=tmp_path, **settings).stdout
    assert "inbox warehouse: 1 message is dead, as shop.v1: no such article\n" in said
    shown = invoke("status", cwd=tmp_path, **settings).stdout
    assert "inbox warehouse\twaiting 2\t2h" in shown
    assert "\tshop.v1 e2: failed, 1 attempt: the bank is closed (1 waits behind it)\n" in shown


def test_a_dead_letter_queue_of_the_broker_that_fills(settings: Settings, tmp_path: Path) -> None:
    """Its depth, for each inbox of the database; and a queue with messages that nobody consumes."""
    queue = Queue("warehouse", frozenset({"t"}))

    async def reject_one() -> None:
        broker = RabbitMQBroker(settings["SAGAPOST_BROKER_URL"])
        async with broker.subscribe(queue, prefetch=10) as subscription, broker.publisher() as publisher:
            await publish(publisher, "t", 1, 2)
            one, _ = await take(subscription, 2)
            await subscription.reject(one, requeue=False)
            with anyio.fail_after(20):
                # The broker moves it in its own time, and nothing tells when it has.
                while (await broker.depths("warehouse"))[0].dead_letters != 1:  # noqa: ASYNC110
                    await anyio.sleep(0.05)

    execute(settings, "INSERT INTO inbox_consumers (name) VALUES ('warehouse'), ('unheard-of')")
    anyio.run(reject_one)
    queues = {each["queue"]: each for each in document(settings, tmp_path)["broker"]["queues"]}
    assert queues["unheard-of"]["messages"] is None
    assert (queues["warehouse"]["messages"], queues["warehouse"]["dead_letters"]) == (1, 1)
    assert codes(settings, tmp_path, "--min-relays", "0") == ["dead-letter-queue", "not-consumed"]
    shown = invoke("status", cwd=tmp_path, **settings).stdout
    assert "queue warehouse.dead\tmessages\t1\t" in shown
    assert "queue unheard-of\tmessages\t-\t" in shown


def test_sagas_that_are_stuck_or_late_and_compensations_that_fail(settings: Settings, tmp_path: Path) -> None:
    """With the compensation's name, its error and its attempts; from the ledger, the tasks and the tracker."""
    execute(
        settings,
        "INSERT INTO saga_states (service, saga, state, rollback_started_at, due_at) VALUES "
        "('pay', 's1', 'stuck', now(), NULL), ('pay', 's2', 'rolling_back', now() - interval '2 hours', now())",
        "INSERT INTO saga_compensations (service, saga, name, arguments, state, attempts, last_error) VALUES "
        "('pay', 's1', 'refund', '{}', 'stuck', 10, 'card expired'), ('pay', 's1', 'mail', '{}', 'pending', 0, NULL), "
        "('pay', 's2', 'release', '{}', 'pending', 3, 'timeout')",
        "INSERT INTO saga_tasks (service, saga, name, title, details, outcomes, source, announce, of_rollback, state, "
        "due_at) VALUES ('pay', 's3', 'n', 't', '{}', '{}', 'urn:x', false, false, 'open', now() - interval '1 h')",
        "INSERT INTO tracker_sagas (saga, state, reason, started_at, last_at, due_at, events, truncated, history, "
        "version) VALUES ('s4', 'running', NULL, now(), now(), now() - interval '1 h', 1, false, '', 1), "
        "('s1', 'stuck', 'refund failed', now(), now(), NULL, 1, false, '', 1)",
    )
    found = document(settings, tmp_path)
    pay = found["sagas"]["pay"]
    assert (pay["pending_compensations"], pay["late_tasks"], pay["stuck"], pay["rolling_back"]) == (3, 1, 1, 1)
    assert [(each["saga"], each["name"], each["attempts"], each["error"]) for each in pay["failing"]] == [
        ("s1", "refund", 10, "card expired"),
        ("s2", "release", 3, "timeout"),
    ]
    assert [(each["saga"], each["state"]) for each in found["tracker"]["sagas"]] == [
        ("s1", "stuck"),
        ("s4", "running"),
    ]
    wanted = ["stuck", "compensation", "rollback", "late", "stuck", "late"]
    assert codes(settings, tmp_path, "--min-relays", "0") == wanted
    shown = invoke("status", cwd=tmp_path, **settings).stdout
    assert "saga s1\tstuck refund\t10 attempts\tpay: card expired" in shown


# --- cost ---

MANY = (
    "INSERT INTO outbox (type, source, partitionkey, data, attempts, next_attempt_at, last_error) "
    "SELECT 't.a' || n % 7, 'urn:x', 'k' || n % 5000, convert_to(repeat('x', 200), 'UTF8'), (n % 2)::int, "
    "CASE n % 2 WHEN 1 THEN now() END, CASE n % 2 WHEN 1 THEN 'full' END FROM generate_series(1, 100000) n",
    "INSERT INTO outbox_dead (position, event_id, type, source, partitionkey, data, attempts, last_error, blocks_key) "
    "SELECT n, gen_random_uuid(), 't', 'urn:x', 'd' || n, '', 3, 'no', n % 2 FROM generate_series(1, 50000) n",
    "INSERT INTO outbox_scheduled (deliver_at, type, source, data) "
    "SELECT now() - n * interval '1 s', 't', 'urn:x', '' FROM generate_series(1, 50000) n",
    "INSERT INTO inbox_consumers (name) VALUES ('warehouse')",
    "INSERT INTO inbox_parked (consumer, key, state, reason, error, topic, envelope, data) SELECT 1, "
    "decode(lpad(to_hex(n), 32, '0'), 'hex'), 'dead', 'rejected', 'no', 't', '{}', '' "
    "FROM generate_series(1, 50000) n",
    "INSERT INTO saga_states (service, saga, state, rollback_started_at) SELECT 's', 'g' || n, "
    "CASE n % 100 WHEN 0 THEN 'stuck' ELSE 'running' END, CASE n % 100 WHEN 0 THEN now() END "
    "FROM generate_series(1, 50000) n",
    "INSERT INTO tracker_sagas (saga, state, started_at, last_at, due_at, events, truncated, history, version) "
    "SELECT 'g' || n, 'running', now(), now(), CASE n % 2 WHEN 0 THEN now() END, 1, false, '', 1 "
    "FROM generate_series(1, 100000) n",
)


def test_looking_stays_cheap_with_many_rows(settings: Settings, tmp_path: Path) -> None:
    """Held, dead, overdue, parked, late by the ten thousand, with no statistics gathered: bounded, by indexes."""
    execute(settings, *MANY)
    tables = tables_of(load_settings().settings, with_tracker=True)

    looks: tuple[Callable[[Connection], object], ...] = (
        lambda sync: outbox_overview(sync, tables.outbox),
        lambda sync: inbox_overview(sync, tables.inbox),
        lambda sync: saga_counts(sync, tables.sagas),
        lambda sync: tracker_counts(sync, tables.tracker),
    )

    async def measure(engine: AsyncEngine) -> list[float]:
        took: list[float] = []
        async with engine.connect() as connection:
            for look in looks:
                began = time.perf_counter()
                await connection.run_sync(look)
                took.append(time.perf_counter() - began)
        await engine.dispose()
        return took

    best = min((anyio.run(measure, create_async_engine(settings["SAGAPOST_DATABASE_URL"])) for _ in range(3)), key=sum)
    print("outbox, inbox, sagas, tracker:", *(f"{each * 1000:.0f} ms" for each in best))
    # A scan of all of it, on a busy machine, takes several times that.
    assert sum(best) < 5
    found = document(settings, tmp_path)
    assert (found["outbox"]["pending"], found["outbox"]["held"], found["outbox"]["overdue"]) == (
        100_000,
        50_000,
        10_000,
    )
