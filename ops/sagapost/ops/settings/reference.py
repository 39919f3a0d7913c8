"""`python -m sagapost.ops.settings.reference > docs/configuration.md`: the page of all settings, from the settings."""

from __future__ import annotations

import sys

from sagapost.ops.registry import brokers
from sagapost.ops.settings.field import Setting
from sagapost.ops.settings.model import PARTS, part_of

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

A URL may hold a password, so it may also stand in a file, as Docker and Kubernetes mount secrets:
`SAGAPOST_BROKER_URL_FILE` names the file, whose last line end is left out. Both at once are an error.

Each part declares its settings itself, once: in code the same are `RelaySettings`, `ConsumerSettings` and the
arguments of the adapters, with the same ranges. No environment variable reaches a relay or consumer that you make
yourself. The adapter of the broker is chosen by the scheme of its URL and brings settings of its own; one of another
package (`sagapost.core.adapters` says how it is made) is found where it is installed, and `sagapost config` shows its
settings too.
"""


def reference() -> str:
    """Return the page as Markdown."""
    parts = [_INTRODUCTION]
    for part in (*PARTS, *(part_of(adapter) for adapter in brokers.ours() if part_of(adapter).settings)):
        lines = [f"## {part.title}", "", "| Variable | Default | Form | Meaning |", "|---|---|---|---|"]
        lines += [_row(setting) for setting in part.settings]
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
