"""The guard: waits for the owner of a run to vanish, then cleans up. Run as `python -m tests.servers.guard`.

An owner that ends in the ordinary way has swept already, and the guard with it. What stays for the guard is the owner
that was killed: no handler, no `finally` and no `atexit` of its own could have helped it.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil

from tests.servers.processes import find
from tests.servers.sweep import sweep

__all__ = ["main"]


def main(folder: Path, owner_pid: int, owner_birth: float) -> None:
    """Wait for the end of the owner, then sweep its folder."""
    owner = find(owner_pid, owner_birth)
    (folder / "guarded").touch()
    if owner is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            owner.wait()
    sweep(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
