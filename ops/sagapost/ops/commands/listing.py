"""Every command of `sagapost`, and the command itself."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from sagapost.ops.commands.group import Group, Late, LateGroup, new_app

__all__ = ["COMMANDS", "app"]

COMMANDS = (
    Late("relay", "relay:relay", "Publish what is committed to the outbox, until stopped"),
    Late("consume", "consume:consume", "Handle events, until stopped"),
    Late("track", "track:track", "Keep where each saga is, until stopped"),
    Late("declare", "declare:declare", "Create the queues of inboxes"),
    Late("status", "status:status", "Show whether relays live, what waits and what is held"),
    Late("doctor", "doctor:doctor", "Look for what is wrong with database, broker and tables"),
    Late("config", "config:config", "Show the settings in force and their sources"),
    Group(
        "events",
        "Events: list those in the outbox, follow one from its row to the saga",
        (
            Late("list", "events:list_", "Show the events in the outbox"),
            Late("show", "events:show", "Show one event that the outbox keeps"),
            Late("trace", "events:trace", "Follow one event, or one ordering key"),
        ),
    ),
    Group(
        "dead",
        "Events the relay gave up on: list them, redrive them in order, discard them",
        (
            Late("list", "dead:list_", "Show the dead letters"),
            Late("show", "dead:show", "Show one dead letter"),
            Late("redrive", "dead:redrive", "Send dead letters again"),
            Late("discard", "dead:discard", "Delete dead letters"),
        ),
    ),
    Group(
        "parked",
        "Messages an inbox could not handle: look at them, redrive, discard or edit them",
        (
            Late("list", "parked:list_", "Show what is parked"),
            Late("show", "parked:show", "Show one parked message"),
            Late("redrive", "parked:redrive", "Let parked messages be handled again"),
            Late("discard", "parked:discard", "Give parked messages up"),
            Late("edit", "parked:edit", "Correct a parked message"),
        ),
    ),
    Group(
        "saga",
        "Sagas: where each of them is, and the choreography as declared in code",
        (
            Late("list", "tracking:list_", "Show sagas"),
            Late("show", "tracking:show", "Show one saga's timeline"),
            Late("tree", "tracking:tree_", "Show one saga's events by cause"),
            Late("watch", "tracking:watch", "Follow one saga"),
            Late("differences", "tracking:differences", "Compare events with the manifests"),
            Late("rollback", "tracking:rollback", "Ask every service to undo its part of a saga"),
            Late("retry", "tracking:retry", "Ask every service to try stuck compensations again"),
            Late("check", "check:check", "Hold what is in flight against the code that is to run"),
            Late("manifest", "manifest:manifest", "Write a service's manifest"),
            Late("map", "choreography:draw", "Draw the choreography"),
            Late("lint", "choreography:lint", "Look for mistakes in the choreography"),
        ),
    ),
    Group(
        "tasks",
        "Decisions that sagas wait for: list them, look at one, resolve it",
        (
            Late("list", "tasks:list_", "Show the open tasks"),
            Late("show", "tasks:show", "Show one task"),
            Late("resolve", "tasks:resolve", "Decide a task"),
        ),
    ),
    Group(
        "audit",
        "Who decided what, when and why",
        (
            Late("list", "audit:list_", "Show what operators decided"),
            Late("show", "audit:show", "Show one decision and what it removed"),
        ),
    ),
    Group(
        "db",
        "Create and check sagapost's tables",
        (
            Late("upgrade", "db:upgrade", "Create what is missing"),
            Late("check", "db:check", "Verify that the tables are of this release"),
            Late("sql", "db:sql", "Write the statements that create everything"),
        ),
    ),
)
"""Every command, in the order of the help."""


class _Root(LateGroup):
    members = COMMANDS

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; help and errors call it by its name, however it was started (`python -m sagapost`)."""
        return super().main(*args, **{"prog_name": "sagapost", **options})


app = new_app(
    name="sagapost",
    cls=_Root,
    help="Transactional outbox, idempotent inbox and sagas. Settings come from SAGAPOST_* variables and from .env.",
)


def _version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("sagapost")
    except PackageNotFoundError:
        found = "(of a source tree that is not installed)"
    sys.stdout.write(f"sagapost {found}\n")
    raise typer.Exit


@app.callback()
def sagapost(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Write the version and stop.")
    ] = False,
) -> None:
    """Transactional outbox, idempotent inbox and sagas."""
