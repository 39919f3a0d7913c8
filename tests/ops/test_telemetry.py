"""OpenTelemetry, with the SDK's exporters in memory: one trace through outbox, broker and inboxes, and the figures."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.sqlite import SQLiteOutboxStore
from sagapost.core.backoff import Backoff
from sagapost.core.life import ServerLost
from sagapost.core.observer import Observers
from sagapost.core.outbox_store import OutboxBacklog
from sagapost.core.schema import install_schema
from sagapost.inbox import BusinessFailure, Context, Inbox, SyncContext
from sagapost.inbox.declared import observations as inbox_obs
from sagapost.inbox.declared.settings import ConsumerSettings
from sagapost.inbox.declared.tables import InboxTables
from sagapost.inbox.running.consumer import Consumer
from sagapost.ops.composition import Composition
from sagapost.ops.relaying import BacklogService, relays
from sagapost.ops.settings import load_settings
from sagapost.ops.telemetry import OpenTelemetryMetrics, OpenTelemetryTracing
from sagapost.outbox import Outbox, OutboxTables
from sagapost.outbox.relay import Relay, RelaySettings
from sagapost.outbox.relay import observations as relay_obs
from sagapost.sagas import observations as saga_obs
from tests.inbox.harness import NEVER, Recorder


@dataclass
class Site:
    """Spans that ended, and where to begin some."""

    spans: InMemorySpanExporter
    provider: TracerProvider
    engine: AsyncEngine
    tables: OutboxTables
    inbox_tables: InboxTables
    file: Path

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans.get_finished_spans() if span.name == name]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site, None]:
    """A database, and spans kept in memory."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
    tables, inbox_tables = OutboxTables(), InboxTables()
    async with engine.begin() as connection:
        await connection.run_sync(install_schema, tables.versions, [tables.part, inbox_tables.part])
    yield Site(exporter, provider, engine, tables, inbox_tables, tmp_path / "shop.db")
    await engine.dispose()
    provider.shutdown()


def at(span: ReadableSpan) -> SpanContext:
    """Where a span is."""
    context = span.get_span_context()
    assert context is not None
    return context


async def test_one_trace_from_the_request_to_the_last_handler(site: Site) -> None:
    """Request -> row -> message -> handler -> row -> message -> handler in a thread: one trace, each hop linked."""
    tracing = OpenTelemetryTracing(site.provider)
    outbox = Outbox(source="urn:shop", tables=site.tables, trace=tracing.current)
    warehouse = Inbox("warehouse", outbox=outbox, tables=site.inbox_tables, around=tracing.process("warehouse"))
    mail = Inbox("mail", outbox=outbox, tables=site.inbox_tables, around=tracing.process("mail"))

    @warehouse.on("order-placed.v1")
    async def reserve(_: dict[str, Any], ctx: Context) -> None:
        await ctx.publish({"n": 1}, type="stock-reserved.v1")

    @mail.on("stock-reserved.v1")
    def tell(_: dict[str, Any], ctx: SyncContext) -> None:
        with site.provider.get_tracer("mine").start_as_current_span("inside"):
            pass
        ctx.publish({"n": 2}, type="nobody-handles.v1")

    tracer = site.provider.get_tracer("web")
    async with AsyncSession(site.engine) as session, session.begin():
        with tracer.start_as_current_span("POST /orders"):
            placed = await outbox.publish(session, {"n": 0}, type="order-placed.v1", key="4711")
    assert placed.traceparent is not None
    await run(site, warehouse, mail, handled=2)
    (request,) = site.named("POST /orders")
    (reserved,) = site.named("process warehouse")
    (told,) = site.named("process mail")
    (inside,) = site.named("inside")
    assert {at(span).trace_id for span in (request, reserved, told, inside)} == {at(request).trace_id}
    for child, parent in ((reserved, request), (told, reserved)):
        assert child.kind is SpanKind.CONSUMER
        assert child.parent is not None
        assert child.parent.span_id == at(parent).span_id
        assert [link.context.span_id for link in child.links] == [at(parent).span_id]
    assert inside.parent is not None
    assert inside.parent.span_id == at(told).span_id
    assert reserved.attributes is not None
    assert reserved.attributes["messaging.message.id"] == placed.id
    assert reserved.attributes["messaging.operation.name"] == "process"
    assert reserved.attributes["cloudevents.event_type"] == "order-placed.v1"


async def test_a_failure_is_an_error_and_an_answer_is_none(site: Site) -> None:
    """What a handler raises as its answer leaves the span in order; the text of an error is in no span."""
    tracing = OpenTelemetryTracing(site.provider, continue_trace=False)
    outbox = Outbox(source="urn:shop", tables=site.tables, trace=tracing.current)
    inbox = Inbox("warehouse", outbox=outbox, tables=site.inbox_tables, around=tracing.process("warehouse"))

    @inbox.on("order-placed.v1")
    async def reserve(order: dict[str, Any], _: Context) -> None:
        if order["n"] == 0:
            raise BusinessFailure({"n": 0}, type="stock-short.v1")
        raise ValueError("card 4111-1111")

    async with AsyncSession(site.engine) as session, session.begin():
        with site.provider.get_tracer("web").start_as_current_span("request"):
            await outbox.publish_all(session, [{"n": 0}, {"n": 1}], type="order-placed.v1", key="k")
    await run(site, inbox, handled=2)
    answered, failed = sorted(site.named("process warehouse"), key=lambda span: span.status.status_code.value)
    assert answered.status.status_code is StatusCode.UNSET
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "ValueError"
    assert "4111" not in failed.to_json()
    # Not continued: a trace of its own, with a link to where the event came from.
    (request,) = site.named("request")
    assert at(failed).trace_id != at(request).trace_id
    assert [link.context.span_id for link in failed.links] == [at(request).span_id]


async def test_without_a_trace_nothing_is_made_up(site: Site) -> None:
    """Outside any span events carry none."""
    outbox = Outbox(source="urn:shop", tables=site.tables, trace=OpenTelemetryTracing(site.provider).current)
    async with AsyncSession(site.engine) as session, session.begin():
        assert (await outbox.publish(session, {"n": 0}, type="order-placed.v1")).traceparent is None


SOON = Backoff(base=timedelta(milliseconds=20), cap=timedelta(milliseconds=20))


async def run(site: Site, *inboxes: Inbox, handled: int) -> None:
    """Relay and consume until so many events came to an end."""
    broker, seen = MemoryBroker(), Recorder()
    await broker.declare(*(inbox.queue for inbox in inboxes))
    relay = Relay(
        SQLiteOutboxStore(f"sqlite:///{site.file}", tables=site.tables),
        broker,
        settings=RelaySettings(poll_interval=timedelta(milliseconds=20), retry=SOON),
    )
    settings = ConsumerSettings(concurrency=1, poll_interval=timedelta(milliseconds=50), retry=NEVER)
    consumers = [
        Consumer(inbox, engine=site.engine, broker=broker, settings=settings, observer=seen) for inbox in inboxes
    ]
    running: list[Relay | Consumer] = [relay, *consumers]
    async with anyio.create_task_group() as tasks:
        for each in running:
            tasks.start_soon(each.run)
        await seen.until_true(lambda: len(seen.of(inbox_obs.Handled)) + len(seen.of(inbox_obs.Parked)) == handled)
        for each in running:
            each.stop()


# --- figures ---


@dataclass
class Figures:
    """Metrics kept in memory."""

    metrics: OpenTelemetryMetrics
    reader: InMemoryMetricReader

    def value(self, name: str, **attributes: object) -> float:
        """Return a figure: of a histogram the number of its values."""
        data = self.reader.get_metrics_data()
        assert data is not None
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        if metric.name == name and attributes.items() <= dict(point.attributes or {}).items():
                            return float(getattr(point, "value", getattr(point, "count", 0)))
        raise AssertionError(f"there is no {name} with {attributes}")


@pytest.fixture
def figures() -> Generator[Figures, None, None]:
    """Nothing counted yet."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    yield Figures(OpenTelemetryMetrics(provider), reader)
    provider.shutdown()


def test_a_relay_is_counted(figures: Figures) -> None:
    """Rates, retries, dead letters, what pauses it, and what it lost."""
    observers = Observers([figures.metrics])
    for event in (
        relay_obs.Published(rows=250),
        relay_obs.Settled(rows=240),
        relay_obs.Held("id", "t.v1", "k", 7, 2, 4.0, "no queue is bound"),
        relay_obs.Buried("id", "t.v1", "k", 7, 20, "full", "block"),
        relay_obs.Overtaken("k", 7, 8),
        relay_obs.Missed(rows=3, position=7),
        relay_obs.LeasesChanged(frozenset({1, 2}), frozenset({1, 2}), frozenset()),
        relay_obs.Saturated(held=10_000, saturated=True),
        ServerLost("relay", "broker", "away", 1, 0.2),
        ServerLost("relay", "database", "away", 1, 0.2),
    ):
        observers.notify(event)
    figures.metrics.backlog(OutboxBacklog(12, timedelta(seconds=90), 3, 2, 1))
    assert figures.value("messaging.client.sent.messages") == 250
    assert figures.value("sagapost.relay.settled") == 240
    assert figures.value("sagapost.relay.retries", **{"cloudevents.event_type": "t.v1"}) == 1
    assert figures.value("sagapost.relay.dead", **{"sagapost.policy": "block"}) == 1
    assert figures.value("sagapost.relay.overtaken") == 1
    assert figures.value("sagapost.relay.missed") == 3
    assert figures.value("sagapost.relay.partitions") == 2
    assert figures.value("sagapost.relay.paused", **{"sagapost.cause": "held keys"}) == 1
    assert figures.value("sagapost.connections.lost", **{"sagapost.server": "broker"}) == 1
    assert figures.value("sagapost.connections.lost", **{"sagapost.server": "database"}) == 1
    assert figures.value("sagapost.outbox.pending") == 12
    assert figures.value("sagapost.outbox.age") == 90
    assert figures.value("sagapost.outbox.held") == 2
    assert figures.value("sagapost.outbox.dead") == 1
    assert figures.value("sagapost.outbox.scheduled") == 3


def test_pitfall_38_compensations_are_counted_by_what_came_of_them(figures: Figures) -> None:
    """A saga that is stuck is in a metric, by service and compensation, and by no saga's id."""
    observers = Observers([figures.metrics])
    for event in (
        saga_obs.Compensated("payment", "4711", "refund", 1, 0),
        saga_obs.CompensationFailed("payment", "4712", "refund", 1, 2.0, "no answer"),
        saga_obs.SagaStuck("payment", "4712", "refund", 10, "no answer"),
        saga_obs.SagaRolledBack("payment", "4711"),
    ):
        observers.notify(event)
    refund = {"sagapost.service": "payment", "sagapost.compensation": "refund"}
    for outcome in ("done", "failed", "stuck"):
        assert figures.value("sagapost.saga.compensations", **refund, **{"sagapost.outcome": outcome}) == 1
    assert figures.value("sagapost.saga.rolled_back", **{"sagapost.service": "payment"}) == 1


def test_an_inbox_is_counted(figures: Figures) -> None:
    """Single messages and groups, duplicates, failures, what is parked and why."""
    observers = Observers([figures.metrics])
    for event in (
        inbox_obs.Received("warehouse", "t.v1", 100, 0),
        inbox_obs.Handled("warehouse", "id", "t.v1", 0.01, 0.5),
        inbox_obs.GroupHandled("warehouse", {"t.v1": 4, "u.v1": 1}, 2, 0.05, 1.5),
        inbox_obs.Duplicate("warehouse", "id", "t.v1"),
        inbox_obs.HandlerFailed("warehouse", "id", "t.v1", 1, "ValueError"),
        inbox_obs.Parked("warehouse", "id", "t.v1", "failed", "dead", 12, None),
    ):
        observers.notify(event)
    here = {"messaging.destination.name": "warehouse"}
    assert figures.value("messaging.client.consumed.messages", **here) == 1
    assert figures.value("sagapost.inbox.handled", **here, **{"cloudevents.event_type": "t.v1"}) == 5
    assert figures.value("messaging.process.duration", **here) == 2
    assert figures.value("sagapost.inbox.lag", **here) == 2
    assert figures.value("sagapost.inbox.duplicates", **here) == 3
    assert figures.value("sagapost.inbox.failures", **here) == 1
    assert figures.value("sagapost.inbox.parked", **here, **{"sagapost.state": "dead"}) == 1


async def test_the_daemon_measures_the_backlog(figures: Figures, site: Site) -> None:
    """It looks at once, waits for a database that is away, and ends when told."""
    outbox = Outbox(source="urn:shop", tables=site.tables)
    async with AsyncSession(site.engine) as session, session.begin():
        await outbox.publish_all(session, [{"n": n} for n in range(3)], type="order-placed.v1")
    seen = Recorder()
    reported = anyio.Event()

    def report(found: OutboxBacklog) -> None:
        figures.metrics.backlog(found)
        reported.set()

    missing = SQLiteOutboxStore(f"sqlite:///{site.file}-elsewhere", tables=site.tables)
    there = SQLiteOutboxStore(f"sqlite:///{site.file}", tables=site.tables)
    services = [BacklogService(store, report, seen, every=0.02) for store in (there, missing)]
    async with anyio.create_task_group() as tasks:
        for service in services:
            tasks.start_soon(service.run)
        with anyio.fail_after(20):
            await reported.wait()
        for service in services:
            service.stop()
    assert figures.value("sagapost.outbox.pending") == 3


def test_metrics_are_asked_for_by_a_setting() -> None:
    """None by default; with the setting, relays and the backlog are measured."""
    urls = {"database_url": "sqlite:///shop.db", "broker_url": "memory://"}
    assert [worker.name for worker in relays(Composition(load_settings(overrides=urls)))] == ["relay"]
    measured = Composition(load_settings(overrides={**urls, "metrics": "otel"}))
    assert [worker.name for worker in relays(measured)] == ["relay", "backlog"]
