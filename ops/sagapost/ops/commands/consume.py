"""`sagapost consume module:service`: handle events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from sagapost.core.errors import ConfigurationError
from sagapost.inbox.declared.inbox import Inbox
from sagapost.ops.commands.options import EnvFile, FailFast
from sagapost.ops.composition import Composition
from sagapost.ops.consuming import consumers, inboxes_there, require_one_outbox
from sagapost.ops.inbox_path import load_inboxes
from sagapost.ops.process import Plan, run_process
from sagapost.ops.relaying import outbox_there, relays

__all__ = ["consume"]


def consume(
    inboxes: Annotated[
        list[str],
        typer.Argument(metavar="MODULE:SERVICE...", help="The services, e.g. shop.warehouse:warehouse."),
    ],
    with_relay: Annotated[
        bool, typer.Option("--with-relay", help="Run a relay for the same database in this process too.")
    ] = False,
    env_file: EnvFile = None,
    fail_fast: FailFast = None,
) -> None:
    """Handle events from SAGAPOST_BROKER_URL, with transactions on SAGAPOST_DATABASE_URL, until stopped.

    SIGTERM or Ctrl-C drains, a second one stops at once.
    """

    def plan(composition: Composition) -> Plan:
        return _plan(composition, load_inboxes(inboxes), with_relay=with_relay)

    raise typer.Exit(run_process(plan, env_file=env_file, fail_fast=fail_fast))


def _plan(composition: Composition, inboxes: Sequence[Inbox], *, with_relay: bool) -> Plan:
    if not with_relay and not composition.crosses_processes:
        raise ConfigurationError(
            "SAGAPOST_BROKER_URL names the memory broker, which lives in one process: nobody would publish to these "
            "inboxes. Add --with-relay, or use a broker such as "
            "SAGAPOST_BROKER_URL=amqp://orders:password@localhost:5672/"
        )
    queues = [inbox.queue for inbox in inboxes]
    requirements = [inboxes_there(composition, inboxes), composition.broker_there(*queues)]
    workers = consumers(composition, inboxes)
    if with_relay:
        require_one_outbox(composition, inboxes)
        requirements.insert(0, outbox_there(composition))
        workers += relays(composition)
    return Plan(requirements, workers)
