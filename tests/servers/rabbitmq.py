"""A RabbitMQ node of our own: private data folder, ports, cookie and name service (epmd).

    with private_rabbitmq() as broker:
        connection = await aiormq.connect(broker.amqp_url())

Unlike PostgreSQL it knows no mode without fsync, so there is nothing to choose between tests and benchmarks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import quote

import psutil

from tests.servers.binaries import RabbitMQScripts, find_rabbitmq
from tests.servers.brokers import RabbitMQServer, answers
from tests.servers.erlang import NodeControl
from tests.servers.errors import ServerFailedError, ServerMissingError
from tests.servers.ports import LOOPBACK, is_free
from tests.servers.processes import PidFile, end, freeze, is_gone, kill_tree, spawn, thaw
from tests.servers.rabbitmq_admin import AdministeredRabbitMQ
from tests.servers.rabbitmq_node import USER, RabbitMQNode, environment, initialise
from tests.servers.rundir import RunDirectory
from tests.servers.waiting import poll

__all__ = ["PrivateRabbitMQ", "RabbitMQServer", "launch", "private_rabbitmq"]

_START_SECONDS = 90.0
_STOP_SECONDS = 30.0
_EPMD_SECONDS = 10.0


class PrivateRabbitMQ(AdministeredRabbitMQ):
    """A node that this run started. Two objects in two processes can control the same one."""

    def __init__(self, home: Path) -> None:
        """Attach to the node whose folder is `home`, running or not."""
        self.home = home
        self.log = home / "server.log"
        self._pid = PidFile(home / "pid")
        self._epmd_pid = PidFile(home / "epmd.pid")
        self._node = RabbitMQNode.load(home)

    @classmethod
    def initialise(
        cls,
        run: RunDirectory,
        scripts: RabbitMQScripts,
        *,
        name: str = "rabbitmq",
        schedulers: int = 1,
        config: Sequence[str] = (),
    ) -> Self:
        """Prepare the folder of a new node; it is not started yet.

        Args:
            schedulers: threads that run Erlang code. One starts faster and leaves the cores to the tests.
            config: further lines for rabbitmq.conf (`heartbeat = 5`); they win over those here.
        """
        home = run.home(name)
        initialise(home, scripts, schedulers=schedulers, config=config)
        return cls(home)

    @property
    def controllable(self) -> bool:
        """Always: it is ours."""
        return True

    @property
    def port(self) -> int:
        """The AMQP port on the loopback interface; stays the same over restarts."""
        return self._node.amqp_port

    @property
    def ports(self) -> tuple[int, ...]:
        """All ports that it listens on."""
        return (self._node.amqp_port, self._node.distribution_port, self._node.epmd_port)

    @property
    def password(self) -> str:
        """The password of the user in `amqp_url`."""
        return self._node.password

    @property
    def running(self) -> bool:
        """Whether its main process lives, be it paused."""
        return self._pid.read() is not None

    @property
    def control(self) -> NodeControl:
        """The way to its inside, past AMQP."""
        return NodeControl(
            node=self._node.name,
            cookie=self._node.cookie,
            scripts=Path(self._node.scripts),
            erl_call=Path(self._node.erl_call) if self._node.erl_call is not None else None,
            home=self.home,
            environ=environment(self.home, self._node),
            identity=self._node.identity,
        )

    def amqp_url(self, vhost: str | None = None) -> str:
        """`amqp://...` of one virtual host; without a name the default one."""
        return f"amqp://{USER}:{self.password}@{LOOPBACK}:{self.port}/{quote(vhost or '/', safe='')}"

    def start(self) -> None:
        """Start it and wait until it completes an AMQP handshake.

        Raises:
            ServerFailedError: it ended instead, or took too long; the message ends with its log.
        """
        if self.running:
            return
        self._start_epmd()
        argv = [str(Path(self._node.scripts) / "rabbitmq-server")]
        process = spawn(
            argv, identity=self._node.identity, cwd=self.home, env=environment(self.home, self._node), log=self.log
        )
        self._pid.write(process)
        if poll(lambda: self._started(process), seconds=_START_SECONDS, every=0.05) is None:
            self.kill()
            raise ServerFailedError(f"RabbitMQ on port {self.port} is not ready after {_START_SECONDS:g} s", self.log)

    def stop(self) -> None:
        """Shut down cleanly; by force when that takes too long."""
        process = self._pid.read()
        if process is not None:
            thaw(process)
            end(process, signal.SIGTERM, _STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """SIGKILL every process of it at one moment: a crash. Durable queues keep their persistent messages."""
        for pid_file in (self._pid, self._epmd_pid):
            process = pid_file.read()
            if process is not None and not kill_tree(process):
                raise ServerFailedError("RabbitMQ survives SIGKILL", self.log)

    def discard(self) -> None:
        """End it without ceremony and remove its folder: nothing of it is needed any more."""
        self.kill()
        shutil.rmtree(self.home)

    def restart(self) -> None:
        """Stop and start again, on the same port and data; also after `kill`."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze every process of it: connections stay open and nobody answers, heartbeats included."""
        freeze(self._living())

    def resume(self) -> None:
        """End `pause`."""
        thaw(self._living())

    def _start_epmd(self) -> None:
        # In the foreground and before the node, which would otherwise start one that puts itself into the background
        # with `/` as its working folder, where no sweep can tell whose it is.
        if self._epmd_pid.read() is None:
            argv = [self._node.epmd, "-port", str(self._node.epmd_port), "-address", LOOPBACK]
            epmd = spawn(
                argv, identity=self._node.identity, cwd=self.home, env=environment(self.home, self._node), log=self.log
            )
            self._epmd_pid.write(epmd)
        if poll(lambda: _listens(self._node.epmd_port), seconds=_EPMD_SECONDS) is None:
            raise ServerFailedError(f"epmd does not listen on port {self._node.epmd_port}", self.log)

    def _living(self) -> psutil.Process:
        process = self._pid.read()
        if process is None:
            raise ServerFailedError("RabbitMQ is not running", self.log)
        return process

    def _started(self, process: psutil.Process) -> bool | None:
        if is_gone(process):
            raise ServerFailedError(f"RabbitMQ ended while starting on port {self.port}", self.log)
        # The port opens as the last step of the boot; before that a plain connect spares a whole AMQP client.
        return True if _listens(self.port) and answers(self.amqp_url()) else None


@contextlib.contextmanager
def private_rabbitmq(*, schedulers: int = 1, config: Sequence[str] = ()) -> Generator[PrivateRabbitMQ, None, None]:
    """A started node for as long as the context, or this process, lives.

    Raises:
        ServerMissingError: this machine has no RabbitMQ to start.
    """
    scripts = find_rabbitmq(os.environ)
    if scripts is None:
        raise ServerMissingError("no RabbitMQ here: install rabbitmq-server")
    with RunDirectory.create() as run:
        server = launch(run, scripts, schedulers=schedulers, config=config)
        yield server
        server.stop()


def launch(
    run: RunDirectory,
    scripts: RabbitMQScripts,
    *,
    name: str = "rabbitmq",
    schedulers: int = 1,
    config: Sequence[str] = (),
) -> PrivateRabbitMQ:
    """Prepare and start a node, on other ports should one be taken between choosing and using it."""
    for attempt in range(3):
        server = PrivateRabbitMQ.initialise(
            run, scripts, name=f"{name}-{attempt}" if attempt else name, schedulers=schedulers, config=config
        )
        try:
            server.start()
        except ServerFailedError:
            server.kill()
            if attempt == 2 or all(is_free(port) for port in server.ports):
                raise
        else:
            return server
    raise AssertionError("unreachable")


def _listens(port: int) -> bool | None:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0):
            return True
    except OSError:
        return None
