"""Corrective actions: once per rule and saga, with their event or webhook."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.core import event
from sagapost.core.errors import ConfigurationError
from sagapost.core.observer import Observation
from sagapost.core.schema import install_schema
from sagapost.outbox import Outbox, OutboxTables
from sagapost.sagas.choreography import Choreography
from sagapost.sagas.events import CompensationNeedsHuman
from sagapost.sagas.testing.clock import VirtualClock
from sagapost.sagas.tracker import Emit, Notify, RequestRollback, Rule, SagaState, Tracker, Watch
from sagapost.sagas.tracker import observations as obs
from tests.sagas.choreographies import healthy
from tests.sagas.tracker.histories import START, Story

pytestmark = pytest.mark.anyio


@event("shop.call-the-customer.v1")
class CallTheCustomer(dict[str, str]):
    """What a rule says."""


class Seen:
    """Collects what a watch says."""

    def __init__(self) -> None:
        self.events: list[Observation] = []

    def notify(self, event: Observation, /) -> None:
        self.events.append(event)


class Stage:
    """A tracker with two sagas (one late and silent, one stuck) and the outbox of its actions."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.clock = VirtualClock(START)
        self.tracker = Tracker(engine, Choreography(healthy()), clock=self.clock)
        self.outbox_tables = OutboxTables()
        self.outbox = Outbox(source="https://tracker.example", tables=self.outbox_tables)
        self.seen = Seen()

    async def set(self) -> None:
        await self.tracker.install()
        async with self.engine.begin() as connection:
            await connection.run_sync(install_schema, self.outbox_tables.versions, [self.outbox_tables.part])
        quiet, stuck = Story("quiet"), Story("stuck")
        quiet.says("orders", "order-placed")
        stuck.says("payment", CompensationNeedsHuman("payment", "refund", "no answer", 3))
        await self.tracker.fold([*quiet.events, *stuck.events])

    def watch(self, *rules: Rule) -> Watch:
        return Watch(self.tracker, rules, outbox=self.outbox, observer=self.seen)

    async def published(self) -> list[tuple[str, str]]:
        table = self.outbox_tables.outbox
        async with self.engine.connect() as connection:
            rows = await connection.execute(select(table.c.type, table.c.correlationid).order_by(*table.primary_key))
            return [(row.type, row.correlationid) for row in rows]

    async def actions(self) -> list[tuple[str, str, str, int]]:
        table = self.tracker.tables.actions
        async with self.engine.connect() as connection:
            rows = await connection.execute(select(table).order_by(table.c.rule, table.c.saga))
            return [(row.saga, row.rule, row.state, row.attempts) for row in rows]


@pytest.fixture
async def stage(engine: AsyncEngine) -> Stage:
    stage = Stage(engine)
    await stage.set()
    return stage


async def test_each_rule_acts_once_on_each_saga(stage: Stage) -> None:
    """Late, silent and stuck sagas; a second watch, and one of a later day, find nothing left to do."""
    rules = (
        Rule("late", RequestRollback(), late=True),
        Rule("silent", Emit(CallTheCustomer(why="?")), states=(SagaState.RUNNING,), silent_for=timedelta(hours=9)),
        Rule("stuck", RequestRollback(), states=(SagaState.STUCK,)),
    )
    assert await stage.watch(*rules).step() == 1
    assert await stage.published() == [("sagapost.saga.rollback-requested.v1", "stuck")]
    stage.clock.advance(timedelta(hours=2))
    assert await stage.watch(*rules).step() == 1
    stage.clock.advance(timedelta(hours=9))
    assert await stage.watch(*rules).step() == 1
    assert await stage.watch(*rules).step() == 0
    assert await stage.published() == [
        ("sagapost.saga.rollback-requested.v1", "stuck"),
        ("sagapost.saga.rollback-requested.v1", "quiet"),
        ("shop.call-the-customer.v1", "quiet"),
    ]
    assert [(event.saga, event.rule) for event in stage.seen.events if isinstance(event, obs.ActionTaken)] == [
        ("stuck", "stuck"),
        ("quiet", "late"),
        ("quiet", "silent"),
    ]


class Hook:
    """An HTTP server that fails at first."""

    def __init__(self, failures: int) -> None:
        self.requests: list[tuple[str, Any]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.requests.append((self.headers["Idempotency-Key"], body))
                self.send_response(503 if len(hook.requests) <= failures else 204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Be silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook?token=secret"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook(failures=1)
    yield hook
    hook.close()


async def test_a_webhook_is_repeated_under_one_key_until_it_is_taken(stage: Stage, hook: Hook) -> None:
    """After a failure it waits, then goes out again with the same idempotency key; then it is done."""
    rule = Rule("tell", Notify(hook.url), states=(SagaState.STUCK,))
    assert "secret" not in repr(rule)
    assert await stage.watch(rule).step() == 2
    assert await stage.actions() == [("stuck", "tell", "pending", 1)]
    assert await stage.watch(rule).step() == 0
    stage.clock.advance(timedelta(minutes=1))
    assert await stage.watch(rule).step() == 1
    assert await stage.actions() == [("stuck", "tell", "done", 2)]
    (first, body), (second, _) = hook.requests
    assert first == second
    assert (body["saga"], body["state"], body["rule"]) == ("stuck", "stuck", "tell")
    assert [event.error for event in stage.seen.events if isinstance(event, obs.WebhookFailed)] == ["HTTP 503"]


def test_rules_that_cannot_be_meant_are_refused() -> None:
    """Rules that take everything, URLs that are none."""
    with pytest.raises(ConfigurationError, match="takes all"):
        Rule("all", RequestRollback())
    with pytest.raises(ConfigurationError, match="https"):
        Notify("ftp://example.org")
