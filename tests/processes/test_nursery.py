"""A child of the nursery is what a process started by a shell is, but for the time that its imports took."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sagapost.core.ids import new_id
from tests.processes.command import SAGAPOST, environment
from tests.processes.nursery import Nursery
from tests.servers.processes import wait_gone

CHECKOUT = Path(__file__).resolve().parents[2]
CHILD = "tests.processes.child"
OWNER = """
import sys
from pathlib import Path
from tests.processes.command import environment
from tests.processes.nursery import Nursery

nursery = Nursery(Path.cwd())
nursery.__enter__()
child = nursery.start("-m", "tests.processes.child", "wait", environment=environment({}), folder=Path.cwd())
print(child.pid, nursery.parent, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def born(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """A nursery of this module's own."""
    with Nursery(tmp_path_factory.mktemp("nursery")) as nursery:
        yield nursery


def test_a_command_answers_as_it_does_elsewhere(born: Nursery, tmp_path: Path) -> None:
    """Output, errors and exit code of `sagapost` are those of a real process, with the same environment and folder."""
    for arguments in (("config",), ("status",), ("no-such-command",)):
        variables = environment({"SAGAPOST_DATABASE_URL": f"sqlite:///{tmp_path / 'a.db'}", "COLUMNS": "200"})
        child = born.run("sagapost", *arguments, environment=variables, folder=tmp_path)
        real = subprocess.run(
            [SAGAPOST, *arguments], env=variables, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (child.returncode, child.stdout, child.stderr) == (real.returncode, real.stdout, real.stderr)


@pytest.mark.parametrize(
    ("deed", "code", "words"),
    [("return", 0, ""), ("exit", 7, ""), ("raise", 1, "ValueError: on purpose\n"), ("kill", -signal.SIGKILL, "")],
)
def test_an_end_is_reported_as_it_was(born: Nursery, tmp_path: Path, deed: str, code: int, words: str) -> None:
    """By itself, with a code, by an exception, by a signal; what it wrote before is there, in its own folder."""
    ran = born.run("-m", CHILD, deed, environment=environment({"OWN": "yes"}), folder=tmp_path)
    assert ran.returncode == code
    assert ran.stderr.endswith(words)
    assert ran.stdout == f"{CHILD.rpartition('.')[2]} {deed} yes {tmp_path}\n"


def test_children_are_strangers_to_each_other(born: Nursery, tmp_path: Path) -> None:
    """Nothing of one is seen by the next: settings, folder, random numbers, ids."""
    drawn = {
        born.run("-m", CHILD, "draw", environment=environment({}), folder=tmp_path).stdout.splitlines()[1]
        for _ in range(5)
    }
    assert len(drawn | {new_id()}) == 6
    unset = born.run("-m", CHILD, "return", environment=environment({}), folder=tmp_path)
    assert " None " in unset.stdout


def test_warnings_are_errors_where_the_environment_says_so(born: Nursery, tmp_path: Path) -> None:
    """As for an interpreter that starts."""
    variables = environment({"PYTHONWARNINGS": "error"})
    assert born.run("-m", CHILD, "warn", environment=variables, folder=tmp_path).returncode == 1
    assert born.run("-m", CHILD, "warn", environment=environment({}), folder=tmp_path).returncode == 0


def test_one_that_takes_too_long_is_ended(born: Nursery, tmp_path: Path) -> None:
    """The wait is bounded, and nothing is left."""
    with pytest.raises(subprocess.TimeoutExpired):
        born.run("-m", CHILD, "wait", environment=environment({}), folder=tmp_path, timeout=0.2)
    with Nursery(tmp_path) as nursery:
        child = nursery.start("-m", CHILD, "wait", environment=environment({}), folder=tmp_path)
        process = psutil.Process(child.pid)
        assert child.poll() is None
    assert wait_gone([process], 10)


def test_children_end_with_their_owner(tmp_path: Path) -> None:
    """The process that ordered them is killed: its children, and the nursery, end by themselves."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=tmp_path,
        env=environment({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
        owner.kill()
    assert len(processes) == 2
    assert wait_gone(processes, 30)
