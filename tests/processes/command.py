"""The `sagapost` command beside the running Python, with no settings but those that are given."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["SAGAPOST", "environment"]

SAGAPOST = str(Path(sys.executable).with_name("sagapost"))
_CHECKOUT = Path(__file__).resolve().parents[2]


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process with these settings, in which this checkout can be imported.

    Settings of whoever runs the tests are left out.
    """
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("SAGAPOST_")}
    return {**kept, "PYTHONPATH": str(_CHECKOUT), **settings}
