"""`sagapost status`: who publishes, what waits and since when, what is held or parked and why."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Annotated

import anyio
import typer

from sagapost.ops.commands.loading import load
from sagapost.ops.commands.options import AsJson, EnvFile, duration
from sagapost.ops.exit_codes import ExitCode
from sagapost.ops.output import write_json, write_line, write_table
from sagapost.ops.status.document import document_of
from sagapost.ops.status.rows import COLUMNS, rows_of
from sagapost.ops.status.seen import look
from sagapost.ops.status.verdict import Thresholds, complaints

__all__ = ["status"]


_WELL = Thresholds()


def status(
    check: Annotated[
        bool,
        typer.Option("--check", help="Write only what is not well, and then exit with code 9. For probes and cron."),
    ] = False,
    min_relays: Annotated[int, typer.Option(min=0, help="Relays that must be alive.")] = _WELL.min_relays,
    max_age: Annotated[
        timedelta, typer.Option(parser=duration, metavar="DURATION", help="Of events that wait, or are overdue.")
    ] = _WELL.max_age,
    max_held: Annotated[int, typer.Option(min=0, help="Held events.")] = _WELL.max_held,
    max_dead: Annotated[
        int, typer.Option(min=0, help="Dead letters: of the outbox, of an inbox, in a queue of the broker.")
    ] = _WELL.max_dead,
    max_parked_age: Annotated[
        timedelta,
        typer.Option(parser=duration, metavar="DURATION", help="Of messages that are tried again, and of rollbacks."),
    ] = _WELL.max_parked_age,
    max_stuck: Annotated[int, typer.Option(min=0, help="Stuck sagas.")] = _WELL.max_stuck,
    max_late: Annotated[int, typer.Option(min=0, help="Late sagas and tasks.")] = _WELL.max_late,
    examples: Annotated[int, typer.Option(min=1, max=1000, help="How many events, messages and sagas are named.")] = 5,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show whether relays live, what waits and what is held.

    With the reason, and what waits behind it; what each inbox has parked and what the broker keeps of what they
    rejected; which sagas are stuck or late. What is not well by the thresholds comes last, in a line each.
    """
    loaded = load(required=("database_url",), env_file=env_file)
    allowed = Thresholds(min_relays, max_age, max_held, max_dead, max_parked_age, max_stuck, max_late)
    seen = anyio.run(partial(look, loaded, examples=examples))
    found = complaints(seen, allowed)
    if as_json:
        write_json(document_of(seen, found))
    elif not check:
        styles = {"where": "cyan", "meaning": "dim"}
        write_table(COLUMNS, rows_of(seen), prose={"meaning"}, styles=styles)
    if not as_json:
        for complaint in found:
            write_line(f"not well: {' '.join(complaint.text.split())}")
    if check and found:
        raise typer.Exit(ExitCode.UNWELL)
