"""`sagapost events`: where an event is, from its row to its saga, in one answer; on both databases."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.outbox import Outbox
from tests.ops.processes import invoke, run, started
from tests.ops.services import TYPE, OrderPlaced, write_service

Ask = Callable[..., Any]


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """A database with the tables, and a broker in the process."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'shop.db'}"
    else:
        url = request.getfixturevalue("postgresql_url")
    settings = {
        "SAGAPOST_DATABASE_URL": url,
        "SAGAPOST_BROKER_URL": "memory://",
        "SAGAPOST_RELAY_POLL_INTERVAL": "20ms",
    }
    installed = invoke("db", "upgrade", cwd=tmp_path, **settings)
    assert installed.returncode == 0, installed.stderr
    return settings


@pytest.fixture
def events(settings: Mapping[str, str], tmp_path: Path) -> Ask:
    """Run `sagapost events ...`; return what it wrote, as JSON where it is; of a failure the error."""

    def events(*arguments: str, code: int = 0) -> Any:
        ran = invoke("events", *arguments, cwd=tmp_path, **settings)
        assert ran.returncode == code, ran.stderr
        if code:
            return ran.stderr
        return json.loads(ran.stdout) if ran.stdout.startswith(("{", "[")) else ran.stdout

    return events


async def _execute(url: str, *statements: str) -> None:
    engine = create_async_engine(url.replace("sqlite://", "sqlite+aiosqlite://"))
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


async def _publish(url: str, numbers: tuple[int, ...], key: str | None, saga: str | None) -> list[str]:
    engine = create_async_engine(url.replace("sqlite://", "sqlite+aiosqlite://"))
    outbox = Outbox(source="urn:orders")
    async with engine.begin() as connection:
        ids = [
            (await outbox.publish(connection, OrderPlaced(number), key=key or str(number), correlationid=saga)).id
            for number in numbers
        ]
    await engine.dispose()
    return ids


def place(settings: Mapping[str, str], *numbers: int, key: str | None = None, saga: str | None = None) -> list[str]:
    """Publish an order for each number, in one transaction; return the ids."""
    return anyio.run(_publish, settings["SAGAPOST_DATABASE_URL"], numbers, key, saga)


def change(settings: Mapping[str, str], *statements: str) -> None:
    """Bring rows into a state that a relay or a service would leave behind."""
    anyio.run(_execute, settings["SAGAPOST_DATABASE_URL"], *statements)


def seen(trace: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return where an event was seen, and how."""
    return [(each["place"], each["state"]) for each in trace["sightings"]]


def test_what_waits_is_listed_shown_and_followed(events: Ask, settings: dict[str, str]) -> None:
    """Pending rows in the order of the outbox, filtered like everything else; the payload only if it is asked for."""
    first, second = place(settings, 1, 2)
    listed = events("list", "--json")
    assert [(each["event_id"], each["state"], each["key"]) for each in listed] == [
        (first, "pending", "1"),
        (second, "pending", "2"),
    ]
    assert [each["event_id"] for each in events("list", "--json", "--where", "key=2")] == [second]
    assert [each["event_id"] for each in events("list", "--json", "--where", f"event_id={first}")] == [first]
    assert events("list", "--json", "--where", "state=held") == []
    assert len(events("list", "--json", "--where", "type=tests.*", "--where", "attempts<1")) == 2
    shown = events("show", first)
    assert (shown["type"], shown["source"], shown["size"]) == (TYPE, "urn:orders", 12)
    assert "data" not in shown
    assert events("show", first, "--data")["data"] == '{"number":1}'
    trace = events("trace", first, "--json")
    assert seen(trace) == [("outbox", "pending")]
    assert (trace["type"], trace["key"]) == (TYPE, "1")
    assert "waits for a relay" in events("trace", first)


def test_what_is_held_says_why_and_what_waits_for_it(events: Ask, settings: dict[str, str], tmp_path: Path) -> None:
    """The head of a key and those behind it; then the same of a dead letter, until an operator has decided."""
    first, second, other = (*place(settings, 1, 2, key="k"), *place(settings, 3))
    head = f"'{first}'" if "postgresql" in settings["SAGAPOST_DATABASE_URL"] else f"'{first.replace('-', '')}'"
    change(
        settings,
        "UPDATE outbox SET attempts = 3, next_attempt_at = '2030-01-01 08:00:00', last_error = 'no queue is bound' "
        f"WHERE event_id = {head}",
    )
    listed = {each["event_id"]: each for each in events("list", "--json")}
    assert (listed[first]["state"], listed[first]["error"]) == ("held", "no queue is bound")
    assert listed[first]["due_at"].startswith("2030-01-01T08:00:00")
    assert listed[second]["state"] == "pending"
    assert "no queue is bound" in events("trace", first)
    waits = events("trace", second, "--json")["sightings"][0]
    assert waits["facts"]["waits_for"] == first
    assert "which is held: no queue is bound" in waits["what"]
    assert events("show", second)["waits_for"] == first
    assert "waits for a relay" in events("trace", other)
    of_key = events("trace", "--key", "k", "--json")
    assert [(each["facts"]["event_id"], each["state"]) for each in of_key] == [(first, "held"), (second, "pending")]

    columns = "position, event_id, topic, type, source, time, partitionkey, data"
    change(
        settings,
        f"INSERT INTO outbox_dead ({columns}, attempts, last_error, blocks_key) "
        f"SELECT {columns}, 20, 'too large', 1 FROM outbox WHERE event_id = {head}",
        f"DELETE FROM outbox WHERE event_id = {head}",
    )
    assert seen(events("trace", first, "--json")) == [("outbox", "dead")]
    assert events("trace", second, "--json")["sightings"][0]["facts"]["waits_for"] == first
    (position,) = [str(each["position"]) for each in events("list", "--json", "--where", "state=dead")]
    gone = invoke("dead", "discard", position, "--reason", "a test", "--actor", "ada", cwd=tmp_path, **settings)
    assert gone.returncode == 0, gone.stderr
    trace = events("trace", first, "--json")
    assert seen(trace) == [("outbox", "discarded"), ("audit", "discard")]
    assert "ada decided" in trace["sightings"][1]["what"]
    assert "waits for a relay" in events("trace", second)


def test_an_event_is_followed_to_where_it_was_handled_or_parked(
    events: Ask, settings: dict[str, str], tmp_path: Path
) -> None:
    """Confirmed, then handled by the inbox, or parked with the reason; and on to the saga it belongs to."""
    path = write_service(tmp_path, "rejects")
    odd, even = place(settings, 1, 2, saga="s-1")
    with started("consume", path, "--with-relay", cwd=tmp_path, **settings) as process:
        process.wait_for("order 2 handled")
        states = dict[str, Any]()
        while states.get("dead") != 1:
            found = json.loads(invoke("status", "--json", cwd=tmp_path, **settings).stdout)
            states = found["inboxes"]["warehouse"]["parked"]
        process.send(signal.SIGTERM)
        assert process.end() == 0, process.text
    assert events("list", "--json") == []
    assert "The outbox keeps no event" in events("show", even, code=7)

    trace = events("trace", odd, "--json")
    assert seen(trace) == [("outbox", "confirmed"), ("inbox warehouse", "parked, dead")]
    assert "order 1 is odd" in trace["sightings"][1]["what"]
    assert (trace["source"], trace["key"], trace["correlationid"]) == ("urn:orders", "1", "s-1")
    # Nothing keeps the names of what was handled; its source is among those that are known here.
    trace = events("trace", even, "--json")
    assert seen(trace) == [("outbox", "confirmed"), ("inbox warehouse", "handled")]
    assert trace["source"] == "urn:orders"
    assert [each["state"] for each in events("trace", "--key", "1", "--json")] == ["parked, dead"]

    change(
        settings,
        "INSERT INTO saga_states (service, saga, state) VALUES ('warehouse', 's-1', 'running')",
        "INSERT INTO saga_compensations (service, saga, name, arguments, step_event) "
        f"VALUES ('warehouse', 's-1', 'release', '{{}}', '{even}')",
        "UPDATE inbox_parked SET source = 'urn:elsewhere'",
    )
    trace = events("trace", even, "--source", "urn:orders", "--json")
    assert seen(trace)[2:] == [("saga s-1", "running"), ("saga s-1", "intent pending")]
    assert "in the service warehouse" in events("trace", odd)
    # Without the source there is only the time in the id.
    change(settings, "DELETE FROM inbox_parked", "DELETE FROM saga_compensations")
    trace = events("trace", even, "--json")
    assert ("inbox", "unknown") in seen(trace)
    assert "name this one's with --source" in trace["sightings"][-1]["what"]
    assert seen(events("trace", even, "--source", "urn:orders", "--json"))[1] == ("inbox warehouse", "handled")
    unseen = events("trace", "4711", "--type", TYPE, "--source", "urn:erp", "--json")
    assert seen(unseen) == [("outbox", "no row"), ("inbox warehouse", "not arrived")]


def test_odd_input_is_an_error_of_one_line(events: Ask) -> None:
    """Nothing that is typed reaches a driver unread."""
    assert "knows nothing of the event '4711'" in events("trace", "4711", code=7)
    assert "keeps no event 'x'" in events("show", "x", code=7)
    for odd in ("a\x00b", "a\udcff"):
        assert "NUL character or bytes that are no UTF-8" in events("trace", odd, code=2)
        assert "NUL character or bytes that are no UTF-8" in events("show", odd, code=2)
        assert "NUL character or bytes that are no UTF-8" in events("trace", "--key", odd, code=2)
        assert "NUL character or bytes that are no UTF-8" in events("list", "--where", f"key={odd}", code=2)
    assert "Name one event by its id, or one ordering key" in events("trace", code=2)
    assert "Name one event by its id, or one ordering key" in events("trace", "1", "--key", "k", code=2)
    assert "Did you mean 'state'?" in events("list", "--where", "stat=held", code=2)
    assert events("trace", "--key", "nobody", "--json") == []


def test_what_lies_in_a_queue_is_counted(amqp_url: str, postgresql_url: str, tmp_path: Path) -> None:
    """Published and not handled: the inbox has not seen it, and its queue says how many wait before a consumer."""
    settings = {"SAGAPOST_DATABASE_URL": postgresql_url, "SAGAPOST_BROKER_URL": amqp_url}
    path = write_service(tmp_path, "logs")
    assert invoke("db", "upgrade", cwd=tmp_path, **settings).returncode == 0
    with started("consume", path, cwd=tmp_path, **settings) as process:
        process.wait_for("consumes from")
        process.send(signal.SIGTERM)
        assert process.end() == 0, process.text
    (event,) = place(settings, 1)
    with started("relay", cwd=tmp_path, **settings) as process:
        process.wait_for("owns")
        while json.loads(run("events", "list", "--json", cwd=tmp_path, **settings).stdout):
            pass
        process.send(signal.SIGTERM)
        assert process.end() == 0, process.text
    ran = invoke("events", "trace", event, "--type", TYPE, "--json", cwd=tmp_path, **settings)
    assert ran.returncode == 0, ran.stderr
    last = json.loads(ran.stdout)["sightings"][-1]
    assert (last["place"], last["state"], last["facts"]["queued"]) == ("inbox warehouse", "not arrived", 1)
    assert "1 wait in its queue, for 0 consumers" in last["what"]
