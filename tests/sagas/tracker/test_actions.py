"""Corrective actions: once per rule and saga, with their event or webhook."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anyio
import anyio.abc
import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sagapost.core import event
from sagapost.core.errors import ConfigurationError
from sagapost.core.observer import Observation
from sagapost.core.schema import install_schema
from sagapost.outbox import Outbox, OutboxTables
from sagapost.sagas.choreography import Choreography
from sagapost.sagas.events import CompensationStuck
from sagapost.sagas.testing.clock import VirtualClock
from sagapost.sagas.tracker import Notify, PublishEvent, RequestRollback, Rule, SagaState, Tracker, Watch
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
        stuck.says("payment", CompensationStuck("payment", "refund", "no answer", 3))
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
        Rule(
            "silent",
            PublishEvent(CallTheCustomer(why="?")),
            states=(SagaState.RUNNING,),
            silent_for=timedelta(hours=9),
        ),
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


class CannotBeEncoded:
    """A payload whose own code fails, in whatever way."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def model_dump_json(self) -> str:
        raise self._error


@pytest.mark.parametrize("error", [ValueError("no"), ZeroDivisionError("no"), RecursionError("no")])
def test_what_a_rule_cannot_emit_is_refused_before_the_watch_runs(error: Exception) -> None:
    """At the start, naming the rule; while the watch runs no code of the user is called."""
    tracker = Tracker(create_async_engine("sqlite+aiosqlite://"))
    for payload in (CannotBeEncoded(error), {"a": object()}, object()):
        with pytest.raises(ConfigurationError, match="'call'"):
            Watch(
                tracker,
                [Rule("call", PublishEvent(payload, "t"), late=True)],
                outbox=Outbox(source="https://t.example"),
            )


async def test_pitfall_32_a_saga_that_no_rule_can_act_on_stops_no_other(stage: Stage) -> None:
    """A row of another's making: its action has failed and says why; the others are acted on, by every rule."""
    sagas = stage.tracker.tables.sagas
    async with stage.engine.begin() as connection:
        # An id that no envelope may have.
        row = (await connection.execute(select(sagas).where(sagas.c.saga == "stuck"))).mappings().one()
        await connection.execute(insert(sagas).values({**row, "saga": "a\tb"}))
    rules = [Rule(name, RequestRollback(), states=(SagaState.STUCK,)) for name in ("first", "second")]
    watch = stage.watch(*rules)
    assert await watch.step() == 2
    assert await stage.published() == [("sagapost.saga.rollback-requested.v1", "stuck")] * 2
    assert await stage.actions() == [
        ("a\tb", "first", "failed", 0),
        ("stuck", "first", "done", 0),
        ("a\tb", "second", "failed", 0),
        ("stuck", "second", "done", 0),
    ]
    assert [event.saga for event in stage.seen.events if isinstance(event, obs.ActionFailed)] == ["a\tb", "a\tb"]
    assert await watch.step() == 0


async def test_pitfall_32_a_rule_that_cannot_be_applied_stops_no_other(stage: Stage) -> None:
    """Without an outbox nothing can be asked for; whoever is told by a webhook is told all the same."""
    async with stage.engine.begin() as connection:
        await connection.execute(text("ALTER TABLE outbox RENAME TO away"))
    ask = Rule("ask", RequestRollback(), states=(SagaState.STUCK,))
    tell = Rule("tell", Notify("http://127.0.0.1:1/"), states=(SagaState.STUCK,))
    assert await stage.watch(ask, tell).step() == 2
    assert [event.rule for event in stage.seen.events if isinstance(event, obs.WebhookFailed)] == ["tell"]


@pytest.mark.parametrize(
    "answer", [b"", b"what?\r\n\r\n", b"HTTP/1.1 nine nine\r\n\r\n", b"HTTP/1.1 302 x\r\nLocation: ftp://[x/\r\n\r\n"]
)
async def test_a_webhook_answered_with_nonsense_has_failed(stage: Stage, answer: bytes) -> None:
    """Whatever comes back, it is a failure of that webhook; it is tried again later."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            if answer:
                await stream.send(answer)

    rule = Rule("tell", Notify(f"http://127.0.0.1:{port}/"), states=(SagaState.STUCK,))
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        assert await stage.watch(rule).step() == 2
        tasks.cancel_scope.cancel()
    assert await stage.actions() == [("stuck", "tell", "pending", 1)]
    assert len([event for event in stage.seen.events if isinstance(event, obs.WebhookFailed)]) == 1


@pytest.mark.parametrize("url", ["http://[::1", "http://a b/", "http://\u00e9..example/", "https://127.0.0.1:99999/"])
async def test_a_webhook_to_nowhere_has_failed(stage: Stage, url: str) -> None:
    """An address that is none ends no watch."""
    assert await stage.watch(Rule("tell", Notify(url), states=(SagaState.STUCK,))).step() == 2
    assert await stage.actions() == [("stuck", "tell", "pending", 1)]
