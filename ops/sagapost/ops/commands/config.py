"""`sagapost config`: which settings are in force, and where each came from."""

from __future__ import annotations

from sagapost.ops.commands.loading import load
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.output import write_json, write_table
from sagapost.ops.settings import all_settings
from sagapost.ops.settings.field import render

__all__ = ["config"]


def config(env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show every setting with its value and its source; passwords are masked.

    Ends with exit code 2, and says what is wrong, if a setting is not valid.
    """
    loaded = load(env_file=env_file)
    shown = [
        (entry, render(getattr(loaded.settings, entry.name), unit=entry.unit), loaded.sources[entry.name])
        for entry in all_settings()
    ]
    if as_json:
        write_json([{"variable": entry.variable, "value": value, "source": source} for entry, value, source in shown])
        return
    rows = [(entry.variable, value, source) for entry, value, source in shown]
    write_table(("setting", "value", "source"), rows, prose={"value"}, styles={"setting": "cyan", "source": "dim"})
