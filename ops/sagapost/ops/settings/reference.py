"""`python -m sagapost.ops.settings.reference > docs/configuration.md`: the page of all settings, from the settings."""

from __future__ import annotations

import sys

from sagapost.ops.settings.connections import ConnectionSettings
from sagapost.ops.settings.consumer import ConsumerOptions
from sagapost.ops.settings.field import Setting, describe
from sagapost.ops.settings.process import ProcessSettings
from sagapost.ops.settings.relay import RelayOptions

__all__ = ["reference"]

_INTRODUCTION = """\
# Configuration

<!-- Written by `python -m sagapost.ops.settings.reference`; a test compares. Change the settings, not this page. -->

`sagapost` processes are configured by environment variables, and by a `.env` file in the working directory or the one
that `--env-file` names. The environment wins over the file, the file over the default; an empty variable counts as not
set. `sagapost config` shows what is in force and where each value came from, with passwords masked.

Everything is checked at start. Wrong values end the process with [exit code 2](operations.md#exit-codes) and one line
for each of them, with the variable, what is wrong, and an example; a misspelt `SAGAPOST_` variable is a warning.

Durations are numbers with a unit, also several in a row: `500ms`, `30s`, `5m`, `1h30m`, `7d`. Sizes are bytes, or
numbers with `kB`, `MB`, `GB`, `KiB`, `MiB`, `GiB`. In a URL, special characters of the password are percent-encoded.

In code the same knobs are `RelaySettings`, `ConsumerSettings`, and the arguments of the adapters; no environment
variable reaches a relay or consumer that you make yourself.
"""

_SECTIONS = (
    ("Database and broker", ConnectionSettings),
    ("Relay", RelayOptions),
    ("Consumer", ConsumerOptions),
    ("Process", ProcessSettings),
)


def reference() -> str:
    """Return the page as Markdown."""
    parts = [_INTRODUCTION]
    for title, part in _SECTIONS:
        lines = [f"## {title}", "", "| Variable | Default | Form | Meaning |", "|---|---|---|---|"]
        lines += [_row(describe(name, field)) for name, field in part.model_fields.items()]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _row(entry: Setting) -> str:
    default = f"`{entry.default}`" if entry.default else "-"
    # A pipe would end the cell.
    choices = entry.range.replace(" | ", ", ")
    form = choices if entry.unit == "word" else f"{entry.unit}, {choices}" if choices else entry.unit
    meaning = f"{entry.what} *{entry.danger}* Example: `{entry.example}`"
    return f"| `{entry.variable}` | {default} | {form} | {meaning} |"


if __name__ == "__main__":
    sys.stdout.write(reference())
