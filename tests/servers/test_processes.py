"""Processes are found, frozen and killed with all that is below them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from tests.servers.errors import ServerFailedError
from tests.servers.identity import Identity
from tests.servers.ports import free_ports, is_free
from tests.servers.processes import PidFile, find, freeze, is_gone, kill_tree, spawn, thaw
from tests.servers.waiting import poll

# A process, its child, and a grandchild in a session of its own, as PostgreSQL and Erlang start theirs.
_FAMILY = """
import os, signal, sys
for generation in range(2):
    if os.fork():
        break
    os.setsid()
print("up", flush=True)
signal.pause()
"""


def _family(tmp_path: Path) -> list[psutil.Process]:
    log = tmp_path / "log"
    root = spawn(
        [sys.executable, "-c", _FAMILY], identity=Identity("same"), cwd=tmp_path, env=dict(os.environ), log=log
    )
    assert poll(lambda: True if log.read_text().count("up") == 3 else None, seconds=10)
    return [root, *root.children(recursive=True)]


def test_kill_tree_leaves_nobody(tmp_path: Path) -> None:
    """Children in other sessions die with their root."""
    family = _family(tmp_path)
    assert len(family) == 3
    assert kill_tree(family[0])
    assert all(is_gone(process) for process in family)


def test_freeze_and_thaw(tmp_path: Path) -> None:
    """After `freeze` nobody runs any more, and after `thaw` everybody does."""
    family = _family(tmp_path)
    try:
        assert {process.pid for process in freeze(family[0])} == {process.pid for process in family}
        assert {process.status() for process in family} == {psutil.STATUS_STOPPED}
        thaw(family[0])
        assert all(process.status() != psutil.STATUS_STOPPED for process in family)
    finally:
        kill_tree(family[0])


def test_pid_file_knows_its_process(tmp_path: Path) -> None:
    """A remembered process is found while it lives, and never confused with a later one of the same id."""
    pid_file = PidFile(tmp_path / "pid")
    assert pid_file.read() is None
    pid_file.write(psutil.Process())
    assert pid_file.read() == psutil.Process()
    assert find(os.getpid(), psutil.Process().create_time() - 3600) is None


def test_program_that_cannot_start_leaves_its_words(tmp_path: Path) -> None:
    """What the system says about a program that is not there is in the log, and the process is gone."""
    log = tmp_path / "log"
    try:
        process = spawn(
            ["/nonexistent/program"], identity=Identity("same"), cwd=tmp_path, env={"PATH": os.defpath}, log=log
        )
    except ServerFailedError:
        pass
    else:
        assert poll(lambda: is_gone(process) or None, seconds=10)
    assert poll(lambda: "/nonexistent/program" in log.read_text() or None, seconds=10)


def test_error_ends_with_the_log(tmp_path: Path) -> None:
    """An error shows the last lines of the server's log, and none of thousands before."""
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(1, 1_001)))
    with pytest.raises(ServerFailedError, match=r"(?s)^it broke\n.*\nline 901\n.*line 1000$"):
        raise ServerFailedError("it broke", log)


def test_free_ports() -> None:
    """Ports are different from each other, free, and outside of what the kernel lends to clients."""
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(is_free(port) for port in ports)
    assert all(port < 32_768 for port in ports)
