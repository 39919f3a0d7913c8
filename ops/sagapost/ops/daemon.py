"""Running relays and consumers as a process: wait for the servers, supervise, drain on a signal, end with a code.

wait for each requirement -> run the services -> SIGTERM/SIGINT: stop, drain within the budget -> exit code
                                                 a second signal: stop at once
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

import anyio

from sagapost.core.backoff import Backoff
from sagapost.core.errors import BrokerUnavailableError, SagapostError, StoreUnavailableError
from sagapost.core.life import Attempts, Runtime, StopSignal
from sagapost.ops.exit_codes import ExitCode, exit_code_of
from sagapost.ops.log_observer import LogObserver

__all__ = ["Daemon", "Requirement", "Supervised", "Worker", "run_daemon"]

_log = logging.getLogger("sagapost.ops.daemon")

_CLEAN_UP: Final = 10.0
"""Seconds a service may need after its drain budget for its own bounded clean-up (handing leases over, closing)."""
_AT_ONCE: Final = 1.0
"""Seconds that "at once" leaves for clean-up before the process is ended whatever its threads do."""


class Supervised(Protocol):
    """Something that runs until it is told to stop. Used for one run."""

    async def run(self) -> int:
        """Run until `stop`, then drain; return how much was left in flight (0: everything was settled).

        :raises StoreUnavailableError, BrokerUnavailableError: if a server went away and the service does not wait for
            it itself; it is then made anew and run again.
        """
        ...

    def stop(self) -> None:
        """Ask `run` to drain and return. Idempotent; may be called before `run`."""
        ...


@dataclass(frozen=True, slots=True)
class Worker:
    """A service to supervise."""

    name: str
    make: Callable[[], Supervised]
    drain: timedelta
    """How long it may take to drain after `stop`."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A server that must answer before anything starts."""

    name: str
    check: Callable[[], Awaitable[None]]
    """Raises `StoreUnavailableError` or `BrokerUnavailableError` to be asked again; others end the start."""


class Daemon:
    """Supervises workers in one task group until a signal, or a failure that no retry can mend."""

    def __init__(
        self,
        workers: Sequence[Worker],
        requirements: Sequence[Requirement],
        *,
        retry: Backoff,
        fail_fast: bool,
    ) -> None:
        self._workers = workers
        self._requirements = requirements
        self._retry = retry
        self._fail_fast = fail_fast
        self._budget = max((worker.drain.total_seconds() for worker in workers), default=0.0)
        self._stopping = StopSignal()
        self._observer = LogObserver(_log)
        self._running: list[Supervised] = []
        self._left = 0
        self._code = ExitCode.OK
        self._deadline = anyio.CancelScope()
        self._last_resort: threading.Timer | None = None

    async def run(self) -> ExitCode:
        """Run until stopped; return the code to exit with. Every failure has been logged by then."""
        try:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._listen, signals)
                    with self._deadline:
                        await self._start_and_run()
                    tasks.cancel_scope.cancel()
        finally:
            if self._last_resort is not None:
                self._last_resort.cancel()
        if self._code is ExitCode.OK:
            if self._deadline.cancelled_caught:
                self._code = ExitCode.DRAIN_EXCEEDED
                _log.error("the drain budget of %g s ended with work in flight, which is done again", self._budget)
            elif self._left:
                self._code = ExitCode.DRAIN_EXCEEDED
                _log.error("stopped with %d in flight, which is done again", self._left)
            else:
                _log.info("stopped; nothing was left in flight")
        return self._code

    # --- the way up ---

    async def _start_and_run(self) -> None:
        try:
            # Made before anything is waited for: what is wrong with them shows at once.
            services = [worker.make() for worker in self._workers]
            for requirement in self._requirements:
                await self._wait_for(requirement)
        except Exception as error:
            self._fail("cannot start", error)
            return
        if self._stopping.is_set():
            return
        _log.info("started: %s", ", ".join(worker.name for worker in self._workers))
        async with anyio.create_task_group() as tasks:
            for worker, service in zip(self._workers, services, strict=True):
                tasks.start_soon(self._supervise, worker, service, name=worker.name)

    async def _wait_for(self, requirement: Requirement) -> None:
        """Ask until the requirement is met, or a stop is asked for."""
        if self._fail_fast:
            await requirement.check()
        else:
            await self._runtime(requirement.name).until_available(requirement.check)

    async def _supervise(self, worker: Worker, service: Supervised) -> None:
        """Run one worker, made anew whenever a server went away under it, until it ends for good."""
        made: list[Supervised] = [service]

        async def run(_: Attempts) -> None:
            failure = await self._run_once(made.pop() if made else worker.make())
            if isinstance(failure, StoreUnavailableError | BrokerUnavailableError):
                raise failure
            if failure is None and not self._stopping.is_set():
                failure = RuntimeError(f"{worker.name} ended although nobody asked it to")
            if failure is not None:
                self._fail(worker.name, failure)

        # Having worked for a while, it starts again with short waits.
        await self._runtime(worker.name).keep(run, lasting=self._retry.cap)

    def _runtime(self, name: str) -> Runtime:
        return Runtime(name, observer=self._observer, backoff=self._retry, stop=self._stopping)

    async def _run_once(self, service: Supervised) -> Exception | None:
        """Run a service to its end; return what ended it, None if it drained."""
        self._running.append(service)
        try:
            left = await service.run()
            # Not `+= await`: that reads the sum before the others, who drain at the same time, have added to it.
            self._left += left
        except Exception as error:
            return _sole(error)
        except BaseException as error:
            if isinstance(error, anyio.get_cancelled_exc_class()) and anyio.current_effective_deadline() == -math.inf:
                # Ours: the drain budget is over, or another part failed.
                raise
            return RuntimeError(f"it ended with {type(error).__name__}, which nobody had asked for")
        finally:
            self._running.remove(service)
        return None

    # --- the way down ---

    async def _listen(self, signals: AsyncIterator[signal.Signals]) -> None:
        async for number in signals:
            if not self._stopping.is_set():
                _log.info("%s: draining, for at most %g s; another one stops at once", number.name, self._budget)
                self._stop()
            else:
                self._code = ExitCode(128 + number)
                _log.warning("%s again: stopping at once; what was in flight is done again elsewhere", number.name)
                self._end_whatever_happens(_AT_ONCE, self._code)
                self._deadline.cancel()
                return

    def _fail(self, name: str, error: Exception) -> None:
        """Report a failure that no retry can mend, and stop the others."""
        if self._code is ExitCode.OK:
            self._code = exit_code_of(error)
        if isinstance(error, ExceptionGroup) or not isinstance(error, SagapostError):
            _log.critical("%s failed", name, exc_info=error)
        else:
            _log.critical("%s: %s", name, error)
        self._stop()

    def _stop(self) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._deadline.deadline = anyio.current_time() + self._budget + _CLEAN_UP
        self._end_whatever_happens(self._budget + 2 * _CLEAN_UP, ExitCode.DRAIN_EXCEEDED)
        for service in self._running:
            service.stop()

    def _end_whatever_happens(self, seconds: float, code: ExitCode) -> None:
        """End the process after `seconds`, even if a handler blocks its thread, or the event loop, for ever."""
        if self._last_resort is not None:
            self._last_resort.cancel()
        self._last_resort = threading.Timer(seconds, _end, args=(code,))
        self._last_resort.daemon = True
        self._last_resort.start()


def _sole(error: Exception) -> Exception:
    """Return the one error inside a group of one, as task groups wrap it; any other error as it is."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _end(code: ExitCode) -> None:
    """Leave without waiting for anything; nothing in flight is lost, it only is done again."""
    farewell = threading.Thread(
        target=_log.critical, args=("a task or thread did not end in time; leaving without it",), daemon=True
    )
    farewell.start()
    # Not longer: whoever holds standard error may be what is stuck.
    farewell.join(0.5)
    os._exit(code)


def run_daemon(main: Callable[[], Awaitable[ExitCode]]) -> ExitCode:
    """Run `main` on an event loop, uvloop's where that is installed."""
    try:
        import uvloop  # pyright: ignore[reportUnusedImport] # noqa: F401 - anyio uses it if it is there
    except ModuleNotFoundError:
        options = {}
    else:
        options = {"use_uvloop": True}
    return anyio.run(main, backend_options=options)
