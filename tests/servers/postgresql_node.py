"""What makes a PostgreSQL a private one: its folder, its port and password, its settings, its environment."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.servers.binaries import PostgreSQLBinaries
from tests.servers.errors import ServerFailedError
from tests.servers.identity import Identity, unprivileged
from tests.servers.ports import LOOPBACK, free_ports

__all__ = ["USER", "PostgreSQLNode", "environment", "initialise"]

USER = "sagapost"

_INITDB_SECONDS = 120.0
_LONGEST_SOCKET_FOLDER = 80

_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "max_connections": "200",
    "max_prepared_transactions": "20",
    "wal_level": "logical",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Files of the data folder, which vanish with it; the default leaves segments in /dev/shm after a SIGKILL.
    "dynamic_shared_memory_type": "mmap",
}
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
_FORGETFUL = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclass(frozen=True, slots=True)
class PostgreSQLNode:
    """What any process of the run needs to know to control the server; kept beside the data."""

    binaries: str
    port: int
    password: str
    identity: Identity

    @classmethod
    def load(cls, home: Path) -> PostgreSQLNode:
        """The node whose folder is `home`."""
        return msgspec.json.decode((home / "node.json").read_bytes(), type=PostgreSQLNode)


def initialise(home: Path, binaries: PostgreSQLBinaries, *, durable: bool, settings: Mapping[str, str]) -> None:
    """Fill an empty folder with a new server, ready to start.

    Raises:
        ServerFailedError: `initdb` failed; the message says how.
    """
    initdb = binaries.folder / "initdb"
    identity = unprivileged("postgres", [str(initdb), "--version"], home.parent)
    identity.give(home)
    node = PostgreSQLNode(str(binaries.folder), free_ports(1)[0], secrets.token_urlsafe(18), identity)
    password_file = home / "password"
    password_file.write_text(node.password)
    identity.give(password_file)
    argv = [str(initdb), "--pgdata", str(home / "data"), "--username", USER, "--pwfile", str(password_file)]
    argv += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]
    argv += [] if durable else ["--no-sync"]
    made = identity.run(argv, cwd=home, env=environment(home), seconds=_INITDB_SECONDS)
    if made.returncode != 0:
        raise ServerFailedError(f"initdb failed: {made.stderr.strip() or made.stdout.strip()}")
    lines = {**_SETTINGS, **(_DURABLE if durable else _FORGETFUL), **settings}
    # A path longer than the system allows for sockets would keep the server from starting.
    lines["unix_socket_directories"] = str(home) if len(str(home)) <= _LONGEST_SOCKET_FOLDER else ""
    with (home / "data" / "postgresql.conf").open("a") as conf:
        conf.writelines(f"{key} = '{value}'\n" for key, value in lines.items())
    (home / "node.json").write_bytes(msgspec.json.encode(node))


def environment(home: Path) -> dict[str, str]:
    """Little, and nothing of the person who runs the tests: their PGDATA and PGPORT would reach the server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), "LC_ALL": "C", "TZ": "UTC"}
