"""One life for what runs: how a relay, a consumer, a compensator or a tracker starts, waits out outages, and stops.

A part that runs implements `Runnable` and is built on a `Runtime`, which knows its name, whom to tell, and when to
stop. It never writes a reconnect loop of its own: `Runtime.until_available` repeats one call, `Runtime.every` takes
turns, `Runtime.keep` holds something up that lives as long as a connection. All three wait the same way, report the
same way (`ServerLost`, `ServerReady`), and end within a moment of `StopSignal.set`.

`Signal` is how one task tells another that there is something to look at.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Protocol, TypeAlias, TypeVar

import anyio
import anyio.lowlevel

from sagapost.core.backoff import Backoff
from sagapost.core.clock import Clock, SystemClock
from sagapost.core.errors import BrokerError, BrokerUnavailableError, SagapostError, StoreUnavailableError
from sagapost.core.observer import Observation, Observer, Observers

__all__ = [
    "Attempts",
    "Runnable",
    "Runtime",
    "Server",
    "ServerLost",
    "ServerReady",
    "Signal",
    "StopSignal",
    "part_of",
]

T = TypeVar("T")

Server: TypeAlias = Literal["broker", "database"]
"""What a part can lose."""

_OUTAGES: tuple[type[SagapostError], ...] = (BrokerUnavailableError, StoreUnavailableError)


def _is_outage(error: BaseException) -> bool:
    return isinstance(error, _OUTAGES)


_RECONNECT = Backoff(base=timedelta(milliseconds=200), cap=timedelta(seconds=10))


class Runnable(Protocol):
    """A part that runs until it is told to stop. Used for one run."""

    async def run(self) -> None:
        """Run until `stop`, then finish what is in flight and return.

        Outages are waited out. It returns without `stop` never: what no waiting can mend is raised.
        """
        ...

    def stop(self) -> None:
        """Ask `run` to finish and return. Idempotent; may be called before `run`, and from a signal handler's task."""
        ...


@dataclass(frozen=True, slots=True)
class ServerLost(Observation):
    """A server went away, or is not there yet; nothing is lost, and the part goes on when it answers."""

    part: str
    """The part that waits, for example ``relay`` or ``inbox warehouse``."""
    server: Server
    reason: str
    attempt: int
    """Failed attempts in a row, this one included; 0: on the way out, where nothing is tried again."""
    retry_in: float
    """Seconds until the next attempt."""


@dataclass(frozen=True, slots=True)
class ServerReady(Observation):
    """A server that was lost answers again."""

    part: str
    server: Server


class Signal:
    """Wakes whoever waits; set before the wait, it ends the wait at once. Nothing set between two waits is lost.

    `wait` clears it, so there is nothing to re-arm and no moment in which it is not armed. All tasks that wait when it
    is set wake, and none of them takes what is set after another has looked. A wait that is cancelled leaves it set.
    For one event loop; may be made outside of it.
    """

    __slots__ = ("_sets", "_taken", "_waiters")

    def __init__(self) -> None:
        self._sets = 0
        self._taken = 0
        """How many of the sets some wait has returned for."""
        self._waiters: anyio.Event | None = None

    def set(self) -> None:
        """Wake whoever waits, or else the next who does."""
        self._sets += 1
        if self._waiters is not None:
            self._waiters.set()
            self._waiters = None

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until set, for at most `seconds`; clear it and return whether it was set."""
        taken = self._taken
        if self._sets != taken:
            # A turn for others, as at every wait: a loop whose signal is always set must not starve them.
            await anyio.lowlevel.checkpoint()
            self._take(taken)
            return True
        waiters = self._waiters
        if waiters is None:
            waiters = self._waiters = anyio.Event()
        if seconds is None:
            await waiters.wait()
        else:
            with anyio.move_on_after(seconds):
                await waiters.wait()
        if not waiters.is_set():
            return False
        self._take(taken)
        return True

    def _take(self, taken: int) -> None:
        # The first to go on clears it. Had the others cleared it too, they would take what was set since then, which
        # is for the next wait of the first.
        if self._taken == taken:
            self._taken = self._sets


class StopSignal:
    """Set once, when a part is to stop; stays set."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Ask for the stop. Idempotent."""
        self._event.set()

    def is_set(self) -> bool:
        """Return whether the stop was asked for."""
        return self._event.is_set()

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for the stop, for at most `seconds`; return whether it was asked for."""
        if seconds is None:
            await self._event.wait()
        else:
            with anyio.move_on_after(seconds):
                await self._event.wait()
        return self._event.is_set()


async def part_of(name: str, part: Callable[[], Awaitable[None]], *, may_return: bool = False) -> None:
    """Run a part that shares a task group with others, so that it never ends in silence.

    A task group takes a task that returns for done, and one that raises `CancelledError` for cancelled. If neither was
    asked for, the others would go on for ever beside a part that is missing: a relay that no longer deletes what was
    published, say. Both become errors here, which end the whole.

    :param name: the part and what it belongs to, for the error.
    :param may_return: it returns when it sees the stop.
    :raises RuntimeError: if it ended otherwise than by an error or a cancellation that was asked for.
    """
    try:
        await part()
    except anyio.get_cancelled_exc_class() as error:
        if _is_cancelled():
            raise
        raise RuntimeError(
            f"The {name} ended with {type(error).__name__}, which nobody had asked for: code that it calls raised it. "
            "Find that code in the traceback."
        ) from error
    if not may_return:
        raise RuntimeError(
            f"The {name} ended although nobody had asked it to. This is a fault of sagapost: report it."
        )


def _is_cancelled() -> bool:
    """Whether the current task was really cancelled, by a scope or by `asyncio.Task.cancel`."""
    if anyio.current_effective_deadline() == -math.inf:
        return True
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Runtime:
    """What every running part has: a name, an observer that cannot hurt it, a clock, a backoff, and a stop.

    :param name: the part's name in logs and metrics, for example ``inbox warehouse``.
    :param observer: told what happens; what it raises is logged and goes no further.
    :param backoff: waits between attempts to reach a server.
    :param stop: shared by the parts that stop together; default: one of its own.
    """

    __slots__ = ("backoff", "clock", "name", "observer", "stop")

    def __init__(
        self,
        name: str,
        *,
        observer: Observer | None = None,
        clock: Clock | None = None,
        backoff: Backoff = _RECONNECT,
        stop: StopSignal | None = None,
    ) -> None:
        self.name = name
        self.observer: Observer = Observers(() if observer is None else (observer,))
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.backoff = backoff
        self.stop = stop if stop is not None else StopSignal()

    async def until_available(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Repeat `call` while a server it needs cannot be reached; return its result, or None if stopped before."""
        attempts = Attempts(self)
        while not self.stop.is_set():
            try:
                result = await call()
            except _OUTAGES as error:
                await attempts.wait(error)
            else:
                attempts.worked()
                return result
        return None

    async def every(
        self,
        interval: timedelta,
        turn: Callable[[], Awaitable[timedelta | None]],
        *,
        wake: Signal | None = None,
        is_outage: Callable[[BaseException], bool] = _is_outage,
    ) -> None:
        """Take turns until stopped; a turn that meets an outage comes again after the backoff.

        :param interval: the wait between two turns.
        :param turn: one turn; may return how long to wait this time instead (zero: go on at once).
        :param wake: ends the wait early.
        :param is_outage: says whether an error is waited for; default: a server cannot be reached.
        """
        attempts = Attempts(self)
        while not self.stop.is_set():
            try:
                pause = await turn()
            except SagapostError as error:
                if not is_outage(error):
                    raise
                await attempts.wait(error)
                continue
            attempts.worked()
            seconds = (interval if pause is None else pause).total_seconds()
            if seconds <= 0:
                await anyio.lowlevel.checkpoint()
            elif wake is None:
                await self.stop.wait(seconds)
            else:
                await self._wait_for(wake, seconds)

    async def keep(
        self,
        cycle: Callable[[Attempts], Awaitable[None]],
        *,
        is_outage: Callable[[BaseException], bool] = _is_outage,
        lasting: timedelta = timedelta.max,
    ) -> None:
        """Run `cycle`, which lives as long as its connections, again after each outage, until stopped.

        The cycle returns when it sees the stop; one that returns before is begun again. It says what it came to
        (`Attempts.connected`, `Attempts.worked`).

        :param is_outage: says whether an error is waited for; default: a server cannot be reached.
        :param lasting: after a cycle that lived this long an outage is the first, whether or not anything worked.
        """
        attempts = Attempts(self)
        while not self.stop.is_set():
            begun = self.clock.monotonic()
            try:
                await cycle(attempts)
                continue
            except BaseExceptionGroup as group:
                # Task groups wrap; an outage seen by several tasks at once is one outage.
                lost, others = group.split(is_outage)
                if others is not None or lost is None:
                    raise
                error = _first(lost)
            except SagapostError as raised:
                if not is_outage(raised):
                    raise
                error = raised
            if self.clock.monotonic() - begun > lasting.total_seconds():
                attempts.begin_anew()
            await attempts.wait(error)

    async def _wait_for(self, wake: Signal, seconds: float) -> None:
        async with anyio.create_task_group() as tasks:

            async def end_on_stop() -> None:
                await self.stop.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(end_on_stop)
            await wake.wait(seconds)
            tasks.cancel_scope.cancel()


class Attempts:
    """One loop's memory of an outage: how many attempts failed in a row, and of which server."""

    __slots__ = ("_attempt", "_runtime", "_server")

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._attempt = 0
        self._server: Server | None = None

    async def wait(self, error: BaseException) -> float:
        """Report a failed attempt, and wait before the next or for the stop; return the seconds it was to last."""
        runtime = self._runtime
        self._attempt += 1
        self._server = "broker" if isinstance(error, BrokerError) else "database"
        seconds = runtime.backoff.seconds(self._attempt)
        runtime.observer.notify(ServerLost(runtime.name, self._server, str(error), self._attempt, seconds))
        await runtime.stop.wait(seconds)
        return seconds

    async def outlast(self, error: BaseException, probe: Callable[[], Awaitable[object]]) -> bool:
        """Wait until the server that failed with `error` answers a probe; False if stopped and it does not.

        A stop ends the wait and not the question, so that a part that is to stop knows whether it can still finish.
        If it can, the wait is kept after the answer: it was a call of ours that failed, which must not come again at
        full speed.
        """
        stop = self._runtime.stop
        while True:
            seconds = await self.wait(error)
            try:
                await probe()
            except _OUTAGES as still:
                if stop.is_set():
                    return False
                error = still
                continue
            self.connected()
            if stop.is_set():
                await anyio.sleep(seconds)
            return True

    def connected(self) -> None:
        """The server answers again: reported once. The waits go on growing until something has worked."""
        server, self._server = self._server, None
        if server is not None:
            self._runtime.observer.notify(ServerReady(self._runtime.name, server))

    def worked(self) -> None:
        """Something worked: the next outage is waited for from the shortest wait on."""
        self.connected()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Count the next failure as the first; reports nothing."""
        self._attempt = 0


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
