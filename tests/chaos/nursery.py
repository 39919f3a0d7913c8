"""Processes that are born with everything imported: `sagapost` commands, forked from one that has done it before.

What is killed every second is started every second. Importing takes a core for more than a second, which on two cores
is all there is: it would be the time of the imports that is measured, and whoever is at work would starve for it. From
here on a child is what the command is elsewhere: a process of its own, with settings, folder and log of its own.

Run as a module, it is the parent of the children: it imports the modules that it is given, forks at each line on
standard input, and reports every child's beginning and end in lines of JSON.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from tests.chaos.command import environment

__all__ = ["Child", "Nursery"]

_COMMON = (
    "sagapost.ops.cli",
    "sagapost.ops.commands",
    "sagapost.adapters.postgresql.store",
    "sagapost.adapters.rabbitmq.broker",
    # Imported by the adapter only when it opens a connection.
    "sagapost.adapters.rabbitmq.connection",
    "sagapost.adapters.rabbitmq.consumer",
    "sagapost.adapters.rabbitmq.publisher",
    "idna",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "uvloop",
)
_START_SECONDS = 60.0


class Order(msgspec.Struct, frozen=True):
    """What a child is to be."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    folder: str
    log: str


class Report(msgspec.Struct, frozen=True):
    """A child was born; or has ended, with an exit code as of `subprocess`."""

    pid: int
    code: int | None = None


class Child:
    """A process, as `subprocess.Popen` shows one."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        return self._nursery.code(self.pid, timeout=0)

    def wait(self, timeout: float = _START_SECONDS) -> int:
        """Wait for its end; return its exit code.

        :raises TimeoutError: if it has not ended by then.
        """
        code = self._nursery.code(self.pid, timeout=timeout)
        if code is None:
            raise TimeoutError(f"process {self.pid} has not ended within {timeout} s")
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL it, if it still runs."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """Where `sagapost` processes are born; used as a context manager, after whose block none of them is left.

    :param folder: inside the folder of the run, so that its guard finds the parent.
    :param modules: what the children would import beside the command.
    """

    def __init__(self, folder: Path, *modules: str) -> None:
        self._folder = folder
        self._modules = modules
        self._changed = threading.Condition()
        self._born: list[int] = []
        self._codes: dict[int, int] = {}
        self._all: list[int] = []

    def __enter__(self) -> Self:
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery", *_COMMON, *self._modules],
            cwd=self._folder,
            env=environment({}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self._all:
            Child(self, pid).kill()
        assert self._parent.stdin is not None  # opened as a pipe
        self._parent.stdin.close()
        self._parent.wait(_START_SECONDS)
        self._reader.join()
        assert self._parent.stdout is not None  # opened as a pipe
        self._parent.stdout.close()

    def start(self, *arguments: str, settings: Mapping[str, str], folder: Path, log: Path) -> Child:
        """Start `sagapost` with these arguments and settings; its log is appended to a file.

        :raises TimeoutError: if the parent does not answer.
        """
        order = Order(arguments, dict(settings), str(folder), str(log))
        assert self._parent.stdin is not None  # opened as a pipe
        self._parent.stdin.write(msgspec.json.encode(order) + b"\n")
        self._parent.stdin.flush()
        with self._changed:
            if not self._changed.wait_for(lambda: self._born, _START_SECONDS):
                raise TimeoutError("the nursery does not answer")
            pid = self._born.pop(0)
        self._all.append(pid)
        return Child(self, pid)

    def code(self, pid: int, *, timeout: float) -> int | None:
        """Return a child's exit code; None if it runs for longer than `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: pid in self._codes, timeout)
            return self._codes.get(pid)

    def _read(self) -> None:
        assert self._parent.stdout is not None  # opened as a pipe
        for line in self._parent.stdout:
            report = msgspec.json.decode(line, type=Report)
            with self._changed:
                if report.code is None:
                    self._born.append(report.pid)
                else:
                    self._codes[report.pid] = report.code
                self._changed.notify_all()


# --- in the parent of the children ---


def _say(report: Report) -> None:
    os.write(1, msgspec.json.encode(report) + b"\n")


def _woken(_number: int, _frame: object) -> None:
    pass


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _say(Report(pid, os.waitstatus_to_exitcode(status)))


def _serve() -> Order | None:
    """Fork at each line; return in each child what it is to be, and None in the parent after the last line."""
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    # With no handler of its own a signal wakes nobody.
    signal.signal(signal.SIGCHLD, _woken)
    rest = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap()
        if 0 not in ready:
            continue
        read = os.read(0, 1 << 16)
        if not read:
            _reap()
            return None
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            order = msgspec.json.decode(line, type=Order)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(woken)
                os.close(wake)
                return order
            _say(Report(pid))


def _become(order: Order) -> None:
    """Be the command."""
    from sagapost.ops.cli import main as command

    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(nothing)
    os.close(log)
    sys.argv = ["sagapost", *order.arguments]
    command()


def main(modules: Sequence[str]) -> None:
    """Be the parent, or whatever child it becomes."""
    for module in modules:
        importlib.import_module(module)
    order = _serve()
    if order is not None:
        _become(order)


if __name__ == "__main__":
    main(sys.argv[1:])
