"""Running `sagapost` as a process of its own, and waiting for what it logs."""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import pytest

from sagapost.ops.cli import main
from tests.processes.command import environment as clean_environment
from tests.processes.nursery import Child
from tests.processes.shared import nursery

__all__ = ["Running", "invoke", "run", "run_at_once", "started"]

Line: TypeAlias = dict[str, Any]

PATIENCE = 60.0


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with these settings and no others."""
    return clean_environment({"PYTHONWARNINGS": "error", "NO_COLOR": "1", **settings})


def run(*arguments: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return nursery().run("sagapost", *arguments, environment=environment(settings), folder=cwd, timeout=PATIENCE)


def run_at_once(*arguments: str, cwd: Path, times: int, **settings: str) -> list[subprocess.CompletedProcess[str]]:
    """Run a command several times at the same time."""
    with ThreadPoolExecutor(times) as threads:
        running = [threads.submit(run, *arguments, cwd=cwd, **settings) for _ in range(times)]
        return [each.result() for each in running]


def invoke(*arguments: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end inside this process: the same, without the half second that a process needs."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        for name in set(os.environ) - set(environment({})):
            patch.delenv(name)
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["sagapost", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    assert code is None or isinstance(code, int), code
    return subprocess.CompletedProcess(arguments, code or 0, out.getvalue(), err.getvalue())


class Running:
    """A process whose log lines are read as they come."""

    def __init__(self, process: Child, errors: TextIO) -> None:
        self.process = process
        self._errors = errors
        self.lines: list[Line] = []
        self._arriving: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for text in self._errors:
            self._arriving.put(text)
        self._arriving.put(None)

    def _next(self, deadline: float) -> Line | None:
        try:
            text = self._arriving.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"nothing more was logged in time; so far: {self.text}") from None
        if text is None:
            return None
        try:
            line: Line = json.loads(text)
        except json.JSONDecodeError:
            raise AssertionError(f"not a JSON line: {text!r}; before it: {self.text}") from None
        self.lines.append(line)
        return line

    def wait_for(self, seen: Callable[[Line], bool] | str) -> Line:
        """Wait for a line; a text is looked for in its message."""

        def wanted(line: Line) -> bool:
            return seen in line["message"] if isinstance(seen, str) else seen(line)

        deadline = time.monotonic() + PATIENCE
        while (line := self._next(deadline)) is not None:
            if wanted(line):
                return line
        raise AssertionError(f"the process ended with {self.process.wait(5)} before that was logged: {self.text}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process, by its id."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the process to end by itself; return its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._next(deadline) is not None:
            pass
        return self.process.wait(PATIENCE)

    @property
    def text(self) -> str:
        """What was logged so far, for a person."""
        shown = [f"{line['level']} {line['logger']}: {line['message']}" for line in self.lines]
        return "\n".join([*shown, *(line["traceback"] for line in self.lines if "traceback" in line)])


@contextmanager
def started(*arguments: str, cwd: Path, **settings: str) -> Generator[Running, None, None]:
    """Start a command; whatever happens, it is gone at the end."""
    read, write = os.pipe()
    with os.fdopen(read) as errors:
        try:
            process = nursery().start(
                "sagapost", *arguments, environment=environment(settings), folder=cwd, errors=write
            )
        finally:
            os.close(write)
        running = Running(process, errors)
        try:
            yield running
        finally:
            process.kill()
            # Before the pipe is closed under it.
            running.reader.join(PATIENCE)
