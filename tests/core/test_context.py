"""The saga context reaches everything that runs for the saga, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sagapost.core.context import SagaContext, bind, continue_from, current, new_saga
from sagapost.core.envelope import Event

SAGA = SagaContext(correlationid="saga-1", causationid="event-1")
OTHER = SagaContext(correlationid="saga-2")


def make_event(**attributes: Any) -> Event:
    """Return an event with the given context attributes."""
    return Event(id="event-9", source="s", type="t", time=datetime(2026, 1, 1, tzinfo=UTC), **attributes)


def test_there_is_no_saga_outside() -> None:
    """Code outside any saga sees none."""
    assert current() is None


def test_blocks_nest_and_end() -> None:
    """The innermost block counts, None leaves the saga, and each end restores what was before."""
    with bind(SAGA) as bound:
        assert current() is bound is SAGA
        with bind(OTHER):
            assert current() is OTHER
        assert current() is SAGA
        with bind(None):
            assert current() is None
        assert current() is SAGA
    assert current() is None


def test_an_exception_ends_the_block_too() -> None:
    """A failing handler does not leave its saga behind."""
    with pytest.raises(RuntimeError), bind(SAGA):
        raise RuntimeError
    assert current() is None


async def test_tasks_and_threads_inherit_the_saga() -> None:
    """A task started inside, a worker thread, and a task started from that task all see the saga."""
    seen: dict[str, SagaContext | None] = {}

    async def child() -> None:
        seen["task"] = current()
        async with anyio.create_task_group() as inner:
            inner.start_soon(grandchild)
        seen["thread"] = await anyio.to_thread.run_sync(current)

    async def grandchild() -> None:
        seen["task of the task"] = current()

    with bind(SAGA):
        async with anyio.create_task_group() as group:
            group.start_soon(child)
    assert seen == {"task": SAGA, "thread": SAGA, "task of the task": SAGA}


async def test_concurrent_sagas_do_not_mix() -> None:
    """Two handlers that interleave at every await keep their own saga throughout."""
    at_the_same_time = 0
    overlapped = False
    seen: dict[str, set[str]] = {}

    async def handle(context: SagaContext) -> None:
        nonlocal at_the_same_time, overlapped
        with bind(context):
            at_the_same_time += 1
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
                overlapped = overlapped or at_the_same_time > 1
                running = current()
                assert running is not None
                seen.setdefault(context.correlationid, set()).add(running.correlationid)
            at_the_same_time -= 1

    async with anyio.create_task_group() as group:
        group.start_soon(handle, SAGA)
        group.start_soon(handle, OTHER)
    assert overlapped
    assert seen == {"saga-1": {"saga-1"}, "saga-2": {"saga-2"}}


def test_handling_continues_the_saga_with_the_event_as_the_cause() -> None:
    """Correlation and trace are passed on; causation names the handled event, not its own cause."""
    event = make_event(correlationid="saga-1", causationid="event-8", traceparent="00-a-b-01", tracestate="k=v")
    assert continue_from(event) == SagaContext("saga-1", "event-9", "00-a-b-01", "k=v")


@pytest.mark.parametrize("correlationid", [None, ""])
def test_an_event_without_a_saga_starts_one_named_after_itself(correlationid: str | None) -> None:
    """What a stranger's event causes can still be tied together."""
    assert continue_from(make_event(correlationid=correlationid, tracestate="")) == SagaContext("event-9", "event-9")


def test_each_new_saga_has_an_id_of_its_own() -> None:
    """A started saga has no cause, and no two share a correlation id."""
    first, second = new_saga(), new_saga()
    assert first.causationid is None
    assert first.correlationid != second.correlationid
