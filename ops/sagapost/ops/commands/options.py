"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from sagapost.ops.settings.units import parse_duration

__all__ = ["AsJson", "EnvFile", "FailFast", "duration"]

EnvFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--env-file",
        help="Read settings from this file too; variables of the environment win. Default: .env, if there is one.",
        show_default=False,
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON.")]
FailFast: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--fail-fast/--wait",
        help="Exit with code 5 if a server cannot be reached at start, or wait for it. Default: SAGAPOST_FAIL_FAST.",
        show_default=False,
    ),
]


def duration(value: Any) -> Any:
    """Read an option that is a duration, as settings are written: `30s`, `5m`.

    :raises typer.BadParameter: if it is none.
    """
    try:
        return parse_duration(value)
    except ValueError as error:
        raise typer.BadParameter(f"{value!r} {error}") from None
