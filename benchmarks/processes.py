"""Processes that take their plan as a line of JSON on standard input and report in lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

__all__ = ["Worker", "say", "worker"]

_LINE = 16 * 1024 * 1024


class Worker:
    """A process that reports in lines of JSON."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None  # opened as pipes
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._lines = BufferedByteReceiveStream(process.stdout)

    async def go(self) -> None:
        """Give the word to begin."""
        await self._stdin.send(b"go\n")

    def kill(self) -> None:
        """SIGKILL it."""
        self._process.kill()

    async def wait(self) -> None:
        """Wait for its end."""
        await self._process.wait()

    async def line(self) -> dict[str, Any]:
        """Return its next report."""
        return dict(json.loads(await self._lines.receive_until(b"\n", _LINE)))


@asynccontextmanager
async def worker(command: Sequence[str], plan: Mapping[str, Any]) -> AsyncGenerator[Worker]:
    """Run a process whose plan comes on standard input, since it holds passwords."""
    async with await anyio.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None
    ) as process:
        assert process.stdin is not None  # opened as a pipe
        await process.stdin.send(json.dumps(plan).encode() + b"\n")
        try:
            yield Worker(process)
        finally:
            if process.returncode is None:
                process.terminate()
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(10):
                    await process.wait()
                if process.returncode is None:
                    process.kill()


# --- in the process ---


def say(line: dict[str, Any]) -> None:
    """Report to the parent."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
