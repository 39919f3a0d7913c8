"""No server outlives its run, however the run ends; and nobody else's process is ever touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.servers.databases import answers
from tests.servers.fixtures import REQUIRE_VARIABLE, present
from tests.servers.identity import Identity
from tests.servers.processes import is_gone, kill_tree, spawn, wait_gone
from tests.servers.rundir import RunDirectory
from tests.servers.servers import Servers
from tests.servers.waiting import poll

_ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 30

_OWNER = """
import sys
from tests.servers.rundir import RunDirectory
from tests.servers.servers import Servers

with RunDirectory.create() as run:
    server = Servers(run).own_postgresql()
    print(server.home, server.port, flush=True)
    if sys.argv[1] == "pause":
        server.pause()
    sys.stdin.read()
"""


@pytest.mark.servers
@pytest.mark.parametrize("state", ["run", "pause"])
def test_servers_end_when_their_owner_is_killed(servers: Servers, state: str) -> None:
    """SIGKILL of the owner ends its servers and removes its folder, also when a server was paused."""
    present(servers.own_postgresql()).discard()  # skips where there is none
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, state], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        words = owner.stdout.readline().split()
        home = Path(words[0])
        postmaster = psutil.Process(int((home / "data" / "postmaster.pid").read_text().split()[0]))
        processes = [postmaster, *postmaster.children(recursive=True)]
        assert len(processes) > 3
        owner.kill()
    assert wait_gone(processes, _SECONDS)
    assert poll(lambda: None if home.parent.exists() else True, seconds=_SECONDS)


def test_close_ends_and_removes_everything() -> None:
    """An orderly end leaves no process, no folder and no guard, and ending twice does no harm."""
    with RunDirectory.create() as run:
        home = run.home("anything")
        log = run.path / "log"
        environ = {"PATH": os.defpath}
        inside = spawn(["sleep", "1000"], identity=Identity("same"), cwd=home, env=environ, log=log)
        guard = psutil.Process(int((run.path / "guard").read_text().strip("[").split(",")[0]))
        assert not is_gone(guard)
    assert is_gone(inside)
    assert is_gone(guard)
    assert not run.path.exists()
    run.close()


def test_processes_elsewhere_are_left_alone(tmp_path: Path) -> None:
    """A process in a folder whose name only begins like the run's is not the run's."""
    with RunDirectory.create() as run:
        neighbour = run.path.with_name(run.path.name + "-other")
        neighbour.mkdir()
        environ = {"PATH": os.defpath}
        outside = spawn(["sleep", "1000"], identity=Identity("same"), cwd=neighbour, env=environ, log=tmp_path / "log")
    try:
        assert not is_gone(outside)
    finally:
        kill_tree(outside)
        neighbour.rmdir()


_INNER = """
import os
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", range(4))
def test_inner(postgresql, postgresql_url, number):
    Path(os.environ["NOTES"], f"{os.getpid()}-{number}").write_text(f"{postgresql.dsn()} {postgresql_url}")
"""


def _pytest(folder: Path, *arguments: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (folder / "test_inner.py").write_text(_INNER)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = servers\n")
    argv = [sys.executable, "-m", "pytest", "-p", "tests.servers.fixtures", "-p", "no:cacheprovider", "-rs", "-q"]
    return subprocess.run(
        [*argv, f"--rootdir={folder}", "-c", str(folder / "pytest.ini"), *arguments, str(folder)],
        cwd=_ROOT,
        env={**{k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "SAGAPOST_"))}, **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_workers_share_one_server(servers: Servers, tmp_path: Path) -> None:
    """Two workers of pytest-xdist use the same server, with a database per test, and it ends with the run."""
    present(servers.own_postgresql()).discard()
    notes = tmp_path / "notes"
    notes.mkdir()
    ran = _pytest(tmp_path, "-n", "2", environ={"NOTES": str(notes)})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    written = list(notes.iterdir())
    assert len({path.name.split("-")[0] for path in written}) == 2, "both workers ran something"
    addresses, databases = zip(*(path.read_text().split() for path in written), strict=True)
    assert len(set(addresses)) == 1
    assert len(set(databases)) == 4
    assert not answers(addresses[0])


def test_missing_server_is_one_loud_line(tmp_path: Path) -> None:
    """Without a server its tests are skipped, the run says so once and aloud, and can be told to fail instead."""
    hide = tmp_path / "sitecustomize.py"
    hide.write_text(
        "import tests.servers.resolve as resolve\n"
        "nothing = resolve.Machine({}, lambda _: None, lambda: None, lambda _: None, lambda: False)\n"
        "resolve.Machine.here = classmethod(lambda cls: nothing)\n"
    )
    environ = {"NOTES": str(tmp_path), "PYTHONPATH": f"{tmp_path}{os.pathsep}{_ROOT}"}
    skipped = _pytest(tmp_path, environ=environ)
    assert skipped.returncode == 0, skipped.stdout + skipped.stderr
    assert skipped.stdout.count("!!! 4 TESTS WITH A REAL SERVER DID NOT RUN: no PostgreSQL") == 1
    required = _pytest(tmp_path, environ={**environ, REQUIRE_VARIABLE: "1"})
    assert required.returncode == 1
