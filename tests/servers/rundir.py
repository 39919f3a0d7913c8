"""One folder for all servers of one run, and the guard that watches over it.

The owner is the process whose end ends the servers: the controller of pytest-xdist, the only pytest process, the demo.
Workers join its folder by path. The guard is started with the first server, so a run without servers costs nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Self

import psutil

from tests.servers.errors import ServerFailedError
from tests.servers.identity import Identity
from tests.servers.processes import PidFile, kill_tree, spawn
from tests.servers.sweep import sweep
from tests.servers.waiting import poll

__all__ = ["RunDirectory"]

_ROOT = Path(__file__).resolve().parents[2]
_GUARD_SECONDS = 20.0


class RunDirectory:
    """The folder of a run. Safe to use from several processes at once; `close` does something in the owner only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        pid, birth = json.loads((path / "owner").read_text())
        self._owner_pid = int(pid)
        self._owner_birth = float(birth)

    @classmethod
    def create(cls) -> Self:
        """A new folder, owned by this process."""
        path = Path(tempfile.mkdtemp(prefix="sagapost-")).resolve()
        # Servers run as other users and must get through to their own folders.
        path.chmod(0o711)
        PidFile(path / "owner").write(psutil.Process())
        return cls(path)

    @contextlib.contextmanager
    def locked(self, name: str) -> Generator[None, None, None]:
        """Hold a lock that all processes of the run share; it falls when its holder dies."""
        with (self.path / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def home(self, name: str) -> Path:
        """A folder for one server, made when it is missing; from the first one on the run is guarded."""
        self.ensure_guard()
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def close(self) -> None:
        """End every server of the run and remove the folder. In any process but the owner: nothing."""
        if os.getpid() != self._owner_pid:
            return
        guard = PidFile(self.path / "guard").read() if self.path.exists() else None
        sweep(self.path)
        # The guard goes last: when this process is killed while it sweeps, the guard takes over.
        if guard is not None:
            kill_tree(guard)
        if self.path.exists():
            raise ServerFailedError(f"cannot remove {self.path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ensure_guard(self) -> None:
        """From now on the run is cleaned up even when its owner is killed. `home` does this by itself."""
        with self.locked("guard"):
            pid_file = PidFile(self.path / "guard")
            if pid_file.read() is not None:
                return
            argv = [sys.executable, "-m", "tests.servers.guard", str(self.path)]
            argv += [str(self._owner_pid), repr(self._owner_birth)]
            log = self.path / "guard.log"
            guard = spawn(argv, identity=Identity("same"), cwd=_ROOT, env=dict(os.environ), log=log)
            pid_file.write(guard)
            guarded = self.path / "guarded"
            if poll(lambda: True if guarded.exists() else None, seconds=_GUARD_SECONDS) is None:
                raise ServerFailedError("the guard of the run did not start, so no server may", log)
