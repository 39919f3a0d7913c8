"""What the commands share by which operators look and decide: which rows are meant, who decides, and why.

Every desk (`events`, `dead`, `parked`, `tasks`, `saga`) goes the same way: a selection, on request a preview
(`--dry-run`), a signed decision, and with it, in one transaction, a row of the audit.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import anyio
import typer

from sagapost.core.errors import ConfigurationError
from sagapost.core.schema import SchemaPart
from sagapost.core.where import MOST, Fields, Selection
from sagapost.ops import database
from sagapost.ops.commands.loading import load
from sagapost.ops.settings import LoadedSettings
from sagapost.ops.tables import Tables, tables_of

__all__ = ["Actor", "After", "DryRun", "Everything", "Limit", "Reason", "ShowData", "at_desk", "meant", "where_option"]

T = TypeVar("T")


def _user() -> str:
    """Return who is at the keyboard, and where; in a container often only a number is known."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid-{os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def where_option(fields: Fields) -> Any:
    """Return the option `--where` for rows with these fields."""
    return typer.Option(
        "--where",
        metavar="CONDITION",
        help="Only those for which this holds, e.g. type=order.* or attempts>3 or error~timeout; several combine. "
        f"Operators: = != ~ !~ < <= > >=. Fields: {', '.join(fields.names)}.",
        show_default=False,
    )


Reason: TypeAlias = Annotated[str, typer.Option(help="Why; kept in the audit.")]
Actor: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Who decides; kept in the audit. Default: USER@HOST.", default_factory=_user, show_default=False
    ),
]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be done.")]
Everything: TypeAlias = Annotated[bool, typer.Option("--all", help="Everything that is listed.")]
Limit: TypeAlias = Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")]
After: TypeAlias = Annotated[
    int | None, typer.Option(min=0, max=MOST, help="Begin after this number: the next page.", show_default=False)
]
ShowData: TypeAlias = Annotated[bool, typer.Option("--data", help="Show the payload too, which may be personal.")]


def meant(
    fields: Fields, numbers: Sequence[int] | None, where: Sequence[str] | None, *, everything: bool
) -> Selection:
    """Return what a command that changes something is about: numbers, conditions, or, if it is said, everything.

    :raises ConfigurationError: if nothing was said, or more than one of the three; or if a condition is wrong.
    """
    if [bool(numbers), bool(where), everything].count(True) != 1:
        raise ConfigurationError(
            "Say what is meant, in one of three ways: numbers as they are listed; --where CONDITION (several are "
            "combined); or --all for everything that is listed. Example: --where 'type=order.*'"
        )
    return fields.select(*(where or ()), numbers=numbers or ())


def at_desk(
    env_file: Path | None,
    parts: Callable[[Tables], Sequence[SchemaPart]],
    work: Callable[[LoadedSettings, Tables], Awaitable[T]],
) -> T:
    """Do a command's work in the database of the settings, which has these tables.

    :raises SchemaError: if a part is missing or of another release.
    """
    loaded = load(required=("database_url",), env_file=env_file)
    tables = tables_of(loaded.settings)

    async def run() -> T:
        async with database.connect(loaded) as connection:
            await database.check(connection, tables.versions, parts(tables))
        return await work(loaded, tables)

    return anyio.run(run)
