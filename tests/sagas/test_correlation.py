"""Which saga: named by a request, carried through tasks, threads, deadlines and logs, found by business keys."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from sagapost import sagas
from sagapost.core.context import SagaContext, bind, current
from sagapost.core.errors import ConfigurationError, InvalidEventError
from sagapost.core.saga_keys import SAGA_KEYS, encode_keys, keys_of
from sagapost.inbox import SyncContext
from sagapost.inbox.declared import observations as obs
from sagapost.ops.logs import SagaContextFilter
from sagapost.sagas import Deadline, StepContext
from sagapost.sagas.tracker.business_keys import Keys
from tests.sagas.recovery import SAGA, OrderPacked, OrderShipped, ShippingFailed, Warehouse, an_event, made

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Warehouse, None]:
    """A service on SQLite."""
    request.param = "sqlite"
    async with made(request, tmp_path) as service:
        yield service


# --- requests ---


def test_a_request_joins_the_saga_its_headers_name() -> None:
    """Saga, cause and trace come from the headers, whatever their case; outside, nothing remains."""
    headers = {"Saga-Id": "order%204711", "saga-cause": "event-1", "Traceparent": TRACE, "tracestate": "a=1"}
    with sagas.join_request(headers) as context:
        assert context == SagaContext("order 4711", "event-1", TRACE, "a=1")
        assert current() == context
    assert current() is None


def test_what_is_said_to_another_service_is_understood_there() -> None:
    """The headers of a running saga, read by the called side, give the same context, also for unusual ids."""
    context = SagaContext("bestellung-ä/47 11%", "event-1", TRACE, "a=1")
    with bind(context):
        headers = sagas.request_headers()
    assert all(value.isascii() for value in headers.values())
    with sagas.join_request(headers) as joined:
        assert joined == context
    assert sagas.request_headers() == {}


def test_a_caller_without_headers_of_its_own_may_use_baggage() -> None:
    """W3C baggage: other members, properties and spaces are passed over."""
    with sagas.join_request({"baggage": "user=ada, saga-id=order%2D4711;ttl=1 ,x"}) as context:
        assert context.correlationid == "order-4711"


@pytest.mark.parametrize("headers", [{}, {"saga-id": ""}, {"baggage": "a=b"}, {"baggage": "saga-id="}])
def test_a_request_that_names_no_saga_starts_one(headers: dict[str, str]) -> None:
    """A fresh id each time."""
    with sagas.join_request(headers) as one, sagas.join_request(headers) as other:
        assert one.correlationid != other.correlationid


def test_what_a_request_says_wrongly_is_refused_or_left_out() -> None:
    """An id that no event could carry is refused; a broken trace context is as none, as its specification says."""
    for wrong in ({"saga-id": "x" * 256}, {"saga-id": "a%0Ab"}, {"saga-id": "a", "saga-cause": "%00"}):
        with pytest.raises(ConfigurationError), sagas.join_request(wrong):
            pass
    for trace in ("", "00-1-2-01", "ff" + TRACE[2:], TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32)):
        with sagas.join_request({"saga-id": "a", "traceparent": trace, "tracestate": "a=1"}) as context:
            assert (context.traceparent, context.tracestate) == (None, None)


# --- business keys ---


async def test_business_keys_are_written_with_the_start(service: Warehouse) -> None:
    """Events published in the block carry them, others do not; they come back as they were given."""
    async with service.sessions.begin() as session:
        with sagas.start(keys={"order": 4711, "customer": "a=b, c%"}) as saga:
            event = await service.outbox.publish(session, OrderPacked("4711"))
            own = await service.outbox.publish(session, OrderPacked("4711"), extensions={"tenant": "x"})
        other = await service.outbox.publish(session, OrderPacked("4711"))
    assert keys_of(event) == keys_of(own) == {"order": "4711", "customer": "a=b, c%"}
    assert own.extensions["tenant"] == "x"
    assert event.correlationid == saga.correlationid
    assert keys_of(other) == {}
    assert Keys().of(event, saga.correlationid) == ({("order", "4711"), ("customer", "a=b, c%")}, [])
    row = (await service.rows(service.outbox.tables.outbox))[0]
    assert row.extensions[SAGA_KEYS] == "order=4711,customer=a%3Db%2C%20c%25"


def test_business_keys_of_a_wrong_form() -> None:
    """Ours are refused when they are made; a stranger's are read as far as they go."""
    for wrong in ({"": "x"}, {"order": ""}, {"order": "x" * 256}):
        with pytest.raises(InvalidEventError, match="1 to 255 characters"):
            encode_keys(wrong)
    assert keys_of(an_event(OrderPacked("1"), extensions={SAGA_KEYS: "a,b=,=c, d = 1 ,e=%zz"})) == {
        "d": "1",
        "e": "%zz",
    }


# --- propagation ---


class Lines(logging.Handler):
    """Keeps what was logged, with the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str | None, str | None]] = []
        self.addFilter(SagaContextFilter())

    def emit(self, record: logging.LogRecord) -> None:
        ids = vars(record)
        self.lines.append((record.getMessage(), ids["correlationid"], ids["event_id"]))


async def test_the_saga_goes_along_into_tasks_threads_deadlines_and_log_records(service: Warehouse) -> None:
    """From a step through a task, a thread and a deadline that passes later: one saga, each event naming its cause,
    and every record of any logger with both ids.
    """
    late = Deadline("late", ShippingFailed, after=timedelta(0))
    log, kept = logging.getLogger("somebody.elses"), Lines()
    log.addHandler(kept)
    log.setLevel(logging.INFO)

    @service.inbox.on(OrderPacked)
    async def packed(event: OrderPacked, ctx: StepContext) -> None:
        async def in_task() -> None:
            log.info("task")
            await ctx.publish(OrderShipped(event.order_id, "task"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_task)
        await anyio.to_thread.run_sync(log.info, "thread")
        await ctx.deadline(late, ShippingFailed(event.order_id))

    @service.inbox.on(OrderShipped)
    def shipped(event: OrderShipped, ctx: SyncContext) -> None:
        log.info("worker thread")
        if event.courier == "task":
            ctx.publish(OrderShipped(event.order_id, "thread"))

    @service.inbox.on(ShippingFailed)
    async def failed(_event: ShippingFailed, _ctx: StepContext) -> None:
        log.info("deadline")

    first = an_event(OrderPacked("4711"))
    try:
        async with service.consuming() as seen, service.relaying():
            await service.send(first)
            await seen.until(obs.Handled, 4)
    finally:
        log.removeHandler(kept)
    by_line = {line: (saga, cause) for line, saga, cause in kept.lines}
    assert set(by_line) == {"task", "thread", "worker thread", "deadline"}
    assert {saga for saga, _ in by_line.values()} == {SAGA}
    assert by_line["task"] == by_line["thread"] == (SAGA, first.id)
    # The deadline is handled as an event of its own, not as the step that set it.
    assert by_line["deadline"][1] not in {None, first.id}
