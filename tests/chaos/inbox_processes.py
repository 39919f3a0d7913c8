"""Consumers as in production: `sagapost consume`, replicas of one service, each supervised and replaceable."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from tests.processes.command import environment
from tests.processes.nursery import Child, Nursery

__all__ = ["ConsumerProcesses"]

_STOP_SECONDS = 40.0
_AT_WORK = b"consumes from"
"""In the line that a consumer logs when it has subscribed."""


class ConsumerProcesses:
    """One replica for each of the given settings; one that ends is started again, as a supervisor would.

    :param home: their working folder; inside the folder of the run, so that its guard finds them.
    """

    def __init__(
        self,
        inbox: str,
        settings: Sequence[Mapping[str, str]],
        *,
        nursery: Nursery,
        home: Path,
        logs: Path,
        module: str = "tests.chaos.inbox_service",
    ) -> None:
        self._inbox = f"{module}:{inbox}"
        self._nursery = nursery
        self._environments = [environment(own) for own in settings]
        self._home = home
        self._logs = logs
        self._running: dict[int, Child] = {}
        self._log_of: dict[int, Path] = {}
        self._started = 0
        self.died = 0
        """How many ended by SIGKILL that nobody here had sent: a message killed them."""
        self.ended: list[int] = []
        """Exit codes of those that ended by themselves in another way, or were stopped in order."""

    def start_all(self) -> None:
        """Start every replica."""
        for which in range(len(self._environments)):
            self._start(which)

    @property
    def count(self) -> int:
        """How many replicas there are."""
        return len(self._environments)

    async def supervise(self) -> None:
        """Start those again that end; until cancelled."""
        while True:
            await anyio.sleep(0.1)
            for which, process in list(self._running.items()):
                code = process.poll()
                if code is not None:
                    self._note(code)
                    self._start(which)

    def at_work(self) -> list[int]:
        """Return which have subscribed since they were started; the death of one that still starts shows nothing."""
        return [which for which in self._running if _AT_WORK in self._log_of[which].read_bytes()]

    def kill(self, which: int) -> None:
        """SIGKILL one, and start its successor at once."""
        process = self._running[which]
        process.kill()
        process.wait()
        self._start(which)

    async def replace(self, which: int) -> None:
        """SIGTERM one, and start its successor when it has drained."""
        await self._stop(which)
        self._start(which)

    async def stop_all(self) -> None:
        """SIGTERM all of them."""
        for which in list(self._running):
            await self._stop(which)

    async def _stop(self, which: int) -> None:
        process = self._running.pop(which)
        try:
            process.send_signal(signal.SIGTERM)
            self._note(await anyio.to_thread.run_sync(process.wait, _STOP_SECONDS))
        except BaseException:
            process.kill()
            process.wait()
            raise

    def _note(self, code: int) -> None:
        if code == -signal.SIGKILL:
            self.died += 1
        else:
            self.ended.append(code)

    def _start(self, which: int) -> None:
        self._started += 1
        path = self._log_of[which] = self._logs / f"consumer-{which}-{self._started}.log"
        command = ("sagapost", "consume", self._inbox)
        with path.open("ab") as log:
            self._running[which] = self._nursery.start(
                *command, environment=self._environments[which], folder=self._home, output=log
            )
