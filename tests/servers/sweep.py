"""End and remove everything that lives in one run's folder, whoever started it.

A process belongs to a run when its working folder lies inside the run's folder: PostgreSQL's processes all work in
their data folder, and what RabbitMQ and epmd start inherits the folder that they were started in. No registry can
miss a process this way, not even one started a moment before its starter was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import signal
from pathlib import Path

import psutil

from tests.servers.containers import remove_containers
from tests.servers.processes import end, wait_gone

__all__ = ["release_shared_memory", "sweep"]

_POSTMASTER_SECONDS = 5.0
_ROUNDS = 20
_IPC_RMID = 0
_SHARED_MEMORY_LINE = 6


def sweep(folder: Path) -> None:
    """Kill what runs in `folder`, then remove it. Harmless to call again or for a folder that is gone."""
    remove_containers(folder)
    for process in _inhabitants(folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    # SIGQUIT first and only for PostgreSQL: of all servers here it alone owns something outside its folder.
    postmasters = [_postmaster(path) for path in folder.glob("*/data/postmaster.pid")]
    for process in _inhabitants(folder):
        if process.pid in postmasters:
            end(process, signal.SIGQUIT, _POSTMASTER_SECONDS)
    # In rounds, for a worker that has not learned of the end yet may be starting something at this moment.
    for _ in range(_ROUNDS):
        processes = _inhabitants(folder)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_gone(processes, seconds=1.0)
        for path in folder.glob("*/data/postmaster.pid"):
            release_shared_memory(path.parent)
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return


def release_shared_memory(data: Path) -> None:
    """Remove the shared memory that a killed PostgreSQL left in the system, and its pid file.

    Call it only when all its processes are gone. A few bytes each, but the system allows some thousand segments
    and never takes one back by itself.
    """
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return
    if len(lines) > _SHARED_MEMORY_LINE and len(words := lines[_SHARED_MEMORY_LINE].split()) == 2:
        # Fails when the segment is gone already, which is what we want.
        ctypes.CDLL(None).shmctl(int(words[1]), _IPC_RMID, None)
    (data / "postmaster.pid").unlink(missing_ok=True)


def _inhabitants(folder: Path) -> list[psutil.Process]:
    home = str(folder.resolve())
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            cwd = process.cwd()
            # A person who reads the logs in a terminal is a guest, not an inhabitant.
            if (cwd == home or cwd.startswith(f"{home}/")) and process.terminal() is None:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _postmaster(pid_file: Path) -> int:
    try:
        return int(pid_file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return -1
