"""Processes that are born with everything imported, forked from one that has done it before.

Importing takes a core for a second or more, which on two cores is all there is. Where processes are killed every
second it would be the time of the imports that is measured, and whoever is at work would starve for it; where a test
starts forty of them, it waits for nothing else. From here on a child is what the command is elsewhere: a process of
its own, with arguments, environment, folder and output of its own.

Run as a module, it is the parent of the children: it reads orders from a socket, imports what an order's program needs
when it is the first of its kind, forks, and reports every child's beginning and end, all in lines of JSON.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from tests.processes.command import environment as clean_environment

__all__ = ["Child", "Nursery"]

_SAGAPOST = "sagapost"
_DRIVERS = (
    "idna",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "uvloop",
)
"""Imported by `sagapost`, or for it, when a command needs them."""
_START_SECONDS = 60.0


class Order(msgspec.Struct, frozen=True):
    """What a child is to be; its output and its errors come along as file descriptors."""

    number: int
    arguments: tuple[str, ...]
    environment: dict[str, str]
    folder: str


class Report(msgspec.Struct, frozen=True):
    """The child of an order was born; or has ended, with an exit code as of `subprocess`."""

    number: int
    pid: int
    code: int | None = None


class Child:
    """A process, as `subprocess.Popen` shows one."""

    def __init__(self, nursery: Nursery, number: int, pid: int) -> None:
        self._nursery = nursery
        self._number = number
        self.pid = pid

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        return self._nursery.code(self._number, timeout=0)

    def wait(self, timeout: float = _START_SECONDS) -> int:
        """Wait for its end; return its exit code.

        :raises subprocess.TimeoutExpired: if it has not ended by then.
        """
        code = self._nursery.code(self._number, timeout=timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL it, if it still runs."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """Where processes are born; used as a context manager, after whose block none of them is left.

    Each program is named as on a command line: `"sagapost", "relay"`, or `"-m", "tests.inbox.victim", plan`.

    :param folder: the parent's working folder; inside the folder of a run of servers, its guard finds the parent.
    :param modules: what children will import besides their program, such as the module that a consumer is named.
    """

    def __init__(self, folder: Path, *modules: str) -> None:
        self._folder = folder
        self._modules = modules
        self._ordering = threading.Lock()
        self._changed = threading.Condition()
        self._born: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        self._ended = False
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._parent = subprocess.Popen(
                [sys.executable, "-m", "tests.processes.nursery", str(theirs.fileno()), *self._modules],
                cwd=self._folder,
                env=clean_environment({}),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Ctrl-C in the terminal is for whoever ends the children in order.
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.kill()
        self._socket.shutdown(socket.SHUT_WR)
        self._parent.wait(_START_SECONDS)
        self._reader.join()
        self._socket.close()

    def start(
        self,
        *command: str,
        environment: Mapping[str, str],
        folder: Path,
        output: int | IO[bytes] = subprocess.DEVNULL,
        errors: int | IO[bytes] | None = None,
    ) -> Child:
        """Start a program with these arguments and this environment, and no others.

        :param output: where it writes, `errors` for its errors if elsewhere: open files, as of `subprocess`.
        :raises TimeoutError: if the parent does not answer.
        """
        with Path(os.devnull).open("ab") as nowhere, self._ordering:
            files = [nowhere if output == subprocess.DEVNULL else output]
            files.append(files[0] if errors is None else errors)
            number = len(self._children)
            order = Order(number, command, dict(environment), str(folder))
            descriptors = [each if isinstance(each, int) else each.fileno() for each in files]
            # One at a time, each answered before the next: so descriptors cannot be mixed up.
            rest = msgspec.json.encode(order) + b"\n"
            rest = rest[socket.send_fds(self._socket, [rest], descriptors) :]
            self._socket.sendall(rest)
            with self._changed:
                self._changed.wait_for(lambda: self._ended or number in self._born, _START_SECONDS)
                if number not in self._born:
                    raise TimeoutError(f"the nursery does not answer {' '.join(command)}; its own errors say why")
            child = Child(self, number, self._born[number])
            self._children.append(child)
            return child

    def run(
        self, *command: str, environment: Mapping[str, str], folder: Path, timeout: float = _START_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end.

        :raises subprocess.TimeoutExpired: if it takes longer; it is killed.
        """
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            child = self.start(*command, environment=environment, folder=folder, output=output, errors=errors)
            try:
                code = child.wait(timeout)
            finally:
                child.kill()
            output.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess(command, code, output.read().decode(), errors.read().decode())

    @property
    def parent(self) -> int:
        """The process id of the children's parent."""
        return self._parent.pid

    def code(self, number: int, *, timeout: float) -> int | None:
        """Return a child's exit code; None if it runs for longer than `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: number in self._codes, timeout)
            return self._codes.get(number)

    def _read(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                report = msgspec.json.decode(line, type=Report)
                with self._changed:
                    if report.code is None:
                        self._born[report.number] = report.pid
                    else:
                        self._codes[report.number] = report.code
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


# --- in the parent of the children ---


def _woken(_number: int, _frame: object) -> None:
    pass


class _Parent:
    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._children: dict[int, int] = {}
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake)
        # With no handler of its own a signal wakes nobody.
        signal.signal(signal.SIGCHLD, _woken)

    def serve(self) -> Order | None:
        """Fork at each order; return in each child what it is to be, and None in the parent after the last one."""
        while True:
            ready, _, _ = select.select([self._link.fileno(), self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap(os.WNOHANG)
            if self._link.fileno() not in ready:
                continue
            order, descriptors = self._next()
            if order is None:
                break
            _import(order.arguments)
            # Neither is for the children to collect.
            gc.freeze()
            pid = os.fork()
            if not pid:
                self._leave(descriptors)
                return order
            self._children[pid] = order.number
            for each in descriptors:
                os.close(each)
            self._report(Report(order.number, pid))
        # Whoever ordered them is gone, and may have had no time to end them.
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        self._reap(0)
        return None

    def _next(self) -> tuple[Order | None, list[int]]:
        try:
            read, descriptors, _, _ = socket.recv_fds(self._link, 1 << 16, 2)
            while read and not read.endswith(b"\n"):
                read += self._link.recv(1 << 16)
        except ConnectionError:
            return None, []
        return msgspec.json.decode(read, type=Order) if read else None, descriptors

    def _reap(self, options: int) -> None:
        while self._children:
            pid, status = os.waitpid(-1, options)
            if not pid:
                return
            self._report(Report(self._children.pop(pid), pid, os.waitstatus_to_exitcode(status)))

    def _report(self, report: Report) -> None:
        # Where nobody is left to be told, the end of the orders comes next.
        with contextlib.suppress(ConnectionError):
            self._link.sendall(msgspec.json.encode(report) + b"\n")

    def _leave(self, descriptors: Sequence[int]) -> None:
        """Keep nothing of the parent, in a child, but what was imported."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._woken)
        os.close(self._wake)
        self._link.close()
        for each, standard in zip(descriptors, (1, 2), strict=True):
            os.dup2(each, standard)
            os.close(each)


def _import(command: Sequence[str]) -> None:
    """Import what a program imports, unless that was done before."""
    if command[0] == _SAGAPOST:
        for module in (*_all_of_sagapost(), *_DRIVERS):
            importlib.import_module(module)
    else:
        importlib.import_module(command[1])


@functools.cache
def _all_of_sagapost() -> tuple[str, ...]:
    """Return every module: which of them a command imports late is the command's affair."""
    import sagapost

    found = pkgutil.walk_packages(sagapost.__path__, "sagapost.")
    return tuple(each.name for each in found if not each.name.endswith(".__main__"))


def _become(order: Order) -> None:
    """Be the program."""
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    if "PYTHONWARNINGS" in order.environment:
        # Read by an interpreter that starts.
        assert order.environment["PYTHONWARNINGS"] == "error"
        warnings.simplefilter("error")
    program, *arguments = order.arguments
    if program == _SAGAPOST:
        from sagapost.ops.cli import main as command

        # As a script has it: by its own name, and without the folder of `python -m` on the path.
        script = sys.modules["__main__"]
        script.__package__ = script.__spec__ = None
        del sys.path[0]
        sys.argv = [program, *arguments]
        command()
    else:
        module, *arguments = arguments
        sys.path[0] = order.folder
        sys.argv = [module, *arguments]
        # Run from its beginning, as `python -m` does.
        del sys.modules[module]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def main(descriptor: str, modules: Sequence[str]) -> None:
    """Be the parent, or whatever child it becomes."""
    for module in modules:
        importlib.import_module(module)
    order = _Parent(socket.socket(fileno=int(descriptor))).serve()
    if order is not None:
        _become(order)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
