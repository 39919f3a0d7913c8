"""Talk to a running RabbitMQ node from outside of AMQP.

`rabbitmqctl` boots an Erlang of its own for every word (half a second and more). Erlang's `erl_call` is a small
C program that speaks to the node directly (some milliseconds): what every test needs goes through it.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.servers.errors import ServerFailedError
from tests.servers.identity import Identity

__all__ = ["NodeControl"]

_SECONDS = 60.0
_CONNECT_SECONDS = 20.0
_NOT_CONNECTED = "failed to connect"


@dataclass(frozen=True, slots=True)
class NodeControl:
    """How to reach one node: its name, its secret, and the environment that leads to its own epmd."""

    node: str
    cookie: str
    scripts: Path
    erl_call: Path | None
    home: Path
    environ: dict[str, str]
    identity: Identity

    def evaluate(self, expression: str) -> str:
        """Evaluate an Erlang expression (without the full stop) inside the node; returns the printed result.

        Raises:
            ServerFailedError: the node cannot be reached, or the expression failed.
        """
        if self.erl_call is None:
            return self.rabbitmqctl("eval", f"{expression}.").strip()
        argv = [str(self.erl_call), "-sname", self.node, "-c", self.cookie, "-e"]
        done = self._run(argv, feed=f"{expression}.\n")
        give_up = time.monotonic() + _CONNECT_SECONDS
        while _NOT_CONNECTED in done.stderr and time.monotonic() < give_up:
            # A busy node lets a handshake time out now and then. Nothing was evaluated, so it may be asked again.
            time.sleep(0.1)
            done = self._run(argv, feed=f"{expression}.\n")
        answer = done.stdout.strip()
        if done.returncode != 0 or not answer.startswith("{ok, "):
            raise ServerFailedError(f"the node refused {expression}: {answer or done.stderr.strip()}")
        return answer.removeprefix("{ok, ").removesuffix("}")

    def rabbitmqctl(self, *args: str) -> str:
        """Run `rabbitmqctl` against the node; returns what it printed.

        Raises:
            ServerFailedError: it exited with an error.
        """
        done = self._run([str(self.scripts / "rabbitmqctl"), "--node", self.node, *args])
        if done.returncode != 0:
            raise ServerFailedError(f"rabbitmqctl {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _run(self, argv: list[str], feed: str | None = None) -> subprocess.CompletedProcess[str]:
        try:
            return self.identity.run(argv, cwd=self.home, env=self.environ, seconds=_SECONDS, feed=feed)
        except subprocess.TimeoutExpired:
            # A paused node takes the connection and never answers.
            raise ServerFailedError(f"the node did not answer {Path(argv[0]).name} within {_SECONDS:g} s") from None
