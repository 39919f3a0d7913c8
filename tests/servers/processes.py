"""Processes of a server, by process id: started detached, so that any worker of a run can control them.

A server is started by whichever process needs it first and controlled by all, so nobody is its parent: no zombies
to reap, nothing that ends with the worker that happened to start it. `sweep` finds what is left by working folder.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from tests.servers.errors import ServerFailedError
from tests.servers.identity import Identity
from tests.servers.waiting import poll

__all__ = ["PidFile", "end", "freeze", "is_gone", "kill_tree", "spawn", "thaw", "wait_gone"]

# The clock of process starts has the resolution of a jiffy, and its origin may be corrected while we run.
_BIRTH_TOLERANCE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class PidFile:
    """Remembers one process across processes, safe against a process id that was used again."""

    path: Path

    def write(self, process: psutil.Process) -> None:
        """Remember this process."""
        # In one step, for other processes read it at any time.
        draft = self.path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps([process.pid, process.create_time()]))
        draft.replace(self.path)

    def read(self) -> psutil.Process | None:
        """The remembered process while it lives, else None."""
        try:
            pid, birth = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        return find(int(pid), float(birth))


def find(pid: int, birth: float) -> psutil.Process | None:
    """The living process with this id, if it is the one that started at `birth`."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - birth) < _BIRTH_TOLERANCE_SECONDS
    except psutil.NoSuchProcess:
        return None
    return process if same and not is_gone(process) else None


def spawn(argv: list[str], *, identity: Identity, cwd: Path, env: dict[str, str], log: Path) -> psutil.Process:
    """Start a detached process in a session of its own, its output appended to `log`.

    Raises:
        ServerFailedError: the program could not be started or was gone at once.
    """
    # A shell in between that leaves at once makes the server an orphan: it is not our child but the system's.
    started = identity.run(
        ["/bin/sh", "-c", 'log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!', "sh", str(log), *argv],
        cwd=cwd,
        env=env,
    )
    if started.returncode != 0:
        raise ServerFailedError(f"cannot start {argv[0]}: {started.stderr.strip()}", log)
    try:
        return psutil.Process(int(started.stdout))
    except psutil.NoSuchProcess:
        raise ServerFailedError(f"{argv[0]} ended at once", log) from None


def is_gone(process: psutil.Process) -> bool:
    """Whether the process ended; one that only waits for its parent to notice counts as ended."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_gone(processes: Iterable[psutil.Process], seconds: float) -> bool:
    """Wait until all have ended; False when `seconds` were not enough."""
    waiting = list(processes)
    return poll(lambda: True if all(is_gone(each) for each in waiting) else None, seconds=seconds) is not None


def freeze(root: psutil.Process) -> list[psutil.Process]:
    """Stop a process and all below it with SIGSTOP; returns them, the root first.

    Servers put their children into sessions of their own, so signalling a process group would miss them.
    """
    frozen: dict[int, psutil.Process] = {}
    found = [root]
    # Again until nothing new turns up: a fork may have been in progress while its parent was being stopped.
    while found:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
            frozen[process.pid] = process
        for process in found:
            poll(partial(_stands_still, process), seconds=2.0, every=0.001)
        try:
            found = [child for child in root.children(recursive=True) if child.pid not in frozen]
        except psutil.NoSuchProcess:
            found = []
    return list(frozen.values())


def thaw(root: psutil.Process) -> None:
    """Let a frozen process and all below it go on."""
    # Children first: a root that runs again would otherwise wonder about children that do not answer.
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def kill_tree(root: psutil.Process, seconds: float = 10.0) -> bool:
    """SIGKILL a process and all below it, as a power cut would; False when some are still there after `seconds`."""
    processes = freeze(root)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return wait_gone(processes, seconds)


def end(process: psutil.Process, signal: int, seconds: float) -> bool:
    """Ask a process to end with one signal; False when it is still there after `seconds`."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal)
    return wait_gone([process], seconds)


def _stands_still(process: psutil.Process) -> bool | None:
    try:
        return process.status() in {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE} or None
    except psutil.NoSuchProcess:
        return True
