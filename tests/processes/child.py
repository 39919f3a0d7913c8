"""A process for the tests of the nursery: `python -m tests.processes.child DEED`."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from pathlib import Path

from sagapost.core.ids import new_id


def main(deed: str) -> None:
    """Say who it is, and do as told."""
    sys.stdout.write(f"{Path(sys.argv[0]).stem} {deed} {os.environ.get('OWN')} {Path.cwd()}\n")
    sys.stdout.flush()
    match deed:
        case "exit":
            sys.exit(7)
        case "raise":
            raise ValueError("on purpose")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "draw":
            sys.stdout.write(f"{new_id()}\n")
        case "warn":
            warnings.warn("on purpose", stacklevel=1)
        case "wait":
            time.sleep(600)
        case _:
            pass


if __name__ == "__main__":
    main(sys.argv[1])
