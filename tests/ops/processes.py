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
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from sagapost.ops.cli import main

__all__ = ["Running", "invoke", "run", "started"]

Line: TypeAlias = dict[str, Any]

PROGRAM = [sys.executable, "-c", "from sagapost.ops.cli import main; main()"]
PATIENCE = 60.0


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("SAGAPOST_")}
    return kept | {"PYTHONWARNINGS": "error", "NO_COLOR": "1"} | dict(settings)


def run(*arguments: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        cwd=cwd,
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


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

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[Line] = []
        self._arriving: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
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
    with subprocess.Popen(
        [*PROGRAM, *arguments], cwd=cwd, env=environment(settings), stderr=subprocess.PIPE, text=True
    ) as process:
        running = Running(process)
        try:
            yield running
        finally:
            process.kill()
            # Before the pipe is closed under it.
            running.reader.join(PATIENCE)
