"""What the commands share by which operators decide: their options, and who is at the keyboard."""

from __future__ import annotations

import getpass
import os
import socket
from typing import Annotated, TypeAlias

import typer

__all__ = ["Actor", "After", "DryRun", "Limit", "Reason", "ShowData"]


def _user() -> str:
    """Return who is at the keyboard, and where; in a container often only a number is known."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid-{os.getuid()}"
    return f"{name}@{socket.gethostname()}"


Reason: TypeAlias = Annotated[str, typer.Option(help="Why; kept in the audit.")]
Actor: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Who decides; kept in the audit. Default: USER@HOST.", default_factory=_user, show_default=False
    ),
]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be done.")]
Limit: TypeAlias = Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")]
After: TypeAlias = Annotated[int, typer.Option(min=0, help="Begin after this number.")]
ShowData: TypeAlias = Annotated[bool, typer.Option("--data", help="Show the payload too, which may be personal.")]
