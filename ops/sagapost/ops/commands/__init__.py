"""The commands of `sagapost`, one module for each group. Needs the extra `cli`."""

from __future__ import annotations

import typer

from sagapost.ops.commands import db, dead, parked, saga, tasks, tracking
from sagapost.ops.commands.config import config
from sagapost.ops.commands.consume import consume
from sagapost.ops.commands.declare import declare
from sagapost.ops.commands.relay import relay
from sagapost.ops.commands.status import status
from sagapost.ops.commands.track import track

__all__ = [
    "app",
    "config",
    "consume",
    "db",
    "declare",
    "dead",
    "parked",
    "relay",
    "saga",
    "status",
    "tasks",
    "track",
    "tracking",
]

app = typer.Typer(
    name="sagapost",
    help="Transactional outbox, idempotent inbox and sagas. Settings come from SAGAPOST_* variables and from .env.",
    no_args_is_help=True,
    add_completion=False,
    # A pretty traceback shows local variables, and with them passwords and payloads.
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (relay, consume, track, declare, config, status):
    app.command()(command)
app.add_typer(dead.app, name="dead")
app.add_typer(parked.app, name="parked")
tracking.add_to(saga.app)
app.add_typer(saga.app, name="saga")
app.add_typer(tasks.app, name="tasks")
app.add_typer(db.app, name="db")
