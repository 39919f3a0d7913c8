"""The settings of a command that runs once, and a word about variables that none of them has."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

from sagapost.ops.settings import LoadedSettings, load_settings, misspelt

__all__ = ["hint_misspelt", "load"]


def load(*, required: Collection[str] = (), env_file: Path | None = None) -> LoadedSettings:
    """Return the settings; write a hint for each variable that looks like a setting and is none.

    :raises InvalidSettingsError: if a value is wrong or missing; the hints are part of its text.
    :raises ConfigurationError: if the file cannot be read.
    """
    loaded = load_settings(required=required, env_file=env_file)
    _write(loaded.hints)
    return loaded


def hint_misspelt() -> None:
    """Write the same hints in a command that needs no setting."""
    _write(misspelt())


def _write(hints: Collection[str]) -> None:
    for hint in hints:
        sys.stderr.write(f"sagapost: {hint}\n")
