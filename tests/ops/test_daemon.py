"""The daemon: waits for servers, supervises, drains on a signal, and ends with the right code."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta

import anyio
import pytest

from sagapost.core.backoff import Backoff
from sagapost.core.errors import (
    BrokerRefusedError,
    BrokerUnavailableError,
    ConfigurationError,
    SchemaError,
    StoreRefusedError,
    StoreUnavailableError,
    TopologyConflictError,
)
from sagapost.ops.daemon import Daemon, Requirement, Supervised, Worker
from sagapost.ops.exit_codes import ExitCode, exit_code_of

QUICK = Backoff(base=timedelta(milliseconds=1), cap=timedelta(milliseconds=5))


class Fake:
    """A service that does what the test says and remembers what happened to it."""

    def __init__(self, body: Callable[[Fake], Awaitable[int]]) -> None:
        self._body = body
        self.stopped = anyio.Event()
        self.running = anyio.Event()
        self.cancelled = False

    async def run(self) -> int:
        self.running.set()
        try:
            return await self._body(self)
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise

    def stop(self) -> None:
        self.stopped.set()


async def until_stopped(fake: Fake) -> int:
    """Work until told to stop; settle everything."""
    await fake.stopped.wait()
    return 0


async def stuck(_: Fake) -> int:
    """Never come to an end."""
    await anyio.sleep_forever()
    return 0


def daemon(
    *workers: Supervised,
    requirements: tuple[Requirement, ...] = (),
    fail_fast: bool = False,
    drain: timedelta = timedelta(seconds=5),
) -> Daemon:
    """A daemon of services that are made once."""

    def worker(each: Supervised) -> Worker:
        return Worker("worker", lambda: each, drain)

    made = [worker(each) for each in workers]
    return Daemon(made, requirements, retry=QUICK, fail_fast=fail_fast)


async def run_with_signals(runner: Daemon, running: Fake, *signals: signal.Signals) -> ExitCode:
    """Run, and once the service runs, send the signals to this very process, one after the other."""
    codes: list[ExitCode] = []

    async def run() -> None:
        codes.append(await runner.run())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await running.running.wait()
        for number in signals:
            os.kill(os.getpid(), number)
            await running.stopped.wait()
    return codes[0]


# --- the way down ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_the_exit_code_is_0(number: signal.Signals) -> None:
    """The service is told to stop, ends by itself, and nothing is cancelled."""
    fake = Fake(until_stopped)
    assert await run_with_signals(daemon(fake), fake, number) is ExitCode.OK
    assert not fake.cancelled


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, ExitCode.TERMINATED), (signal.SIGINT, ExitCode.INTERRUPTED)]
)
async def test_a_second_signal_stops_at_once(number: signal.Signals, code: ExitCode) -> None:
    """What will not drain is cancelled, long before the budget of an hour is over."""
    fake = Fake(stuck)
    runner = daemon(fake, drain=timedelta(hours=1))
    with anyio.fail_after(5):
        assert await run_with_signals(runner, fake, signal.SIGTERM, number) is code
    assert fake.cancelled


async def test_the_budget_ends_the_drain(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What has not drained within the budget and its clean-up is cancelled, with a code of its own."""
    monkeypatch.setattr("sagapost.ops.daemon._CLEAN_UP", 0.02)
    # On a busy machine 20 ms more may pass before the loop has its turn, and that would end the test's process.
    monkeypatch.setattr("sagapost.ops.daemon._end", list[int]().append)
    fake = Fake(stuck)
    runner = daemon(fake, drain=timedelta(milliseconds=10))
    with anyio.fail_after(5):
        assert await run_with_signals(runner, fake, signal.SIGTERM) is ExitCode.DRAIN_EXCEEDED
    assert fake.cancelled
    assert "drain budget of 0.01 s ended" in caplog.text


async def test_a_service_that_left_something_in_flight_is_not_drained() -> None:
    """A relay that ended by its own budget says how much was left; the exit code tells."""

    async def left_three(fake: Fake) -> int:
        await fake.stopped.wait()
        return 3

    fake = Fake(left_three)
    assert await run_with_signals(daemon(fake), fake, signal.SIGTERM) is ExitCode.DRAIN_EXCEEDED
    # One of several is enough, whichever ends first.
    fakes = [Fake(until_stopped), Fake(left_three), Fake(until_stopped)]
    assert await run_with_signals(daemon(*fakes), fakes[2], signal.SIGTERM) is ExitCode.DRAIN_EXCEEDED


async def test_every_service_is_drained() -> None:
    """One signal stops them all, and the slowest is waited for."""

    async def slow(fake: Fake) -> int:
        await fake.stopped.wait()
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        return 0

    quick, late = Fake(until_stopped), Fake(slow)
    assert await run_with_signals(daemon(quick, late), late, signal.SIGTERM) is ExitCode.OK
    assert quick.stopped.is_set()
    assert not late.cancelled


# --- failures ---


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (TopologyConflictError(entity="queue", name="q", argument="x-queue-type", detail="d"), 2),
        (BrokerRefusedError("x"), 3),
        (StoreRefusedError("x"), 3),
        (SchemaError(found=None, expected=1, where="The database"), 4),
        (KeyError("bug"), 1),
        (ExceptionGroup("wrapped", [StoreRefusedError("x")]), 3),
        (ExceptionGroup("two", [StoreRefusedError("x"), KeyError("bug")]), 1),
        (ExceptionGroup("two", [StoreUnavailableError("x"), SchemaError(found=None, expected=1, where="d")]), 4),
    ],
)
async def test_a_failure_that_no_retry_mends_drains_the_others(
    error: Exception, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The first failure decides the exit code, is logged once, and the other services still drain."""

    async def fail(_: Fake) -> int:
        raise error

    other = Fake(until_stopped)
    assert await daemon(other, Fake(fail)).run() == code
    assert other.stopped.is_set()
    assert not other.cancelled
    assert [record.levelname for record in caplog.records if record.levelno >= logging.ERROR] == ["CRITICAL"]


async def test_a_service_that_ends_unasked_is_a_failure() -> None:
    """Nothing runs on half: a relay that silently ended would be noticed days later."""

    async def end(_: Fake) -> int:
        return 0

    assert await daemon(Fake(end)).run() is ExitCode.UNEXPECTED


@pytest.mark.parametrize(
    "error", [BrokerUnavailableError("away"), ExceptionGroup("g", [StoreUnavailableError("away")])]
)
async def test_a_service_whose_server_went_away_is_made_anew(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """With one clear line per attempt; here twice, then it works."""
    made: list[Fake] = []

    async def fail_twice(fake: Fake) -> int:
        if len(made) <= 2:
            raise error
        return await until_stopped(fake)

    works = anyio.Event()

    def make() -> Fake:
        fake = Fake(fail_twice)
        made.append(fake)
        if len(made) == 3:
            works.set()
        return fake

    runner = Daemon([Worker("relay", make, timedelta(seconds=5))], (), retry=QUICK, fail_fast=False)
    codes: list[ExitCode] = []

    async def run() -> None:
        codes.append(await runner.run())

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await works.wait()
            await made[2].running.wait()
            os.kill(os.getpid(), signal.SIGTERM)
    assert codes == [ExitCode.OK]
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.split(";")[0] for line in lines] == ["away Attempt 1", "away Attempt 2"]
    assert {vars(record)["part"] for record in caplog.records if record.levelno == logging.WARNING} == {"relay"}


# --- the way up ---


class Server:
    """A requirement that is met after some attempts."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.asked = 0
        self.requirement = Requirement("broker", self._check)

    async def _check(self) -> None:
        self.asked += 1
        if self._failures:
            raise self._failures.pop(0)


async def test_an_unreachable_server_is_asked_again_until_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    """One line per attempt with the reason and the wait; one line when it answers; only then the services start."""
    caplog.set_level(logging.INFO)
    server = Server(*[BrokerUnavailableError("The broker at x cannot be reached.") for _ in range(3)])
    fake = Fake(until_stopped)
    assert await run_with_signals(daemon(fake, requirements=(server.requirement,)), fake, signal.SIGTERM) == 0
    assert server.asked == 4
    waiting = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(waiting) == 3
    assert waiting[2].startswith("The broker at x cannot be reached. Attempt 3; next in 0.0 s.")
    assert "the broker answers again" in caplog.text


async def test_fail_fast_asks_once() -> None:
    """For supervisors that restart by themselves: exit code 5, and no service was started."""
    server = Server(StoreUnavailableError("away"))
    fake = Fake(until_stopped)
    code = await daemon(fake, requirements=(server.requirement,), fail_fast=True).run()
    assert code is ExitCode.UNAVAILABLE
    assert server.asked == 1
    assert not fake.running.is_set()


@pytest.mark.parametrize(
    ("error", "code"), [(BrokerRefusedError("no"), 3), (SchemaError(found=None, expected=1, where="d"), 4)]
)
async def test_a_refusal_at_the_start_is_not_retried(error: Exception, code: int) -> None:
    """A wrong password does not become right by asking again."""
    server = Server(error)
    assert await daemon(Fake(until_stopped), requirements=(server.requirement,)).run() == code
    assert server.asked == 1


async def test_a_signal_while_waiting_for_a_server_ends_the_process() -> None:
    """A deployment that is rolled back while its database is away need not be killed."""
    asked = anyio.Event()

    async def never() -> None:
        asked.set()
        raise StoreUnavailableError("away")

    patient = Backoff(base=timedelta(hours=1), cap=timedelta(hours=1))
    runner = Daemon((), (Requirement("database", never),), retry=patient, fail_fast=False)
    codes: list[ExitCode] = []

    async def run() -> None:
        codes.append(await runner.run())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await asked.wait()
            os.kill(os.getpid(), signal.SIGTERM)
    assert codes == [ExitCode.OK]


async def test_a_service_that_cannot_be_made_ends_the_start_before_any_waiting() -> None:
    """What is wrong in a declaration shows at once, not when the database is back."""
    server = Server(StoreUnavailableError("away"))

    def make() -> Fake:
        raise ConfigurationError("The inbox has no handlers.")

    runner = Daemon([Worker("inbox", make, timedelta(0))], [server.requirement], retry=QUICK, fail_fast=False)
    assert await runner.run() is ExitCode.CONFIGURATION
    assert server.asked == 0


def test_every_code_is_documented_and_distinct() -> None:
    """Supervisors decide by these numbers, so they never change."""
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "UNEXPECTED": 1,
        "CONFIGURATION": 2,
        "REFUSED": 3,
        "SCHEMA": 4,
        "UNAVAILABLE": 5,
        "DRAIN_EXCEEDED": 6,
        "NOT_FOUND": 7,
        "CONFLICT": 8,
        "UNWELL": 9,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
    }
    assert exit_code_of(ExceptionGroup("g", [BrokerUnavailableError("x")])) is ExitCode.UNAVAILABLE
