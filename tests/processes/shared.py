"""The nursery of this process of pytest, and the plugin that closes it. Registered in tests/conftest.py."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TextIO

import anyio.to_thread

from tests.processes.command import environment
from tests.processes.nursery import Nursery

__all__ = ["nursery", "run_module", "running_module"]

_CHECKOUT = Path(__file__).resolve().parents[2]

_until_the_end = contextlib.ExitStack()


@functools.cache
def nursery() -> Nursery:
    """Return it, started by the first who asks. What it bears ends with the run at the latest."""
    folder = _until_the_end.enter_context(tempfile.TemporaryDirectory(prefix="sagapost-nursery-"))
    return _until_the_end.enter_context(Nursery(Path(folder)))


async def run_module(module: str, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` to its end, in the checkout.

    :raises subprocess.TimeoutExpired: if it takes longer; it is killed.
    """
    return await anyio.to_thread.run_sync(
        lambda: nursery().run("-m", module, *arguments, environment=environment({}), folder=_CHECKOUT, timeout=timeout)
    )


@contextlib.contextmanager
def running_module(module: str, *arguments: str) -> Generator[TextIO, None, None]:
    """Start `python -m module` in the checkout, and kill it after the block, which is given what it prints."""
    read, write = os.pipe()
    with os.fdopen(read) as output:
        try:
            child = nursery().start(
                "-m", module, *arguments, environment=environment({}), folder=_CHECKOUT, output=write, errors=2
            )
        finally:
            os.close(write)
        try:
            yield output
        finally:
            child.kill()
            child.wait()


def pytest_sessionfinish() -> None:
    """End it, with all its children."""
    _until_the_end.close()
