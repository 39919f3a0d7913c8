"""Groups of commands that import a command's module when it is called, and not to say that it exists.

`sagapost --help`, a group's `--help` and the shell's completion need names and summaries only; importing every command
for them would cost most of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["Group", "Late", "LateGroup", "new_app"]


@dataclass(frozen=True, slots=True)
class Late:
    """A command."""

    name: str
    home: str
    """Where its function is: `module:name`, the module relative to `sagapost.ops.commands`."""
    summary: str
    """The first sentence of the function's docstring, without its full stop."""


@dataclass(frozen=True, slots=True)
class Group:
    """Commands under one name."""

    name: str
    summary: str
    members: Sequence[Late]


def new_app(**options: Any) -> typer.Typer:
    """Return a `Typer` of the kind that all of the command line has."""
    return typer.Typer(
        no_args_is_help=True,
        # A pretty traceback shows local variables, and with them passwords and payloads.
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        **options,
    )


class LateGroup(TyperGroup):
    """A group that knows its members' names and summaries, and imports the one that is called."""

    members: Sequence[Late | Group] = ()

    def __init__(self, *, members: Sequence[Late | Group] | None = None, **attrs: Any) -> None:
        super().__init__(**attrs)
        if members is not None:
            self.members = members
        for member in self.members:
            self.add_command(TyperCommand(member.name, help=f"{member.summary}.", rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the member that the arguments name, now with all that it is."""
        name, command, rest = super().resolve_command(ctx, args)
        member = next((member for member in self.members if member.name == name), None)
        return name, command if member is None else _made(member), rest


def _made(member: Late | Group) -> Any:
    if isinstance(member, Group):
        return LateGroup(
            members=member.members,
            name=member.name,
            help=f"{member.summary}.",
            no_args_is_help=True,
            rich_markup_mode=None,
        )
    module, _, attribute = member.home.partition(":")
    app = new_app(add_completion=False)
    app.command(member.name)(getattr(import_module(f"sagapost.ops.commands.{module}"), attribute))
    return typer.main.get_command(app)
