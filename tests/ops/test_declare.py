"""`sagapost declare`: queues that exist before their service runs, so that it misses nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Confirmed, Outgoing, Queue, Returned
from sagapost.core.envelope import Event
from tests.ops.processes import invoke
from tests.ops.services import TYPE, write_service

EMPTY = "from sagapost.inbox import Inbox\ninbox = Inbox('warehouse')\n"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An inbox called `warehouse`, which takes one type; forgotten again, since the commands run in this process."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield write_service(tmp_path, "logs")
    for module in ("shop", "empty"):
        sys.modules.pop(module, None)


@pytest.mark.servers
async def test_a_service_that_never_ran_misses_nothing(path: str, tmp_path: Path, amqp_url: str) -> None:
    """Published after `declare` and before the first consumer: it is in the queue. Before `declare`: unroutable."""
    broker = RabbitMQBroker(amqp_url)
    event = Event(id="1", source="urn:orders", type=TYPE, time=datetime(2026, 1, 1, tzinfo=UTC))

    async def publish() -> object:
        async with broker.publisher() as publisher:
            (result,) = await (await publisher.send([Outgoing(event, TYPE)])).wait()
            return result

    assert isinstance(await publish(), Returned)
    for _ in range(2):
        ran = await anyio.to_thread.run_sync(_declare, path, tmp_path, amqp_url)
        assert ran == {
            "broker": broker.address,
            "queues": [{"name": "warehouse", "topics": [TYPE], "ordered": False}],
        }
    assert isinstance(await publish(), Confirmed)
    async with broker.subscribe(Queue("warehouse", frozenset({TYPE})), prefetch=1) as deliveries:
        with anyio.fail_after(20):
            async for delivery in deliveries:
                assert isinstance(delivery.content, Event)
                assert delivery.content.id == "1"
                await deliveries.ack(delivery)
                break


def _declare(path: str, folder: Path, url: str) -> object:
    ran = invoke("declare", path, "--json", cwd=folder, SAGAPOST_BROKER_URL=url)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.servers
def test_what_was_declared_is_listed_and_a_conflict_is_named(path: str, tmp_path: Path, amqp_url: str) -> None:
    """A line for each binding; a queue with other arguments is used, an exchange of another type is code 2."""
    ran = invoke("declare", path, cwd=tmp_path, SAGAPOST_BROKER_URL=amqp_url)
    assert (ran.returncode, ran.stdout) == (0, f"warehouse\t{TYPE}\t-\n")
    ran = invoke("declare", path, cwd=tmp_path, SAGAPOST_BROKER_URL=amqp_url, SAGAPOST_BROKER_DELIVERY_LIMIT="7")
    assert ran.returncode == 0
    ran = invoke("declare", path, cwd=tmp_path, SAGAPOST_BROKER_URL=amqp_url, SAGAPOST_EXCHANGE="sagapost.dead")
    assert ran.returncode == 2
    assert "'sagapost.dead' exists on the broker with another argument 'type'" in ran.stderr


@pytest.mark.parametrize(
    ("url", "inbox", "code", "words"),
    [
        ("memory://", None, 2, "the memory broker, which lives in one process"),
        ("amqp://guest:guest@127.0.0.1:9/", "empty:inbox", 2, "has no handlers"),
        ("amqp://guest:guest@127.0.0.1:9/", None, 5, "127.0.0.1:9"),
        ("amqp://guest:guest@127.0.0.1:9/", "shop:nothing", 2, "Did you mean shop:inbox?"),
    ],
    ids=["memory", "no handlers", "unreachable", "no such inbox"],
)
def test_what_is_wrong_is_said(path: str, tmp_path: Path, url: str, inbox: str | None, code: int, words: str) -> None:
    """In one line, with the exit code that says whether to try again."""
    (tmp_path / "empty.py").write_text(EMPTY)
    ran = invoke("declare", inbox or path, cwd=tmp_path, SAGAPOST_BROKER_URL=url)
    assert ran.returncode == code, ran.stderr
    assert words in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
