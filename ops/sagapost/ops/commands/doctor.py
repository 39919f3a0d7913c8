"""`sagapost doctor`: what is wrong with database, broker and tables, since when, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated

import anyio
import typer

from sagapost.core.findings import Patience
from sagapost.ops.commands.findings import FailOn, FailOnOption, fails, findings_as_json
from sagapost.ops.commands.loading import load
from sagapost.ops.commands.options import AsJson, EnvFile, duration
from sagapost.ops.doctor.examination import diagnose
from sagapost.ops.exit_codes import ExitCode
from sagapost.ops.output import write_json, write_line, write_table
from sagapost.ops.status.verdict import Thresholds

if TYPE_CHECKING:
    from sagapost.inbox.declared.inbox import Inbox

__all__ = ["doctor"]

_WELL, _NORMAL = Thresholds(), Patience()


def doctor(
    services: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODULE:SERVICE...]",
            help="Services as the code declares them: their queues, and what is in flight, are held against it.",
            show_default=False,
        ),
    ] = None,
    fail_on: FailOnOption = FailOn.ERROR,
    min_relays: Annotated[int, typer.Option(min=0, help="Relays that must be alive.")] = _WELL.min_relays,
    max_age: Annotated[
        timedelta, typer.Option(parser=duration, metavar="DURATION", help="Of events that wait, or are overdue.")
    ] = _WELL.max_age,
    max_transaction: Annotated[
        timedelta, typer.Option(parser=duration, metavar="DURATION", help="Age of a transaction of the database.")
    ] = _NORMAL.transaction,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong with database, broker and tables.

    Each finding with its evidence, since when it is so, and what to do. Reads catalogues and counts; changes nothing.
    """
    loaded = load(required=("database_url",), env_file=env_file)
    inboxes = _inboxes(services) if services else ()
    allowed = Thresholds(min_relays=min_relays, max_age=max_age)
    patience = Patience(transaction=max_transaction)
    found = anyio.run(partial(diagnose, loaded, inboxes, allowed=allowed, patience=patience))
    if as_json:
        write_json(findings_as_json(found))
    elif found:
        write_table(
            ("severity", "what", "subject", "since", "evidence", "remedy"),
            [
                (
                    each.severity.value,
                    each.code,
                    each.subject,
                    "-" if each.since is None else each.since.isoformat(timespec="seconds"),
                    each.evidence,
                    each.remedy,
                )
                for each in found
            ],
            prose={"evidence", "remedy"},
            styles={"severity": "bold", "subject": "cyan"},
        )
    else:
        write_line("nothing is wrong that could be seen from here")
    if any(fails(each, fail_on) for each in found):
        raise typer.Exit(ExitCode.UNWELL)


def _inboxes(services: list[str]) -> Sequence[Inbox]:
    # Without services this command needs nothing of the inbox.
    from sagapost.ops.inbox_path import load_inboxes

    return load_inboxes(services)
