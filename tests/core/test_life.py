"""What runs: signals that lose nothing, outages that are waited out and reported, a stop that is heard at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import anyio
import pytest

from sagapost.core.backoff import Backoff
from sagapost.core.errors import (
    BrokerError,
    BrokerRefusedError,
    BrokerUnavailableError,
    SchemaError,
    StoreRefusedError,
    StoreUnavailableError,
)
from sagapost.core.life import Attempts, Runtime, ServerLost, ServerReady, Signal, part_of
from sagapost.core.observer import Observation
from tests.relay.virtual_time import VIRTUAL_TIME, LoopClock

SECOND = timedelta(seconds=1)
STEADY = Backoff(base=SECOND, cap=timedelta(seconds=4), jitter=0)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Hours pass in milliseconds."""
    return VIRTUAL_TIME


@dataclass
class Recorder:
    """Keeps what it is told."""

    seen: list[Observation] = field(default_factory=list[Observation])

    def notify(self, event: Observation, /) -> None:
        """Keep the event."""
        self.seen.append(event)


# --- signals ---


async def test_what_is_set_between_a_look_and_the_wait_ends_the_wait() -> None:
    """The lost wake-up: set after the look and before the wait, it is there when the wait begins."""
    signal = Signal()
    signal.set()
    signal.set()
    assert await signal.wait(1) is True
    began = anyio.current_time()
    assert await signal.wait(5) is False, "one wait takes all that was set before it"
    assert anyio.current_time() - began == 5


async def test_a_wait_that_timed_out_or_was_cancelled_takes_nothing() -> None:
    """What is set after somebody gave up waiting is for the next who waits."""
    signal = Signal()
    assert await signal.wait(1) is False
    with anyio.move_on_after(1):
        await signal.wait()
    signal.set()
    assert await signal.wait(1) is True

    async def set_at_the_deadline() -> None:
        await anyio.sleep(1)
        signal.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(set_at_the_deadline)
        with anyio.move_on_after(1):
            await signal.wait()
    assert await signal.wait(1) is True, "the wait was cancelled in the moment in which it was set"


async def test_all_who_wait_wake() -> None:
    """Two tasks that wait for one signal both go on."""
    signal = Signal()
    woken: list[bool] = []

    async def wait() -> None:
        woken.append(await signal.wait(10))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        signal.set()
    assert woken == [True, True]
    assert await signal.wait(1) is False


@pytest.mark.parametrize("set_before", [False, True], ids=["waiting", "about to wait"])
async def test_what_is_set_while_others_still_wake_is_for_the_next_wait(set_before: bool) -> None:
    """One of two waiters wakes, looks, and something is set: the other, which only wakes then, does not take it."""
    signal = Signal()
    waits: list[float] = []

    async def wait_twice() -> None:
        await signal.wait()
        if not waits:
            signal.set()
        waits.append(anyio.current_time())
        await signal.wait(5)
        waits.append(anyio.current_time())

    if set_before:
        signal.set()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_twice)
        tasks.start_soon(wait_twice)
        if not set_before:
            await anyio.wait_all_tasks_blocked()
            signal.set()
    assert waits == [0] * 4


async def test_a_signal_that_is_always_set_starves_nobody() -> None:
    """A wait that ends at once still gives the others a turn."""
    signal, turns = Signal(), 0

    async def busy() -> None:
        while True:
            signal.set()
            await signal.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(busy)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
            turns += 1
        tasks.cancel_scope.cancel()
    assert turns == 10


# --- outages ---


async def test_an_outage_is_waited_out_reported_and_ends() -> None:
    """Each failed attempt is reported with the wait that follows; the first success ends the outage, once."""
    recorder = Recorder()
    runtime = Runtime("relay", observer=recorder, backoff=STEADY)
    failures = 3

    async def call() -> str:
        nonlocal failures
        if failures:
            failures -= 1
            raise StoreUnavailableError("the database is away")
        return "answer"

    assert await runtime.until_available(call) == "answer"
    assert recorder.seen == [
        ServerLost("relay", "database", "the database is away", 1, 1.0),
        ServerLost("relay", "database", "the database is away", 2, 2.0),
        ServerLost("relay", "database", "the database is away", 3, 4.0),
        ServerReady("relay", "database"),
    ]
    assert anyio.current_time() == 7


async def test_an_outage_that_began_elsewhere_is_outlasted() -> None:
    """Waits come before each probe and go on growing over outages until something worked."""
    recorder = Recorder()
    attempts = Attempts(Runtime("inbox warehouse", observer=recorder, backoff=STEADY))
    away = StoreUnavailableError("the database is away")
    script: list[Exception | None] = [away, None, None, None]

    async def probe() -> None:
        if (failure := script.pop(0)) is not None:
            raise failure

    assert await attempts.outlast(away, probe)
    assert anyio.current_time() == 1 + 2
    assert await attempts.outlast(away, probe)
    assert anyio.current_time() == 3 + 4
    attempts.worked()
    assert await attempts.outlast(away, probe)
    assert anyio.current_time() == 7 + 1
    assert [event.attempt for event in recorder.seen if isinstance(event, ServerLost)] == [1, 2, 3, 1]
    assert sum(isinstance(event, ServerReady) for event in recorder.seen) == 3


async def test_a_part_that_is_to_stop_asks_once_more() -> None:
    """A server that is away ends it at once; one that answers gives it another try, after the wait."""
    runtime = Runtime("inbox warehouse", backoff=STEADY)
    attempts = Attempts(runtime)
    away = StoreUnavailableError("the database is away")
    runtime.stop.set()

    async def probe() -> None:
        if failing:
            raise away

    failing = True
    assert not await attempts.outlast(away, probe)
    assert anyio.current_time() == 0
    failing = False
    assert await attempts.outlast(away, probe)
    assert anyio.current_time() == 2


async def test_what_no_waiting_can_mend_is_raised() -> None:
    """A schema of another version is no outage."""
    runtime = Runtime("relay", backoff=STEADY)

    async def call() -> None:
        raise SchemaError(found=None, expected=1, where="the database")

    with pytest.raises(SchemaError):
        await runtime.until_available(call)
    with pytest.raises(SchemaError):
        await runtime.every(SECOND, call)

    async def cycle(attempts: Attempts) -> None:
        attempts.worked()
        await call()

    with pytest.raises(SchemaError):
        await runtime.keep(cycle)


async def test_the_stop_ends_every_wait_at_once() -> None:
    """In the middle of a backoff, of an interval, and of an interval with a signal; what comes later is not begun."""
    begun: list[str] = []

    async def away() -> None:
        begun.append("call")
        raise BrokerUnavailableError("the broker is away")

    async def turn() -> None:
        begun.append("turn")

    for wake in (None, Signal()):
        runtime = Runtime("compensator", backoff=Backoff(base=timedelta(hours=1), cap=timedelta(hours=1)))
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.until_available, away)
            tasks.start_soon(partial(runtime.every, timedelta(hours=1), turn, wake=wake))
            await anyio.sleep(3)
            runtime.stop.set()
        assert anyio.current_time() - began == 3
        await runtime.until_available(away)
        await runtime.every(timedelta(hours=1), turn, wake=wake)
    assert begun == ["call", "turn"] * 2


async def test_turns_are_taken_at_the_interval_at_once_or_when_woken() -> None:
    """A turn may ask for the next at once or later; a signal ends the wait early."""
    wake = Signal()
    runtime = Runtime("tracker")
    asked = iter([timedelta(0), None, timedelta(minutes=5), None])
    at: list[float] = []

    async def turn() -> timedelta | None:
        at.append(anyio.current_time())
        pause = next(asked)
        if len(at) == 4:
            runtime.stop.set()
        return pause

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(runtime.every, timedelta(seconds=10), turn, wake=wake))
        await anyio.sleep(12)
        wake.set()
    assert at == [0, 0, 10, 12]


async def test_a_turn_that_meets_an_outage_comes_again() -> None:
    """The loop goes on after the backoff, and the waits begin anew after a turn that worked."""
    recorder = Recorder()
    runtime = Runtime("inbox warehouse", observer=recorder, backoff=STEADY)
    script: list[Exception | None] = [
        StoreUnavailableError("away"),
        StoreUnavailableError("away"),
        None,
        StoreUnavailableError("away"),
        None,
    ]

    async def turn() -> None:
        step = script.pop(0)
        if not script:
            runtime.stop.set()
        if step is not None:
            raise step

    await runtime.every(SECOND, turn)
    assert [event.attempt for event in recorder.seen if isinstance(event, ServerLost)] == [1, 2, 1]
    assert sum(isinstance(event, ServerReady) for event in recorder.seen) == 2


async def test_a_cycle_is_kept_up_until_it_sees_the_stop() -> None:
    """Outages also inside task groups; another error beside them is raised."""
    recorder = Recorder()
    runtime = Runtime("relay", observer=recorder, backoff=STEADY)
    cycles = 0

    async def cycle(attempts: Attempts) -> None:
        nonlocal cycles
        cycles += 1
        if cycles == 3:
            attempts.worked()
            runtime.stop.set()
            return
        raise ExceptionGroup("unhandled errors", [ExceptionGroup("inner", [BrokerUnavailableError("gone")])])

    await runtime.keep(cycle)
    assert [(event.server, event.attempt) for event in recorder.seen if isinstance(event, ServerLost)] == [
        ("broker", 1),
        ("broker", 2),
    ]

    async def mixed(_attempts: Attempts) -> None:
        raise ExceptionGroup("two", [BrokerUnavailableError("gone"), ZeroDivisionError()])

    with pytest.raises(ExceptionGroup):
        await Runtime("relay").keep(mixed)


async def test_a_cycle_that_only_connects_does_not_shorten_the_waits() -> None:
    """A server that lets in and throws out is reported each time, and asked less and less often until it works."""
    recorder = Recorder()
    runtime = Runtime("relay", observer=recorder, backoff=STEADY, clock=LoopClock())
    script = iter(["connects", "connects", "works", "lives", "connects", "hangs", "connects"])

    async def cycle(attempts: Attempts) -> None:
        step = next(script, None)
        if step is None:
            runtime.stop.set()
            return
        if step != "hangs":
            attempts.connected()
        if step == "works":
            attempts.worked()
        elif step in {"lives", "hangs"}:
            await anyio.sleep(61)
        raise BrokerUnavailableError(step)

    await runtime.keep(cycle, lasting=timedelta(minutes=1))
    lost = [(event.reason, event.attempt) for event in recorder.seen if isinstance(event, ServerLost)]
    assert lost == [
        ("connects", 1),
        ("connects", 2),
        ("works", 1),
        ("lives", 1),
        ("connects", 2),
        ("hangs", 1),
        ("connects", 2),
    ]
    assert sum(isinstance(event, ServerReady) for event in recorder.seen) == 5


async def test_what_counts_as_an_outage_may_be_said() -> None:
    """A refusal is waited for where the part says so, also inside task groups, and raised where it does not."""
    runtime = Runtime("relay", backoff=STEADY)
    connected = False

    async def cycle(_attempts: Attempts) -> None:
        nonlocal connected
        if connected:
            runtime.stop.set()
            return
        connected = True
        raise ExceptionGroup("unhandled errors", [BrokerRefusedError("the password was changed")])

    with pytest.raises(ExceptionGroup):
        await runtime.keep(cycle)
    connected = False
    await runtime.keep(cycle, is_outage=lambda error: isinstance(error, BrokerError))
    failures = iter([StoreRefusedError("read only"), None])

    async def turn() -> None:
        error = next(failures)
        if error is not None:
            raise error
        other.stop.set()

    other = Runtime("relay", backoff=STEADY)
    await other.every(SECOND, turn, is_outage=lambda error: isinstance(error, StoreRefusedError))
    with pytest.raises(BrokerRefusedError):
        await Runtime("relay").every(SECOND, refuse)


async def refuse() -> None:
    """Fail as a server does that has another password."""
    raise BrokerRefusedError("the password was changed")


async def test_an_observer_that_raises_anything_ends_no_part() -> None:
    """Also what ends processes and tasks: an observer is a plain call of somebody else's code."""

    class Hostile:
        def notify(self, event: Observation, /) -> None:
            raise SystemExit(3)

    runtime = Runtime("relay", observer=Hostile(), backoff=STEADY)
    script: list[Exception | None] = [StoreUnavailableError("away"), None]

    async def call() -> int:
        step = script.pop(0)
        if step is not None:
            raise step
        return 1

    assert await runtime.until_available(call) == 1


# --- parts of a whole ---


async def test_a_part_that_is_gone_ends_the_whole() -> None:
    """A task group would take a foreign CancelledError, or a return, for an end that somebody wanted."""

    async def raises() -> None:
        await anyio.lowlevel.checkpoint()
        raise asyncio.CancelledError

    async def returns() -> None:
        await anyio.lowlevel.checkpoint()

    async def whole(gone: Callable[[], Awaitable[None]]) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(part_of, "relay's settlement", gone)
            await anyio.sleep_forever()

    for gone, said in ((raises, "ended with CancelledError"), (returns, "ended although nobody")):
        with pytest.raises(ExceptionGroup) as caught:
            await whole(gone)
        assert caught.group_contains(RuntimeError, match=f"relay's settlement {said}")
    await part_of("relay's fetch stage", returns, may_return=True)


async def test_a_cancellation_that_was_asked_for_is_one() -> None:
    """By a scope, or by asyncio's own `Task.cancel`, as of a caller that knows nothing of scopes."""
    with anyio.move_on_after(1) as scope:
        await part_of("relay", anyio.sleep_forever)
    assert scope.cancelled_caught
    task = asyncio.ensure_future(part_of("relay", anyio.sleep_forever))
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
