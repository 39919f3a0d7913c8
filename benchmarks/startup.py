"""What it costs to start: CPU time of processes that do as good as nothing, as ratios to `python -c pass`.

The command line's commands, and imports that every process of a service pays for. User and system time of the child,
not its wall time: a busy machine makes it wait and not work.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio.to_thread

from benchmarks.harness import Bench, Figure, interleave

COMMANDS: Mapping[str, Sequence[str]] = {
    "startup.help": ("--help",),
    "startup.version": ("--version",),
    "startup.config": ("config",),
    "startup.status": ("status",),
    "startup.db_check": ("db", "check"),
}
IMPORTS: Mapping[str, str] = {
    "startup.import_core": "import sagapost.core",
    "startup.import_outbox": "from sagapost.outbox import Outbox",
    "startup.import_inbox": "from sagapost.inbox import Inbox",
    "startup.import_sagas": "from sagapost.sagas import Sagas",
}
FIGURES = (*COMMANDS, *IMPORTS)

_COMMAND = "from sagapost.ops.cli import main; main()"


def cpu_of(arguments: Sequence[str], folder: Path) -> float:
    """Run Python with these arguments to its end; return the milliseconds of CPU that it used.

    :raises subprocess.CalledProcessError: if it fails.
    """
    variables = {name: value for name, value in os.environ.items() if not name.upper().startswith("SAGAPOST_")}
    variables["SAGAPOST_DATABASE_URL"] = f"sqlite:///{folder / 'startup.db'}"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=folder, env=variables, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1_000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


async def measure(bench: Bench) -> list[Figure]:
    """Run and return the wanted figures."""
    programs: dict[str, Sequence[str]] = {
        **{name: ("-c", _COMMAND, *arguments) for name, arguments in COMMANDS.items()},
        **{name: ("-c", statement) for name, statement in IMPORTS.items()},
    }
    wanted = {name: arguments for name, arguments in programs.items() if bench.wants(name)}
    with tempfile.TemporaryDirectory(prefix="startup-") as temporary:
        folder = Path(temporary)

        def variant(arguments: Sequence[str]) -> Callable[[], Awaitable[float]]:
            return partial(anyio.to_thread.run_sync, partial(cpu_of, arguments, folder))

        # Also writes the byte code of what was never imported here.
        cpu_of(("-c", _COMMAND, "db", "upgrade"), folder)
        variants = {"nothing": variant(("-c", "pass"))} | {name: variant(each) for name, each in wanted.items()}
        results = await interleave(bench, "start-up", variants, runs=bench.pick(5, 15))
    nothing = results["nothing"]
    return [Figure.of(name, "ms", results[name], nothing) for name in wanted]
