"""Relays as they run in production: `sagapost relay`, each in a process of its own, to be killed and replaced."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

import anyio.to_thread

from tests.processes.command import environment
from tests.processes.nursery import Child, Nursery

__all__ = ["RelayProcesses"]

_STOP_SECONDS = 40.0
_OWNS = b'"gained": '
"""In the line that a relay logs when it takes partitions."""


class RelayProcesses:
    """A number of relays with the same settings.

    :param home: their working folder; inside the folder of the run, so that its guard finds them.
    """

    def __init__(self, settings: Mapping[str, str], *, nursery: Nursery, home: Path, logs: Path) -> None:
        self._nursery = nursery
        self._environment = environment(settings)
        self._home = home
        self._logs = logs
        self._started = 0
        self._log_of: dict[int, Path] = {}
        self.running: list[Child] = []

    def start(self) -> None:
        """Start one more."""
        self._started += 1
        path = self._logs / f"relay-{self._started}.log"
        with path.open("ab") as log:
            child = self._nursery.start(
                "sagapost", "relay", environment=self._environment, folder=self._home, output=log
            )
        self.running.append(child)
        self._log_of[child.pid] = path

    def at_work(self) -> list[int]:
        """Return which ones have partitions by their own word; the others are still starting."""
        return [which for which, process in enumerate(self.running) if _OWNS in self._log_of[process.pid].read_bytes()]

    def kill(self, which: int) -> None:
        """SIGKILL one, and start its successor at once."""
        process = self.running.pop(which)
        process.kill()
        process.wait()
        self.start()

    async def stop(self, which: int = 0) -> int:
        """SIGTERM one and wait for its end; returns its exit code."""
        process = self.running.pop(which)
        process.send_signal(signal.SIGTERM)
        return await anyio.to_thread.run_sync(process.wait, _STOP_SECONDS)

    def dead(self) -> list[int]:
        """Take out the relays that ended by themselves; return their exit codes."""
        codes = [process.poll() for process in self.running]
        self.running = [process for process, code in zip(self.running, codes, strict=True) if code is None]
        return [code for code in codes if code is not None]
