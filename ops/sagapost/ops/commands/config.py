"""`sagapost config`: which settings are in force, and where each came from."""

from __future__ import annotations

from sagapost.ops.commands.loading import load
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.masking import MASK
from sagapost.ops.output import write_json, write_table
from sagapost.ops.settings.field import Setting, render

__all__ = ["config"]


def config(env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show every setting with its value and its source; passwords are masked.

    Ends with exit code 2, and says what is wrong, if a setting is not valid.
    """
    loaded = load(env_file=env_file)
    values, sources = loaded.values, loaded.sources
    shown = [(entry, _shown(entry, values[entry.name]), sources[entry.name]) for entry in loaded.declared]
    if as_json:
        write_json([{"variable": entry.variable, "value": value, "source": source} for entry, value, source in shown])
        return
    rows = [(entry.variable, value, source) for entry, value, source in shown]
    write_table(("setting", "value", "source"), rows, prose={"value"}, styles={"setting": "cyan", "source": "dim"})


def _shown(entry: Setting, value: object) -> str:
    # A URL is masked by its type.
    return MASK if entry.is_secret and isinstance(value, str) else render(value, unit=entry.unit)
