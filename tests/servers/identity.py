"""Whom a server runs as. PostgreSQL refuses to run as root; nobody else's server needs to either."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Identity", "unprivileged"]

_NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Identity:
    """How to start a process that is not root.

    * `same`: as whoever we are.
    * `user`: root becomes the user `uid`.
    * `namespace`: root calls itself `uid` inside a user namespace, and stays able to read what only root can.
    """

    how: Literal["same", "user", "namespace"]
    uid: int = -1
    gid: int = -1

    @property
    def prefix(self) -> list[str]:
        """Words to put before the command line."""
        if self.how != "namespace":
            return []
        return ["unshare", "--user", f"--map-user={self.uid}", f"--map-group={self.gid}"]

    def run(
        self,
        argv: list[str],
        *,
        cwd: Path,
        env: dict[str, str],
        seconds: float = 60.0,
        feed: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end as this identity, output captured; never raises for its exit code."""
        return subprocess.run(
            [*self.prefix, *argv],
            cwd=cwd,
            env=env,
            input=feed,
            stdin=subprocess.DEVNULL if feed is None else None,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            start_new_session=True,
            user=self.uid if self.how == "user" else None,
            group=self.gid if self.how == "user" else None,
            extra_groups=[] if self.how == "user" else None,
        )

    def give(self, path: Path) -> None:
        """Make this identity the owner of a file or folder."""
        if self.how == "user":
            os.chown(path, self.uid, self.gid)


def unprivileged(preferred: str, probe: list[str], folder: Path) -> Identity:
    """An identity that is not root, may run the command `probe` and may enter `folder`.

    Tried, not reckoned from mode bits: a checkout or a temporary folder below a 0700 home is out of reach for
    another user, and then the user namespace is the only way.
    """
    if os.geteuid() != 0:
        return Identity("same")
    user = _user(preferred)
    try:
        # With the exec after the change of user, an unreachable program fails here with PermissionError.
        ran = user.run(probe, cwd=Path("/"), env={"PATH": os.defpath, "HOME": "/"})
        entered = user.run(["/bin/sh", "-c", 'cd "$0"', str(folder)], cwd=Path("/"), env={})
    except OSError:
        pass
    else:
        if ran.returncode == 0 and entered.returncode == 0:
            return user
    return Identity("namespace", _NOBODY, _NOBODY)


def _user(preferred: str) -> Identity:
    for name in (preferred, "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Identity("user", entry.pw_uid, entry.pw_gid)
    return Identity("user", _NOBODY, _NOBODY)
